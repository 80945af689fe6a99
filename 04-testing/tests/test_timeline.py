"""Timelines, tables and the verdict line."""

import os
import sys
import threading

import pytest

from racelab import Timeline, result, table, verdict


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_agents_have_columns_and_marks_have_rows() -> None:
    clock = Clock()
    timeline = Timeline("scout", "critic", clock=clock)
    clock.now = 5.0
    timeline.mark("scout", "read 0")
    clock.now = 5.05
    timeline.mark("critic", "wrote 1")
    assert str(timeline).splitlines() == [
        "   ms  scout   critic",
        "    0  read 0",
        "   50          wrote 1",
    ]
    assert timeline.of("critic") == ["wrote 1"]


def test_a_timeline_without_marks_is_its_heading() -> None:
    assert str(Timeline("scout")) == "   ms  scout"


def test_an_unknown_agent_is_named() -> None:
    with pytest.raises(ValueError, match="'spy': must be one of scout, critic"):
        Timeline("scout", "critic").mark("spy", "hides")


def test_threads_may_mark_at_the_same_time() -> None:
    names = [f"agent {n}" for n in range(8)]
    timeline = Timeline(*names)
    ready = threading.Barrier(len(names))

    def mark_often(name: str) -> None:
        ready.wait()
        for _ in range(500):
            timeline.mark(name, "x")

    threads = [threading.Thread(target=mark_often, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(timeline.of(name)) == 500 for name in names)


def test_the_verdict_is_a_word_and_an_exit_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert verdict(True, "kept 3 of 3 findings") == 0
    assert verdict(False, "kept 1 of 3 findings") == 1
    assert result("2.0x as fast") == 0
    assert capsys.readouterr().out.splitlines() == [
        "OK: kept 3 of 3 findings",
        "BROKEN: kept 1 of 3 findings",
        "RESULT: 2.0x as fast",
    ]


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colour_is_for_terminals_that_want_it(
    no_color: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"NO_COLOR": no_color, "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    verdict(False, "kept 1 of 3 findings")
    out = capsys.readouterr().out
    assert ("\x1b[" in out) == (no_color == "")
    assert "BROKEN:" in out
    assert out.endswith("kept 1 of 3 findings\n")


def test_a_table_aligns_its_columns() -> None:
    rows = (("agents", "time"), ("8", "120 ms"), ("8 in a chain", "9 ms"))
    assert table(*rows).splitlines() == [
        "agents          time",
        "8             120 ms",
        "8 in a chain    9 ms",
    ]


def test_this_suite_has_no_key() -> None:
    assert "OPENAI_API_KEY" not in os.environ
