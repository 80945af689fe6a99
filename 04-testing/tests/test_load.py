"""The tool for load tests: what it counts, prints and draws."""

import asyncio
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from racelab import Refused, Stats
from racelab.pytest.load import Load, LoadReport, peak_memory, put_load, why_not_to

HERE = Path(__file__).parents[1]
REFUSALS = "04-testing/patterns/test_load_refusals.py"


@pytest.mark.parametrize(
    ("share", "took"), [(0.5, 50), (0.95, 95), (0.99, 99), (1, 100), (0, 1), (0.001, 1)]
)
def test_a_percentile_is_a_time_that_was_measured(share: float, took: float) -> None:
    hundred = Load(1, 100, 0, 10.0, tuple(range(1, 101)))
    assert hundred.percentile(share) == took
    assert hundred.per_second == 10


def test_without_an_answer_there_is_no_percentile() -> None:
    assert math.isnan(Load(1, 5, 5, 1.0, ()).percentile(0.5))


async def test_agents_ask_at_once_and_in_turn() -> None:
    asked: list[str] = []

    async def ask(question: str) -> str:
        asked.append(question)
        await asyncio.sleep(0)
        return "Yes."

    load = await put_load(ask, agents=3, calls=2)
    assert [question.split(":")[0] for question in asked] == [
        *("Agent 0", "Agent 1", "Agent 2") * 2
    ]
    assert len(set(asked)) == 6  # no two questions are the same
    assert (load.answered, load.calls, load.refused) == (6, 6, 0)
    assert list(load.times) == sorted(load.times)


async def test_refusals_are_counted_and_other_failures_are_raised() -> None:
    async def refuses_the_second(question: str) -> str:
        if "number 1" in question:
            raise Refused("too many requests", 429)
        return "Yes."

    load = await put_load(refuses_the_second, agents=5, calls=3)
    assert (load.answered, load.refused, load.calls) == (10, 5, 15)

    async def breaks(question: str) -> str:
        raise ConnectionError(question)

    with pytest.raises(ExceptionGroup):
        await put_load(breaks, agents=1, calls=1)


async def test_peak_memory_counts_all_agents_together() -> None:
    async def needs_a_megabyte(question: str) -> str:
        answer = "x" * 1_000_000
        await asyncio.sleep(0)
        return answer

    assert 10_000_000 < await peak_memory(needs_a_megabyte, agents=10) < 11_000_000


def test_load_report_is_a_table() -> None:
    report = LoadReport()
    load = Load(2, 4, 1, 0.5, (0.01, 0.02, 0.03))
    report.add("slots", load, Stats(refused={"429": 1}, largest_in_flight=2), 12_345)
    _, row = str(report).splitlines()
    times = "20 ms 30 ms 30 ms"
    assert row.split() == f"slots 2 4 6 {times} 1 1 2 12 kB".split()


def test_load_report_is_an_svg(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra: 04-testing[charts]")
    report, file = LoadReport(), tmp_path / "load.svg"
    report.add("slots", Load(40, 3, 0, 0.5, (0.01, 0.02, 0.03)), Stats())
    report.draw(file)
    assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    svg = file.read_text("utf-8")  # matplotlib names its texts in comments
    assert all(f"<!-- {text} -->" in svg for text in ("slots: 40", "p50", "20", "30"))


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    return subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("chart.png", "the name must end in .svg"),
        ("missing/chart.svg", "there is no folder missing"),
    ],
)
def test_why_a_chart_cannot_be_drawn(file: str, why: str) -> None:
    assert why_not_to(Path(file)) == why


def test_chart_that_cannot_be_drawn_stops_pytest_at_once() -> None:
    ran = run_pytest(REFUSALS, "--chart", "chart.png")
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --chart chart.png: the name must end in .svg" in ran.stderr
    assert "passed" not in ran.stdout


@pytest.mark.long
def test_pytest_draws_the_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra: 04-testing[charts]")
    file = tmp_path / "load.svg"
    ran = run_pytest(REFUSALS, "--chart", str(file))
    assert f"chart: {file}" in ran.stdout
    assert "rate limit: 40" in file.read_text("utf-8")
