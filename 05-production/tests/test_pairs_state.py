"""Slots, queues, records and caches: what is held, or not yet written, at an `await`.

With fakes that show why each pair breaks, in every order or at every await.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agents import Journal, JournalError
from racelab import Ask, Timeline, Watchdog
from racelab.explore import cancel_everywhere, clock, explore, fail_everywhere
from racelab.explore.search import SearchResult
from racelab.fakes import fake_ask
from racelab.pytest.run_scripts import LoadScript

SIDES = ["broken", "fixed"]


# nested_slots


def explored(module: ModuleType, leads: int = 3, slots: int = 3) -> SearchResult:
    """A team of so many leads, each with a helper, in every order of the answers."""
    team = dict(list(module.HELPERS.items())[:leads])
    vars(module).update(HELPERS=team, SLOTS=slots, AGENTS=(*team, *team.values()))
    in_flight, most = 0, 0

    async def run(ask: Ask, timeline: Timeline) -> list[str]:
        nonlocal in_flight, most
        in_flight = most = 0

        async def counted(question: str) -> str:
            nonlocal in_flight, most
            in_flight += 1
            most = max(most, in_flight)
            try:
                return await ask(question)
            finally:
                in_flight -= 1

        answers: list[str] = await module.run(counted, timeline, Watchdog(str))
        assert all(timeline.of(agent)[-1] == "done" for agent in module.AGENTS)
        return answers

    def holds(answers: list[str]) -> bool:
        return len(answers) == leads and most <= slots

    return explore(run, holds, agents=module.AGENTS)


def test_as_many_leads_as_slots_deadlock(
    load_script: LoadScript,
) -> None:
    report = explored(load_script("broken_nested_slots.py"))
    assert (report.kind, report.failing) == ("deadlock", "")
    assert "async with team.slots:" in report.message


def test_leads_without_a_slot_finish_in_every_order(
    load_script: LoadScript,
) -> None:
    report = explored(load_script("fixed_nested_slots.py"))
    assert report.holds, report
    assert report.exhausted
    assert report.runs >= 90  # 6 answers, each helper's before its lead's: 6!/2**3


@pytest.mark.parametrize("leads", [1, 2, 3])
def test_more_slots_only_move_the_deadlock(leads: int, load_script: LoadScript) -> None:
    """The tempting worse fix. One lead less than slots: no test sees anything."""
    module = partial(load_script, "broken_nested_slots.py")
    assert explored(module(), leads, slots=leads).kind == "deadlock"
    enough = explored(module(), leads, slots=leads + 1)
    assert enough.holds, enough


@pytest.mark.parametrize("leads", [1, 2, 3])
def test_one_slot_is_enough_for_any_number_of_leads(
    leads: int, load_script: LoadScript
) -> None:
    report = explored(load_script("fixed_nested_slots.py"), leads, slots=1)
    assert report.holds, report
    assert report.exhausted


# backoff_in_slot


class Slots:
    """A semaphore that counts how many of its slots are taken."""

    def __init__(self, slots: int) -> None:
        self.held = 0
        self._free = asyncio.Semaphore(slots)

    async def __aenter__(self) -> None:
        await self._free.acquire()
        self.held += 1

    async def __aexit__(self, *_: object) -> None:
        self.held -= 1
        self._free.release()


def idle(module: ModuleType) -> tuple[int, list[float]]:
    """The most slots that were held by nobody's request, and when requests were sent.

    Looked at every 10 ms of virtual time, until all calls are answered.
    """
    in_flight, most, sent = 0, 0, list[float]()
    provider = module.Provider()

    async def ask(question: str) -> str:
        nonlocal in_flight
        in_flight += 1
        sent.append(asyncio.get_running_loop().time())
        try:
            answer: str = await provider.ask(question)
            return answer
        finally:
            in_flight -= 1

    async def main() -> None:
        nonlocal most
        slots = Slots(module.SLOTS)
        calls = [
            asyncio.create_task(module.insist(f"{model} {number}", ask, slots))
            for number, model in enumerate(module.CALLS)
        ]
        while not all(call.done() for call in calls):
            await asyncio.sleep(0.01)
            most = max(most, slots.held - in_flight)
        assert slots.held == 0

    clock.run(main())
    return most, sent


@pytest.mark.parametrize(("side", "most"), [("broken", 4), ("fixed", 0)])
def test_slots_that_are_held_without_a_request(
    side: str, most: int, load_script: LoadScript
) -> None:
    module = load_script(f"{side}_backoff_in_slot.py")
    assert idle(module)[0] == most


@pytest.mark.parametrize("side", SIDES)
def test_nobody_retries_before_its_pause_is_over(
    side: str, load_script: LoadScript
) -> None:
    """The fix makes no call more, and none of the retries earlier."""
    module = load_script(f"{side}_backoff_in_slot.py")
    _, sent = idle(module)
    assert len(sent) == 4 + 12
    assert sum(at >= module.LATENCY + module.PAUSES[0] for at in sent) >= 4


@pytest.mark.parametrize("side", SIDES)
def test_cancelled_or_failed_call_returns_its_slot(
    side: str, load_script: LoadScript
) -> None:
    module = load_script(f"{side}_backoff_in_slot.py")
    slots = Slots(1)

    async def run(ask: Ask) -> None:
        nonlocal slots
        slots = Slots(1)
        await asyncio.gather(
            *(module.insist(f"{n}", ask, slots) for n in range(3)),
            return_exceptions=True,
        )

    for report in (
        cancel_everywhere(run, lambda: slots.held == 0),
        fail_everywhere(run, lambda: slots.held == 0, error=module.Overloaded),
    ):
        assert report.holds, report
        assert report.runs >= 3


# shutdown


def cancelled_everywhere(flush: Any, module: ModuleType) -> SearchResult:
    """Is each record in the log or in the database, wherever a flush is cancelled?"""
    records = [(f"agent {number}", number) for number in range(2 * module.BATCH + 1)]
    log = module.Log(module.Database(), Timeline("log"))

    async def run(ask: Ask) -> None:
        log.records[:] = records
        log.database.rows.clear()
        await flush(log)

    def nothing_is_lost() -> bool:
        return set(records) == {*log.records, *log.database.rows.items()}

    return cancel_everywhere(run, nothing_is_lost)


async def flush(log: Any) -> None:
    await log.flush()


def test_cancelled_flush_loses_what_it_removed_first(
    load_script: LoadScript,
) -> None:
    report = cancelled_everywhere(flush, load_script("broken_shutdown.py"))
    assert report.kind == "invariant"
    assert "await asyncio.sleep(0.1)" in str(report)  # in the database's write


@pytest.mark.parametrize("script", ["fixed_shutdown", "solutions/shutdown_put_back"])
def test_a_flush_loses_nothing_wherever_it_is_cancelled(
    script: str, load_script: LoadScript
) -> None:
    report = cancelled_everywhere(flush, load_script(f"{script}.py"))
    assert report.holds, report
    assert report.runs >= 3  # one for each batch


def test_except_exception_does_not_help_against_a_cancel(
    load_script: LoadScript,
) -> None:
    """The tempting worse fix."""
    module = load_script("broken_shutdown.py")

    async def put_back(log: Any) -> None:
        while batch := log.records[: module.BATCH]:
            del log.records[: len(batch)]
            try:
                await log.database.save(batch)
            except Exception:  # CancelledError is none
                log.records[:0] = batch
                raise

    assert cancelled_everywhere(put_back, module).kind == "invariant"


@pytest.mark.virtual_time
async def test_record_logged_during_a_write_is_kept(
    load_script: LoadScript,
) -> None:
    module = load_script("fixed_shutdown.py")
    log = module.Log(module.Database(), Timeline("log"), [("scout", 1)])
    flushing = asyncio.create_task(log.flush())
    await log.database.is_writing.wait()
    log.records.append(("critic", 2))
    await flushing
    assert (log.database.rows, log.records) == ({"scout": 1, "critic": 2}, [])


@pytest.mark.virtual_time
async def test_unconfirmed_write_is_repeated_and_stored_once(
    load_script: LoadScript,
) -> None:
    """What "saved first, then removed" needs: records that are known by their name."""
    module = load_script("fixed_shutdown.py")
    writes = []

    class Arrives(module.Database):  # type: ignore[misc, name-defined]
        async def save(self, batch: list[tuple[str, int]]) -> None:
            writes.append(len(batch))
            self.rows.update(batch)
            await super().save([])  # only the confirmation is still under way

    log = module.Log(Arrives(), Timeline("log"), [("scout", 1), ("critic", 2)])
    flushing = asyncio.create_task(log.flush())
    await log.database.is_writing.wait()
    flushing.cancel()
    await asyncio.wait([flushing])
    await log.flush()
    assert (writes, log.database.rows) == ([2, 2], {"scout": 1, "critic": 2})


# resume


class Killed(Exception):
    """Stands for the end of the process."""


def run_until(answers: int, module: ModuleType, file: Path, seed: int) -> Counter[str]:
    """What was paid for in a run that is killed after so many answers.

    From the next turn of the loop on, nothing more is answered or recorded.
    """
    paid = Counter[str]()
    answer = fake_ask(seed)

    async def main(journal: Journal) -> None:
        async def ask(question: str) -> str:
            text = await answer(question)
            if paid.total() == answers:
                raise Killed
            paid[question] += 1
            if paid.total() == answers:
                asyncio.get_running_loop().call_soon(journal.close)
            return text

        await module.run(ask, journal)

    with Journal(file) as journal, suppress(Killed, JournalError):
        asyncio.run(main(journal))
    assert paid.total() <= answers
    return paid


def paid_twice(module: ModuleType, folder: Path) -> list[int]:
    """How many answers, if the first run is killed after 0, 1, 2, ... of six."""
    twice = []
    for answers in range(7):
        file = folder / f"{answers}.db"
        paid = run_until(answers, module, file, seed=answers)
        assert paid.total() == answers
        paid += run_until(6, module, file, seed=answers + 100)
        assert len(paid) == 6  # all are there in the end
        twice.append(sum(times > 1 for times in paid.values()))
    return twice


def test_recording_at_the_end_pays_twice_after_kills(
    load_script: LoadScript, tmp_path: Path
) -> None:
    assert paid_twice(load_script("broken_resume.py"), tmp_path) == [
        0,
        1,
        2,
        3,
        4,
        5,
        0,
    ]


def test_recording_at_once_pays_once_after_any_kill(
    load_script: LoadScript, tmp_path: Path
) -> None:
    assert paid_twice(load_script("fixed_resume.py"), tmp_path) == [0] * 7


# stampede


@pytest.mark.parametrize(("side", "bills"), [("broken", 4), ("fixed", 1)])
def test_four_agents_miss_at_once_in_every_order(
    side: str, bills: int, load_script: LoadScript
) -> None:
    module = load_script(f"{side}_stampede.py")
    vars(module).update(AGENTS=4)

    async def run(ask: Ask) -> tuple[int, int]:
        asked = Counter[str]()

        async def counted(question: str) -> str:
            asked[question] += 1
            return await ask(question)

        answers = await module.run(module.Cache(counted))
        return len(answers), asked[module.QUESTION]

    report = explore(run, lambda ended: ended == (4, bills))
    assert report.holds, report
    assert report.exhausted


class FakeModel:
    """Answers after a second; its first calls may fail."""

    def __init__(self, failures: int = 0) -> None:
        self.calls, self.failures = 0, failures

    async def ask(self, question: str) -> str:
        self.calls += 1
        fails = self.calls <= self.failures
        await asyncio.sleep(1)
        if fails:
            raise ConnectionError(question)
        return "Yes."


class FuturePerLeader:
    """The tempting worse fix: who misses first asks, and tells the others."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.flights: dict[str, asyncio.Future[str]] = {}

    async def get(self, question: str) -> str:
        if question in self.flights:
            return await self.flights[question]
        flight = asyncio.get_running_loop().create_future()
        self.flights[question] = flight
        try:
            flight.set_result(await self.ask(question))
        except Exception as error:
            flight.set_exception(error)
        finally:
            del self.flights[question]
        return await flight


async def cancel_one(cache: Any, number: int, agents: int = 20) -> list[object]:
    """What the others get, if one is cancelled while all wait for the same answer."""
    tasks = [asyncio.create_task(cache.get("Really?")) for _ in range(agents)]
    await asyncio.sleep(0.5)
    tasks.pop(number).cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.virtual_time
@pytest.mark.parametrize("number", [0, 1, 19])
async def test_cancelled_agent_leaves_the_others_one_bill(
    number: int, load_script: LoadScript
) -> None:
    """Number 0 is the one that missed first."""
    model = FakeModel()
    cache = load_script("fixed_stampede.py").Cache(model.ask)
    assert await cancel_one(cache, number) == ["Yes."] * 19
    assert (model.calls, cache.flights) == (1, {})


@pytest.mark.virtual_time
async def test_answer_without_a_waiting_agent_is_kept(
    load_script: LoadScript,
) -> None:
    model = FakeModel()
    cache = load_script("fixed_stampede.py").Cache(model.ask)
    assert await cancel_one(cache, 0, agents=1) == []
    assert await cache.get("Really?") == "Yes."  # it is paid for, and arrives
    assert model.calls == 1


@pytest.mark.virtual_time
async def test_failure_reaches_all_and_is_not_cached(
    load_script: LoadScript,
) -> None:
    model = FakeModel(failures=1)
    cache = load_script("fixed_stampede.py").Cache(model.ask)
    calls: list[Coroutine[Any, Any, str]] = [cache.get("Really?") for _ in range(20)]
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(failure) for failure in failures} == {ConnectionError}
    assert (model.calls, cache.flights) == (1, {})
    assert await cache.get("Really?") == "Yes."
    assert model.calls == 2


def test_future_of_a_cancelled_leader_hangs_the_others() -> None:
    with pytest.raises(clock.Stuck, match="waits for ever"):
        clock.run(cancel_one(FuturePerLeader(FakeModel().ask), 0))


def test_future_of_the_leader_spreads_a_cancel() -> None:
    ended = clock.run(cancel_one(FuturePerLeader(FakeModel().ask), 7))
    followers = ended[1:]
    assert {type(end) for end in followers} == {asyncio.CancelledError}
