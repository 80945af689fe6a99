"""One broken record, three designs that keep it, and the same checks for all."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Thread
from types import ModuleType
from typing import Any

import pytest

from racelab import Timeline
from racelab.pytest.run_scripts import LoadScript, RunScript

FIXES = ("lock", "immutable", "queue")
FIXED = [f"fixed_team_state_{fix}.py" for fix in FIXES]


def see(module: ModuleType) -> list[Any]:
    timeline = Timeline(*module.AGENTS, "dashboard")
    seen: list[Any] = module.run(lambda question: f"{question} Yes.", timeline)
    return seen


def test_one_finding_is_left_in_every_run(
    load_script: LoadScript, switch_intervals: range
) -> None:
    module = load_script("broken_team_state.py")
    for _ in switch_intervals:
        seen = see(module)
        assert len(seen[-1].findings) == 1
        assert [record.status for record in seen[:2]] == ["whole", "torn"]


@pytest.mark.parametrize("fix", FIXED)
def test_a_design_keeps_all_findings_in_every_run(
    fix: str, load_script: LoadScript, switch_intervals: range
) -> None:
    module = load_script(fix)
    for _ in switch_intervals:
        seen = see(module)
        assert {agent for agent, _ in seen[-1].findings} == set(module.AGENTS)
        assert {record.status for record in seen} == {"whole"}


class Quiet(Timeline):
    """A timeline that keeps no marks, because thousands of agents are many columns."""

    def mark(self, agent: str, what: str) -> None:
        pass


QUIET = Quiet()


@contextmanager
def owned(team: Any, timeline: Timeline) -> Iterator[None]:
    """Run the owner of the record, in the design that has one."""
    if not hasattr(team, "own"):
        yield
        return
    owner = Thread(target=team.own, args=[timeline])
    owner.start()
    try:
        yield
    finally:
        team.inbox.put(None)
        owner.join()


@pytest.mark.parametrize("fix", FIXED)
def test_32_threads_leave_the_record_whole(
    fix: str, load_script: LoadScript, repeats: int
) -> None:
    module = load_script(fix)
    threads, updates = 32, 400 * repeats
    names = [f"agent{number}" for number in range(updates)]
    team, looks = module.Team(), []

    def work(first: int) -> None:
        for number in range(first, updates, threads):
            module.research(names[number], team, lambda question: "Yes, it is.", QUIET)
            if number % 100 == 0:
                looks.append(team.look())

    with owned(team, QUIET), ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    end = team.look()
    assert sorted(agent for agent, _ in end.findings) == sorted(names)
    assert end.words == 6 * updates
    assert len(looks) == updates // 100
    for record in [end, *looks]:
        assert record.status == "whole"
        assert [a for a, _ in record.findings] == [a for a, _ in record.checks]


def test_failing_holder_leaves_half_a_record_under_a_lock(
    load_script: LoadScript,
) -> None:
    """A lock is given back by `with`; what was half written stays half written."""
    module = load_script("fixed_team_state_lock.py")
    team = module.Team()

    def fail_halfway() -> None:
        with team.lock:
            team.record.findings = (("critic", "a finding"),)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_halfway()
    assert team.lock.acquire(blocking=False)
    team.lock.release()
    assert team.look().status == "torn"


def test_failing_holder_leaves_a_whole_frozen_record(
    load_script: LoadScript,
) -> None:
    module = load_script("fixed_team_state_immutable.py")
    team = module.Team()
    module.research("critic", team, str.upper, Timeline("critic"))
    with pytest.raises(TypeError), team.lock:
        team.record = team.record.plus("lawyer", "finding", *[None, None])
    assert [agent for agent, _ in team.look().findings] == ["critic"]
    assert team.look().status == "whole"


def test_failing_owner_leaves_a_whole_record(
    load_script: LoadScript,
) -> None:
    module = load_script("fixed_team_state_queue.py")
    team, failed = module.Team(), []

    def own() -> None:
        try:
            team.own(Timeline("critic"))
        except ValueError as error:  # the timeline knows no lawyer
            failed.append(error)

    owner = Thread(target=own)
    owner.start()
    for agent in ("critic", "lawyer", "critic", "critic"):
        team.inbox.put((agent, "a finding", "a check"))
    owner.join()
    assert len(failed) == 1
    assert team.inbox.full()  # who sends now waits for ever
    assert len(team.look().findings) == 1
    assert team.look().status == "whole"


def test_a_failed_question_is_no_hang(load_script: LoadScript) -> None:
    def ask(question: str) -> str:
        raise ConnectionError(question)

    for name in ["broken_team_state.py", *FIXED]:
        module = load_script(name)
        with pytest.raises(ConnectionError):
            module.run(ask, Timeline(*module.AGENTS, "dashboard"))


def test_a_frozen_record_cannot_be_changed_in_place(load_script: LoadScript) -> None:
    record = load_script("fixed_team_state_immutable.py").Record()
    with pytest.raises(AttributeError):
        record.words = 1
    record.plus("critic", "a finding", "a check")
    assert record.findings == ()


def test_benchmark_threads_wait_for_the_model_together(
    load_script: LoadScript, chapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four threads meet in the model, so that no design asks while it holds a lock."""
    monkeypatch.syspath_prepend(chapter)
    module, all_ask = load_script("benchmark_team_state.py"), Barrier(4, timeout=600)

    def ask(question: str) -> str:
        all_ask.wait()
        return str(module.ANSWER)

    monkeypatch.setattr(module, "ask_slowly", ask)
    monkeypatch.setattr(module, "UPDATES", {"low": 8})
    for design in module.DESIGNS.values():
        module.measure(design, 4, "low")
    with pytest.raises(AssertionError):  # it loses updates
        module.measure(module.broken_team_state, 4, "low")


def test_benchmark_compares_the_designs(
    run_inprocess: RunScript, chapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(chapter)
    small = {"THREADS": (1, 2), "UPDATES": {"low": 2, "high": 2}, "REPEATS": 1}
    ran = run_inprocess("benchmark_team_state.py", **small)
    assert (ran.status, ran.word, ran.numbers[0]) == (0, "RESULT", 2), ran
    rows = [line.split()[0] for line in ran.out.splitlines()]
    assert rows == ["threads", "1", "2", "RESULT:"]


@pytest.mark.usefixtures("switch_intervals")
def test_dashboard_that_waits_sees_only_whole_records(
    load_script: LoadScript, repeats: int
) -> None:
    module = load_script("solutions/team_state_with_a_condition.py")
    for _ in range(5 * repeats):
        seen = see(module)
        assert len(seen[-1].findings) == len(module.AGENTS)
        assert {record.status for record in seen} == {"whole"}
        known = [len(record.findings) for record in seen]
        assert known == sorted(set(known))  # each look has something new
