"""What `ask_together` promises to threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from racelab import barrier
from racelab.barrier import NotTogether, ask_together


def test_no_question_goes_out_before_all_have_one() -> None:
    asking, seen = 0, []

    def ask(question: str) -> str:
        seen.append(asking)
        return question

    together = ask_together(ask, 4)

    def agent(name: str) -> str:
        nonlocal asking
        with lock:
            asking += 1
        return together(name)

    lock = threading.Lock()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(agent, "abcd")) == list("abcd")
    assert seen == [4] * 4


def test_each_round_waits_for_all_and_calls_watch() -> None:
    rounds: list[str] = []
    together = ask_together(str.upper, 3, lambda: rounds.append("look"))

    def agent(name: str) -> list[str]:
        return [together(name) for _ in range(5)]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(agent, "abc")) == [["A"] * 5, ["B"] * 5, ["C"] * 5]
    assert rounds == ["look"] * 5


def test_a_failed_call_fails_all_with_its_own_error() -> None:
    def ask(question: str) -> str:
        if question == "b":
            raise ConnectionError(question)
        return question

    together = ask_together(ask, 3)

    def agent(name: str) -> str:
        return together(together(name))

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(agent, name) for name in "abc"]
        assert {repr(call.exception()) for call in calls} == {"ConnectionError('b')"}


def test_a_failing_watch_is_what_all_see() -> None:
    def watch() -> None:
        raise LookupError("no dashboard")

    together = ask_together(str.upper, 2, watch)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(together, name) for name in "ab"]
        assert {type(call.exception()) for call in calls} == {LookupError}


def test_a_missing_agent_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(barrier, "ASK_TOGETHER_TIMEOUT", 0.05)
    with pytest.raises(NotTogether, match="not all of 2 agents asked"):
        ask_together(str.upper, 2)("alone")
