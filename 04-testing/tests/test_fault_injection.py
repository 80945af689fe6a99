"""Cancelled anywhere, or failing at any call: what is left must be right."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from racelab import Ask
from racelab.explore import cancel_everywhere, fail_everywhere

Program = Callable[[Ask], Coroutine[Any, Any, Any]]
SLOTS = 2
AGENTS = 4


class Pool:
    def __init__(self) -> None:
        self.free = SLOTS
        self.freed = asyncio.Event()

    async def take(self) -> None:
        while not self.free:
            self.freed.clear()
            await self.freed.wait()
        self.free -= 1

    def give_back(self) -> None:
        self.free += 1
        self.freed.set()


pools: list[Pool] = []


def all_slots_are_free() -> bool:
    return pools[-1].free == SLOTS


def team(agent: Callable[[Pool, Ask], Coroutine[Any, Any, object]]) -> Program:
    async def run(ask: Ask) -> None:
        pools[:] = [Pool()]
        calls = (agent(pools[-1], ask) for _ in range(AGENTS))
        await asyncio.gather(*calls, return_exceptions=True)

    return run


async def leaks(pool: Pool, ask: Ask) -> None:
    await pool.take()
    await ask("?")
    pool.give_back()


async def leaks_in_between(pool: Pool, ask: Ask) -> None:
    await pool.take()
    await asyncio.sleep(0)  # nobody is idle here: the next turn of the loop goes on
    try:
        await ask("?")
    finally:
        pool.give_back()


async def is_right(pool: Pool, ask: Ask) -> None:
    await pool.take()
    try:
        await ask("?")
    finally:
        pool.give_back()


async def leaks_on_failure(pool: Pool, ask: Ask) -> None:
    await pool.take()
    try:
        await ask("?")
    except asyncio.CancelledError:
        pool.give_back()
        raise
    pool.give_back()


def test_a_slot_leaked_by_a_cancel_is_found() -> None:
    report = cancel_everywhere(team(leaks), all_slots_are_free)
    assert report.kind == "invariant"
    assert report.failing is not None
    assert report.failing.startswith(("leaks-", "main@"))
    assert "cancelled at test_fault_injection.py:" in report.timeline
    again = f"cancel_everywhere(run, invariant, only='{report.failing}', ...)"
    assert str(report).splitlines()[-1] == again


def test_a_window_of_one_turn_is_found() -> None:
    report = cancel_everywhere(team(leaks_in_between), all_slots_are_free)
    assert report.kind == "invariant"
    assert "  await asyncio.sleep(0)" in report.timeline


def test_one_point_can_be_repeated_alone() -> None:
    found = cancel_everywhere(team(leaks), all_slots_are_free)
    again = cancel_everywhere(team(leaks), all_slots_are_free, only=found.failing)
    assert (again.runs, again.message, again.timeline) == (
        1,
        found.message,
        found.timeline,
    )


def test_right_code_holds_for_each_cancellation_and_failure() -> None:
    cancelled = cancel_everywhere(team(is_right), all_slots_are_free)
    assert cancelled.holds, str(cancelled)
    assert cancelled.exhausted
    assert cancelled.runs > 2 * AGENTS
    assert str(cancelled) == f"holds for all {cancelled.runs} cancellations"
    failing = fail_everywhere(team(is_right), all_slots_are_free)
    assert str(failing) == f"holds for all {AGENTS} failing calls"


def test_a_slot_leaked_by_a_failure_is_found() -> None:
    assert cancel_everywhere(team(leaks_on_failure), all_slots_are_free).holds
    report = fail_everywhere(team(leaks_on_failure), all_slots_are_free)
    assert (report.kind, report.failing) == ("invariant", "1")
    again = fail_everywhere(team(leaks_on_failure), all_slots_are_free, only="3")
    assert (again.kind, again.failing, again.runs) == ("invariant", "3", 1)


def test_an_error_raised_from_the_failure_is_not_flagged() -> None:
    async def translates(ask: Ask) -> None:
        pools[:] = [Pool()]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(is_right(pools[-1], ask))
        except* ConnectionError as errors:
            raise RuntimeError("the run has failed") from errors

    assert fail_everywhere(translates, all_slots_are_free).holds


@pytest.mark.parametrize("bug", [LookupError, ConnectionError])
def test_a_bug_in_a_failure_handler_is_flagged(bug: type[Exception]) -> None:
    async def has_a_bug(ask: Ask) -> None:
        pools[:] = [Pool()]
        try:
            await ask("?")
        except ConnectionError:
            raise bug("no such key")  # noqa: B904 - as bugs do

    report = fail_everywhere(has_a_bug, all_slots_are_free)
    assert (report.kind, report.failing) == ("exception", "1")
    assert f"{bug.__name__}: no such key" in report.message


def test_a_deadlock_after_a_cancellation_is_found() -> None:
    async def run(ask: Ask) -> None:
        pools[:] = [Pool()]
        passed = asyncio.Event()

        async def first() -> None:
            await ask("?")
            passed.set()

        async def second() -> None:
            await passed.wait()

        await asyncio.wait(
            [asyncio.create_task(first()), asyncio.create_task(second())]
        )

    report = cancel_everywhere(run, all_slots_are_free)
    assert report.kind == "deadlock"
    assert "second-1 at test_fault_injection.py" in report.message


def test_only_calls_that_are_made_are_counted() -> None:
    asked = list[int]()

    async def run(ask: Ask) -> None:
        asked.append(0)
        for _ in range(3):
            try:
                asked[-1] += 1
                await ask("?")
                return
            except TimeoutError:
                continue

    report = fail_everywhere(run, lambda: True, error=TimeoutError)
    assert (report.runs, asked) == (1, [1, 2])


def test_a_task_is_cancelled_before_it_begins_too() -> None:
    async def run(ask: Ask) -> None:
        pools[:] = [pool := Pool()]
        await pool.take()

        async def uses_the_slot() -> None:
            try:
                await ask("?")
            finally:
                pool.give_back()  # never, if it is cancelled before its first line

        await asyncio.gather(asyncio.create_task(uses_the_slot(), name="user"))

    report = cancel_everywhere(run, all_slots_are_free, only="user@2")
    assert report.kind == "invariant"


def test_no_point_is_counted_after_the_run() -> None:
    async def run(ask: Ask) -> None:
        async def is_left_behind() -> None:
            await asyncio.sleep(1000)

        task = asyncio.create_task(is_left_behind(), name="background")
        await ask("?")
        assert not task.cancelled() or task.cancelling()

    report = cancel_everywhere(run, lambda: True)
    # The run at turns 2 and 3, the task that it starts at turns 2, 3 and 4.
    assert str(report) == "holds for all 5 cancellations"


def test_no_run_is_cancelled_before_it_has_begun() -> None:
    begun = list[str]()

    async def run(ask: Ask) -> None:
        begun.append("begun")
        await ask("?")

    def has_begun() -> bool:
        return bool(begun) and begun.clear() is None

    assert cancel_everywhere(run, has_begun).holds
