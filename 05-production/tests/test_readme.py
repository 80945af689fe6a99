"""What the README says about numbers is right, and its observer works."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agents import Answer, Limits, Outcome, Team

README = Path(__file__).parents[1] / "README.md"


def test_the_table_of_limits_is_worked_out_right() -> None:
    rows = re.findall(r"^\| [\d,]+ \| [\d,]+ \| .+$", README.read_text("utf-8"), re.M)
    assert len(rows) == 3
    for row in rows:
        cells = [cell.strip().replace(",", "") for cell in row.strip("| ").split("|")]
        rpm, tpm, tokens, seconds = map(float, cells[:4])
        by_requests, by_tokens = rpm / 60, tpm / 60 / tokens
        rate = min(by_requests, by_tokens)
        assert cells[4:8] == [
            f"{by_requests:.1f}/s",
            f"{by_tokens:.1f}/s",
            f"{rate:.1f}",
            f"{rate * seconds:.1f}",
        ]
        assert cells[8] == ("requests" if rate == by_requests else "tokens")


class Meter:
    """As much of OpenTelemetry as the observer in the README uses."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, float, dict[str, str]]] = []

    def create_histogram(self, name: str, unit: str) -> Any:
        def record(amount: float, attributes: dict[str, str]) -> None:
            self.recorded.append((f"{name} in {unit}", amount, attributes))

        histogram = ModuleType(name)
        vars(histogram)["record"] = record
        return histogram


@pytest.mark.virtual_time
async def test_the_observer_for_opentelemetry_records_both_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = re.search(
        r"```python\n(from agents import Event\n.+?)```",
        README.read_text("utf-8"),
        re.S,
    )
    assert code is not None
    meter, package, metrics = (
        Meter(),
        ModuleType("opentelemetry"),
        ModuleType("metrics"),
    )
    vars(metrics)["get_meter"] = lambda name: meter
    vars(package)["metrics"] = metrics
    monkeypatch.setitem(sys.modules, "opentelemetry", package)
    names: dict[str, Any] = {}
    exec(code[1], names)

    async def ask(question: str) -> Answer:
        if question == "no":
            raise ValueError(question)
        return Answer("Yes.", 3, 4)

    async with Team(ask, Limits(), observer=names["to_opentelemetry"]) as team:
        outcomes: list[Outcome] = [await team.ask(word) for word in ("yes", "no")]
    assert [outcome.answer is None for outcome in outcomes] == [False, True]
    kept = [
        (name, amount, more.get("gen_ai.token.type"), more.get("error.type"))
        for name, amount, more in meter.recorded
    ]
    assert kept == [
        ("gen_ai.client.operation.duration in s", 0, None, None),
        ("gen_ai.client.token.usage in {token}", 3, "input", None),
        ("gen_ai.client.token.usage in {token}", 4, "output", None),
        ("gen_ai.client.operation.duration in s", 0, None, "crashed"),
    ]
