"""The benchmarks count what they say they count, and draw what they counted.

Orders and counts are asserted, never durations: the benchmarks run here with constants
so small that their numbers mean nothing.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from racelab import LocalServer
from racelab.process import reuse_server
from racelab.pytest.chart import INSTALL, WIDTH, Chart, ChartError, chart_file
from racelab.pytest.plugin import LoadScript, RunScript

SYNC, TRANSPORTS = "benchmark_sync_vs_async.py", "benchmark_transports.py"
BOTH = pytest.mark.parametrize("name", [SYNC, TRANSPORTS])
SMALL: dict[str, dict[str, object]] = {
    SYNC: {"IN_FLIGHT": 2, "REPEATS": {1: 2, 6: 1}},
    TRANSPORTS: {"WAVES": {1: 2, 3: 1}, "DECISIVE": 3},
}
Shrink = Callable[[str], ModuleType]


@pytest.fixture
def shrunk(load_script: LoadScript, monkeypatch: pytest.MonkeyPatch) -> Shrink:
    """`shrunk(name)` is the benchmark with so little to do that a test can run it."""

    def load(name: str) -> ModuleType:
        module = load_script(name)
        for constant, value in SMALL[name].items():
            monkeypatch.setattr(module, constant, value)
        return module

    return load


@BOTH
async def test_a_benchmark_prints_a_table_bars_and_its_ratio_last(
    name: str,
    shrunk: Shrink,
    session_server: LocalServer,
    capsys: pytest.CaptureFixture,
) -> None:
    with reuse_server(session_server, speed=10):
        assert await shrunk(name).main() == 0
    out = capsys.readouterr().out
    bars = re.findall(r"^  \S.*? (#+) [\d.,]+ (?:calls/s|ms)$", out, re.MULTILINE)
    assert len(bars) == {SYNC: 4 * 2, TRANSPORTS: 3 * 2}[name]
    assert max(map(len, bars)) == WIDTH
    assert out.isascii()
    assert re.search(r"^RESULT: .* \d+\.\d+x .*\n\Z", out, re.MULTILINE)


async def test_every_way_makes_the_same_calls(
    shrunk: Shrink, session_server: LocalServer
) -> None:
    module = shrunk(SYNC)
    with reuse_server(session_server, speed=10):
        await module.main()
    warm_up, measured = 2, 1 + 1 + 6
    assert session_server.stats().answered == 4 * (warm_up + measured)


@pytest.mark.parametrize(
    ("way", "most"),
    [("one at a time", 1), ("threads", 3), ("asyncio", 3), ("unbounded", 12)],
)
async def test_no_more_calls_are_in_flight_than_the_way_says(
    way: str, most: int, load_script: LoadScript, model_server: LocalServer
) -> None:
    module = load_script(SYNC)
    module.IN_FLIGHT = 3
    async with module.open_ways(model_server) as ways:
        await ways[way](12)
    stats = model_server.stats()
    assert stats.answered == 12
    assert stats.largest_in_flight <= most
    assert (stats.largest_in_flight > 1) == (most > 1)


def test_the_ideal_is_calls_by_in_flight_times_latency(shrunk: Shrink) -> None:
    module = shrunk(SYNC)
    latency = module.LATENCY
    assert module.speed("one at a time", 6, 6 * latency).endswith(" 100%")
    assert module.speed("asyncio", 6, 6 * latency).endswith(" 50%")
    assert module.speed("threads", 6, 3 * latency).endswith(" 100%")
    assert module.speed("unbounded", 6, latency).endswith(" 100%")
    assert module.speed("asyncio", 1, latency).endswith(" 100%")  # not half a latency


async def test_all_clients_ask_the_same_and_get_the_same_answer(
    shrunk: Shrink, model_server: LocalServer
) -> None:
    async with shrunk(TRANSPORTS).open_clients(model_server) as clients:
        answers = {await ask() for ask in clients.values()}
    assert len(clients) == 3
    assert len(answers) == 1
    assert answers != {""}


async def test_a_wave_is_in_flight_together(
    shrunk: Shrink, session_server: LocalServer
) -> None:
    with reuse_server(session_server):
        await shrunk(TRANSPORTS).main()
    stats = session_server.stats()
    assert stats.answered == 3 * (1 + 2 * 1 + 1 * 3)
    assert 1 < stats.largest_in_flight <= 3


async def test_the_bare_loop_is_the_floor(
    load_script: LoadScript, model_server: LocalServer
) -> None:
    module = load_script(TRANSPORTS)
    module.WAVES = {10: 5}
    async with module.open_clients(model_server) as clients:
        for ask in clients.values():
            await ask()
        costs = await module.compare(clients, 10)
    floor = costs["bare aiohttp"][1]
    assert floor < costs["SDK"][1]
    assert floor < costs["SDK on aiohttp"][1]


def test_bars_are_as_long_as_their_values() -> None:
    groups = {"few": {"a": 10.0, "long": 1.0}, "many": {"a": 40.0, "long": 0.001}}
    lines = str(Chart("Speed", "calls/s", groups)).splitlines()
    assert lines == [
        "Speed",
        "few",
        "  a     " + "#" * (WIDTH // 4) + " 10 calls/s",
        "  long  " + "#" * (WIDTH // 40) + " 1 calls/s",
        "many",
        "  a     " + "#" * WIDTH + " 40 calls/s",
        "  long  # 0.001 calls/s",  # never invisible
    ]


@BOTH
async def test_the_svg_shows_every_group_and_name(
    name: str, shrunk: Shrink, session_server: LocalServer, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="an extra: 04-testing[charts]")
    file = tmp_path / "chart.svg"
    with reuse_server(session_server, speed=10):
        await shrunk(name).main(file)
    assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    svg = file.read_text(encoding="utf-8")  # matplotlib names its texts in comments
    shown = {
        SYNC: ["one at a time", "threads", "asyncio", "unbounded", "calls: 6"],
        TRANSPORTS: ["SDK", "SDK on aiohttp", "bare aiohttp", "in flight: 3"],
    }
    assert all(f"<!-- {text} -->" in svg for text in shown[name])


@BOTH
def test_without_matplotlib_one_line_says_what_to_install(
    name: str, script: RunScript, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked" / "matplotlib"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('blocked')")
    file = tmp_path / "chart.svg"
    ran = script(name, "--chart", str(file), PYTHONPATH=str(blocked.parent))
    assert (ran.status, ran.out, ran.err) == (2, "", f"error: {INSTALL}\n")
    assert not file.exists()


def test_a_wrong_command_line_is_one_line_before_anything_is_measured(
    script: RunScript,
) -> None:
    ran = script(TRANSPORTS, "--chart", "chart.png")
    says = "error: --chart chart.png: the name must end in .svg\n"
    assert (ran.status, ran.out, ran.err) == (2, "", says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--chart", "missing/chart.svg"], "there is no folder missing"),
        (["--chart", "chart"], "must end in .svg"),
        (["--chart", "folder.svg"], "directory"),
        (["--chart"], "expected one argument"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_at_once(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.svg").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(ChartError, match=says):
        chart_file()
    assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]


def test_an_older_chart_is_kept_until_there_is_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="an extra: 04-testing[charts]")
    old, new = tmp_path / "old.svg", tmp_path / "new.svg"
    old.write_text("old")
    for file in (old, new):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", "--chart", str(file)])
        assert chart_file() == file
    assert old.read_text() == "old"
    assert not new.exists()


def test_without_chart_on_the_command_line_there_is_no_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py"])
    assert chart_file() is None
