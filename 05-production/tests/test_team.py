"""`agents.team` and what it stands on: calls, pool, retries, results, limits.

All in virtual time: seconds are exact, and an hour of waiting takes none.
"""

import asyncio
import gc
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import Any

import pytest
from fixed_draws import Longest, Shortest

from agents import (
    Answer,
    Ask,
    Event,
    FailureKind,
    InvalidResponse,
    Limits,
    NestingError,
    Outcome,
    QuestionFailed,
    StatusError,
    Team,
)
from agents.retry import backoff

virtual_time = pytest.mark.virtual_time


class FakeModel:
    """Takes `seconds` for each answer; the first ones are these `faults` instead."""

    def __init__(self, *faults: BaseException, seconds: float = 1) -> None:
        self.faults, self.seconds = list(faults), seconds
        self.asked, self.at = list[str](), list[float]()
        self.in_flight = self.most = 0

    async def __call__(self, question: str) -> Answer:
        self.asked.append(question)
        self.at.append(now())
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
            if self.faults:
                raise self.faults.pop(0)
            return Answer(f"{question}!", 10, 5)
        finally:
            self.in_flight -= 1


def now() -> float:
    return asyncio.get_running_loop().time()


async def slow(question: str) -> str:
    """A question is the number of seconds that it takes."""
    await asyncio.sleep(float(question))
    return f"{question} s"


async def never(question: str) -> str:
    await asyncio.Event().wait()
    return "Never."


@asynccontextmanager
async def a_team(
    ask: Ask,
    rng: Random | None = None,
    observer: Any = None,
    estimate: Any = None,
    **limits: Any,
) -> AsyncIterator[Team]:
    """A team that leaves nothing behind: no task, no slot taken, no complaint."""
    complaints, before = list[str](), asyncio.all_tasks()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, what: complaints.append(what["message"]))
    seen, rng = {"observer": observer, "estimate": estimate}, rng or Random(1)
    async with Team(ask, Limits(**limits), rng=rng, **seen) as team:
        yield team
    for _ in range(3):  # what was broken off, and is just being closed by the loop
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert await free_slots(team) == team.limits.concurrency
    gc.collect(0)
    await asyncio.sleep(0)
    assert complaints == []


async def free_slots(team: Team) -> int:
    slots, free = team._dispatcher.slots, 0
    while not slots.locked():
        await slots.acquire()
        free += 1
    return free


async def all_of(run: AsyncIterator[Outcome]) -> list[Outcome]:
    return [outcome async for outcome in run]


def kinds(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(o.failure.kind if o.failure else "answered" for o in outcomes)


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


class Pulled:
    """An endless iterable that counts what was taken from it."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Iterator[str]:
        while True:
            self.count += 1
            yield f"question {self.count}"


# At once


@virtual_time
@pytest.mark.parametrize("concurrency", [1, 3, 10])
async def test_no_more_calls_are_in_flight_than_the_limit(concurrency: int) -> None:
    model = FakeModel()
    async with a_team(model, concurrency=concurrency) as team:
        assert kinds(await all_of(team.run(numbers(30)))) == {"answered": 30}
    assert model.most == concurrency
    assert now() == 30 / concurrency


@virtual_time
async def test_runs_and_single_questions_share_their_teams_slots() -> None:
    model = FakeModel()
    async with a_team(model, concurrency=3) as team:
        runs = [all_of(team.run(numbers(6))) for _ in range(2)]
        await asyncio.gather(*runs, *map(team.ask, numbers(6)))
    assert model.most == 3
    assert now() == 6


# How often


PASSING = [
    TimeoutError(),
    ConnectionError(),
    ConnectionResetError(),
    OSError(101, "Network is unreachable"),
    InvalidResponse(),
    *map(StatusError, [408, 409, 429, 500, 502, 503, 504, 529]),
]
FINAL = [
    *map(StatusError, [400, 401, 403, 404, 413, 422]),
    StatusError(429, code="insufficient_quota"),
    StatusError(429, code="insufficient_quota", retry_after=1),
    FileNotFoundError(2, "No such file", "prompt.txt"),
    ValueError(),
    KeyError("a bug"),
]


@virtual_time
@pytest.mark.parametrize("error", PASSING, ids=repr)
async def test_what_may_pass_is_tried_again(error: Exception) -> None:
    model = FakeModel(error)
    async with a_team(model) as team:
        outcome = await team.ask("Why?")
    assert (outcome.text, outcome.requests) == ("Why?!", 2)


@virtual_time
@pytest.mark.parametrize("error", FINAL, ids=repr)
async def test_what_will_not_pass_is_not_tried_again(error: Exception) -> None:
    model = FakeModel(error)
    async with a_team(model) as team:
        outcome = await team.ask("Why?")
    assert outcome.failure is not None
    assert outcome.failure.cause is error
    assert outcome.requests == len(model.asked) == 1


@pytest.mark.parametrize(
    ("tries", "longest"), [(1, 0.5), (2, 1), (3, 2), (7, 30), (9_999, 30)]
)
def test_backoff_is_anything_up_to_twice_the_time_before(
    tries: int, longest: float
) -> None:
    assert backoff(tries, Limits(), Shortest()) == 0
    assert backoff(tries, Limits(), Longest()) == longest
    drawn = [backoff(tries, Limits(), Random(seed)) for seed in range(300)]
    assert 0 <= min(drawn) < 0.1 * longest
    assert 0.9 * longest < max(drawn) <= longest


@virtual_time
async def test_the_last_try_is_not_followed_by_a_wait() -> None:
    model = FakeModel(*[StatusError(500)] * 9)
    async with a_team(model, Longest(), tries=3, backoff=4) as team:
        outcome = await team.ask("Why?")
    assert model.at == [0, 1 + 4, 1 + 4 + 1 + 8]
    assert now() == 15
    assert (outcome.requests, outcome.waited, outcome.in_flight) == (3, 12, 3)


@virtual_time
async def test_retry_after_delays_the_next_try() -> None:
    model = FakeModel(StatusError(503, retry_after=20))
    async with a_team(model, Shortest()) as team:
        await team.ask("Why?")
    assert model.at == [0, 21]


@virtual_time
async def test_backoff_leaves_the_slot_to_others() -> None:
    model = FakeModel(StatusError(500))
    async with a_team(model, Longest(), concurrency=1, backoff=10) as team:
        await all_of(team.run(["a", "b", "c"]))
    assert model.asked == ["a", "b", "c", "a"]
    assert model.at == [0, 1, 2, 11]


@virtual_time
@pytest.mark.parametrize(("free", "share", "most"), [(0, 0, 0), (3, 0, 3), (1, 0.5, 6)])
async def test_the_whole_run_has_a_retry_budget(
    free: int, share: float, most: int
) -> None:
    model = FakeModel(*[StatusError(500)] * 100)
    budget = {"free_retries": free, "retry_share": share}
    async with a_team(model, concurrency=10, **budget) as team:
        outcomes = await all_of(team.run(numbers(10)))
    assert kinds(outcomes) == {FailureKind.REFUSED: 10}
    assert len(model.asked) == 10 + most


@virtual_time
async def test_what_will_not_pass_spends_nothing_of_the_budget() -> None:
    model = FakeModel(*[StatusError(400)] * 5, StatusError(500))
    async with a_team(model, concurrency=1, free_retries=1, retry_share=0) as team:
        outcomes = await all_of(team.run(numbers(6)))
    assert kinds(outcomes) == {FailureKind.REFUSED: 5, "answered": 1}


# A refusal with a wait


@virtual_time
async def test_refusal_with_wait_pauses_all_and_is_no_try() -> None:
    model = FakeModel(StatusError(429, retry_after=8))
    limits = {"tries": 1, "free_retries": 0, "retry_share": 0}
    async with a_team(model, Longest(), concurrency=1, **limits) as team:
        outcomes = await all_of(team.run(["a", "b"]))
    assert kinds(outcomes) == {"answered": 2}
    assert model.asked == ["a", "a", "b"]  # the refused one first
    assert model.at == [0, 11, 12]
    assert (outcomes[0].requests, outcomes[0].waited) == (2, 10)


@virtual_time
async def test_refused_request_goes_to_the_head_of_the_line() -> None:
    model = FakeModel(StatusError(429, retry_after=8), seconds=0.5)
    async with a_team(model, Longest(), rpm=60, request_burst=1) as team:
        await all_of(team.run(["a", "b", "c"]))
    assert model.asked == ["a", "a", "b", "c"]
    assert model.at == pytest.approx([0, 10.5, 11.5, 12.5])


@virtual_time
async def test_refusal_without_a_wait_is_a_failed_try() -> None:
    model = FakeModel(*[StatusError(429)] * 9)
    async with a_team(model, tries=2) as team:
        outcome = await team.ask("Why?")
    assert outcome.requests == len(model.asked) == 2


@virtual_time
async def test_endless_refusals_are_given_up() -> None:
    model = FakeModel(*[StatusError(429, retry_after=1)] * 99)
    async with a_team(model, tries=1, refusals=5) as team:
        outcome = await team.ask("Why?")
    assert kinds([outcome]) == {FailureKind.REFUSED: 1}
    assert outcome.requests == 1 + 5


@virtual_time
async def test_refused_tokens_are_refunded_and_failed_ones_are_not() -> None:
    for status, second in [(400, 0), (429, 0), (500, 80)]:
        model = FakeModel(StatusError(status), seconds=0)
        begun = now()
        limits = {"tpm": 60, "token_burst": 100, "answer_tokens": 90, "tries": 1}
        async with a_team(model, concurrency=1, **limits) as team:
            await all_of(team.run(["", ""]))
        assert model.at[1] - begun == pytest.approx(second, abs=1)


# How long


@virtual_time
async def test_each_try_has_its_time() -> None:
    model = FakeModel(seconds=100)
    async with a_team(model, Longest(), timeout=2, tries=3, backoff=1) as team:
        outcome = await team.ask("Why?")
    assert kinds([outcome]) == {FailureKind.TIMED_OUT: 1}
    assert model.at == [0, 3, 7]
    assert (outcome.requests, outcome.in_flight, outcome.waited) == (3, 6, 3)
    assert model.in_flight == 0


@virtual_time
async def test_deadline_keeps_answers_and_names_the_rest() -> None:
    model = FakeModel(seconds=3)
    async with a_team(model, concurrency=2, deadline=7) as team:
        outcomes = await all_of(team.run(numbers(10)))
        assert now() == 7
    assert sorted(outcome.question for outcome in outcomes) == numbers(10)
    assert kinds(outcomes) == {"answered": 4, FailureKind.DEADLINE: 6}
    assert model.in_flight == 0
    cancelled = [o for o in outcomes if o.failure and o.requests]
    assert [(o.waited, o.in_flight) for o in cancelled] == [(0, 1), (0, 1)]


@virtual_time
@pytest.mark.parametrize("in_order", [False, True])
async def test_answer_at_the_deadline_is_one_outcome(
    in_order: bool,
) -> None:
    model = FakeModel(seconds=1)
    async with a_team(model, concurrency=2, deadline=3) as team:
        outcomes = await all_of(team.run(numbers(10), in_order=in_order))
    assert sorted(outcome.question for outcome in outcomes) == numbers(10)
    assert all((o.answer is None) != (o.failure is None) for o in outcomes)
    assert now() == 3


@virtual_time
@pytest.mark.parametrize(
    ("fault", "limits"),
    [
        (StatusError(500), {"backoff": 50, "longest_backoff": 50}),
        (StatusError(429, retry_after=50), {}),
        (StatusError(429, retry_after=50), {"rpm": 1, "request_burst": 1}),
        (None, {"timeout": 50}),
    ],
)
async def test_the_deadline_comes_in_time_wherever_a_question_waits(
    fault: Exception | None, limits: dict[str, float]
) -> None:
    model = FakeModel(*[fault] * 9) if fault else FakeModel(seconds=100)
    async with a_team(model, Longest(), deadline=10, **limits) as team:
        outcome = await team.ask("Why?")
        assert now() == 10
        late = await team.ask("And now?")
    assert kinds([outcome, late]) == {FailureKind.DEADLINE: 2}
    assert late.requests == 0


@virtual_time
async def test_timeout_of_the_ask_is_not_the_deadline() -> None:
    async def impatient(question: str) -> str:
        async with asyncio.timeout(1):
            await asyncio.sleep(2)
        return "Never."

    async with a_team(impatient, tries=1) as team:
        assert kinds([await team.ask("Why?")]) == {FailureKind.TIMED_OUT: 1}


@virtual_time
async def test_infinite_timeout_and_deadline_never_end() -> None:
    model = FakeModel(seconds=1e9)
    async with a_team(model, timeout=math.inf, deadline=math.inf) as team:
        assert (await team.ask("Why?")).in_flight == 1e9


# Shutdown


@virtual_time
async def test_cancel_ends_all_at_once_and_keeps_answers() -> None:
    model = FakeModel(seconds=3)
    async with a_team(model, concurrency=2) as team:
        asyncio.get_running_loop().call_later(4, team.cancel)
        outcomes = await all_of(team.run(numbers(10)))
        assert now() == 4
        assert model.in_flight == 0
    assert kinds(outcomes) == {"answered": 2, FailureKind.CANCELLED: 8}
    assert len({outcome.question for outcome in outcomes}) == 10


@virtual_time
async def test_drain_finishes_what_is_in_flight() -> None:
    model = FakeModel(seconds=3)
    async with a_team(model, concurrency=2) as team:
        asyncio.get_running_loop().call_later(4, team.drain, 60)
        outcomes = await all_of(team.run(numbers(10)))
        assert now() == 6
    answered = [outcome for outcome in outcomes if outcome.answer]
    assert len(answered) >= 4  # two are done, two in flight
    assert len(model.asked) == len(answered)
    assert kinds(outcomes)[FailureKind.CANCELLED] == 10 - len(answered)


@virtual_time
async def test_draining_ends_with_its_grace() -> None:
    async with a_team(never, concurrency=2) as team:
        asyncio.get_running_loop().call_later(4, team.drain, 3)
        asyncio.get_running_loop().call_later(6, team.drain, 3)  # says nothing new
        outcomes = await all_of(team.run(numbers(10)))
        assert now() == 7
    assert kinds(outcomes) == {FailureKind.CANCELLED: 10}


@virtual_time
async def test_leaving_the_team_ends_what_others_still_wait_for() -> None:
    async with a_team(never) as team:
        one = asyncio.create_task(team.ask("Why?"))
        many = asyncio.create_task(all_of(team.run(numbers(3))))
        await asyncio.sleep(1)
        before = asyncio.all_tasks()
        team.cancel()
        assert kinds([await one, *await many]) == {FailureKind.CANCELLED: 4}
        assert asyncio.all_tasks() < before


@virtual_time
async def test_caller_can_be_cancelled() -> None:
    model = FakeModel()
    async with a_team(model) as team:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await team.ask("Why?")
        assert model.in_flight == 0
        run = asyncio.create_task(all_of(team.run(numbers(9))))
        await asyncio.sleep(0.5)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert model.in_flight == 0


@virtual_time
async def test_a_team_can_be_used_again() -> None:
    team = Team(FakeModel())
    for _ in range(2):
        async with team:
            assert kinds(await all_of(team.run(numbers(3)))) == {"answered": 3}


@pytest.mark.parametrize("questions", [["Why?"], Pulled()])
async def test_team_outside_its_block_raises(questions: Any) -> None:
    team = Team(FakeModel())
    for use in (team.ask("Why?"), anext(team.run(questions))):
        with pytest.raises(RuntimeError, match="async with Team"):
            await use


# Outcomes


@virtual_time
async def test_an_outcome_says_what_its_question_has_cost() -> None:
    model = FakeModel(StatusError(500), StatusError(429, retry_after=8), seconds=2)
    async with a_team(model, Longest(), backoff=4) as team:
        outcome = await team.ask("Why?")
    assert outcome.question == "Why?"
    assert outcome.answer == Answer("Why?!", 10, 5)
    assert (outcome.requests, outcome.tokens) == (3, 15)
    assert (outcome.in_flight, outcome.waited) == (6, 4 + 10)
    assert outcome.failure is None


@virtual_time
async def test_waiting_for_a_slot_is_waiting() -> None:
    async with a_team(FakeModel(), concurrency=1) as team:
        both = await asyncio.gather(team.ask("a"), team.ask("b"))
    assert [(outcome.waited, outcome.in_flight) for outcome in both] == [(0, 1), (1, 1)]


@virtual_time
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (StatusError(400, "bad"), FailureKind.REFUSED),
        (TimeoutError("late"), FailureKind.TIMED_OUT),
        (ConnectionError("reset"), FailureKind.UNREACHABLE),
        (InvalidResponse("half"), FailureKind.INVALID),
        (ZeroDivisionError("oh"), FailureKind.CRASHED),
        (asyncio.CancelledError(), FailureKind.CRASHED),
    ],
)
async def test_one_failure_is_one_outcome_and_loses_no_other(
    fault: BaseException, kind: FailureKind
) -> None:
    async with a_team(FakeModel(fault), tries=1) as team:
        outcomes = await all_of(team.run(["bad", "good", "better"]))
    failed = [outcome for outcome in outcomes if outcome.failure]
    assert kinds(outcomes) == {kind: 1, "answered": 2}
    assert failed[0].question == "bad"
    assert failed[0].failure is not None
    assert failed[0].failure.cause is fault
    assert failed[0].failure.message == (str(fault) or "CancelledError")
    with pytest.raises(QuestionFailed, match=f"{kind}: "):
        _ = failed[0].text


@virtual_time
@pytest.mark.parametrize("nothing", [None, 42])
async def test_an_answer_that_is_none_is_a_failure(nothing: Any) -> None:
    async def says(question: str) -> Any:
        return nothing

    async with a_team(says) as team:
        outcomes = [await team.ask("a"), *await all_of(team.run(["b"], agent=says))]
    assert kinds(outcomes) == {FailureKind.CRASHED: 2}


@virtual_time
async def test_question_too_large_fails_alone_and_at_once() -> None:
    model = FakeModel()
    async with a_team(model, tpm=1_000, answer_tokens=10) as team:
        outcomes = await all_of(team.run(["short", "long" * 1_000], in_order=True))
    assert kinds(outcomes) == {"answered": 1, FailureKind.INVALID: 1}
    assert outcomes[1].requests == 0
    assert outcomes[1].failure is not None
    assert "more than the 1000" in outcomes[1].failure.message


@virtual_time
async def test_the_callers_estimate_is_what_is_reserved() -> None:
    limits = Limits(tpm=600, token_burst=100)
    async with Team(FakeModel(), limits, estimate=lambda question: 101) as team:
        assert kinds([await team.ask("")]) == {FailureKind.INVALID: 1}


@virtual_time
async def test_outcomes_come_as_they_finish_or_in_order() -> None:
    for in_order, expected in [(False, ["1", "2", "3"]), (True, ["3", "1", "2"])]:
        async with a_team(slow) as team:
            outcomes = await all_of(team.run(["3", "1", "2"], in_order=in_order))
        assert [outcome.question for outcome in outcomes] == expected


@virtual_time
async def test_the_same_question_twice_is_two_outcomes() -> None:
    async with a_team(FakeModel()) as team:
        assert kinds(await all_of(team.run(["Why?"] * 3))) == {"answered": 3}


# Backpressure


@virtual_time
@pytest.mark.parametrize("in_order", [False, True])
async def test_questions_are_pulled_only_as_slots_free_up(in_order: bool) -> None:
    pulled, model = Pulled(), FakeModel(seconds=10)
    async with a_team(model, concurrency=3) as team:
        run = team.run(pulled, in_order=in_order)
        first = asyncio.ensure_future(anext(run))
        await asyncio.sleep(5)
        assert pulled.count <= 3 + 1
        await first
        await run.aclose()


@virtual_time
@pytest.mark.parametrize("in_order", [False, True])
async def test_a_slow_consumer_slows_the_team_down(in_order: bool) -> None:
    pulled, model = Pulled(), FakeModel(seconds=1)
    async with (
        a_team(model, concurrency=3) as team,
        aclosing(team.run(pulled, in_order=in_order)) as run,
    ):
        consumed = 0
        async for _ in run:
            consumed += 1
            await asyncio.sleep(100)
            assert pulled.count <= consumed + 4 * 3 + 1
            if consumed == 20:
                break


@virtual_time
async def test_head_of_line_blocking_is_bounded() -> None:
    pulled = Pulled()

    async def first_is_slow(question: str) -> str:
        await asyncio.sleep(1000 if question == "question 1" else 1)
        return "Yes."

    async with a_team(first_is_slow, concurrency=3, timeout=2000) as team:
        run = team.run(pulled, in_order=True)
        assert (await anext(run)).question == "question 1"
        assert now() == 1000
        assert pulled.count <= 4 * 3 + 1
        await run.aclose()


@virtual_time
async def test_backoff_does_not_stop_pulling_at_once() -> None:
    """Nor does it go on for ever: as many may wait as have slots."""
    pulled, model = Pulled(), FakeModel(*[StatusError(500)] * 99, seconds=1)
    async with a_team(
        model, Longest(), concurrency=3, backoff=900, deadline=90
    ) as team:
        run = team.run(pulled)
        await anext(run)
        assert 2 * 3 <= pulled.count <= 2 * 3 + 1
        await run.aclose()


@virtual_time
async def test_an_async_iterable_may_keep_the_team_waiting() -> None:
    async def come() -> AsyncIterator[str]:
        for number in numbers(3):
            await asyncio.sleep(10)
            yield number

    async with a_team(FakeModel()) as team:
        times = [now() async for _ in team.run(come())]
    assert times == [11, 21, 31]


@virtual_time
@pytest.mark.parametrize(
    ("stop", "kind"),
    [("cancel", FailureKind.CANCELLED), ("deadline", FailureKind.DEADLINE)],
)
async def test_blocked_iterable_is_left_when_the_team_stops(
    stop: str, kind: FailureKind
) -> None:
    async def come() -> AsyncIterator[str]:
        yield "1"
        yield "100"
        await asyncio.Event().wait()

    async with a_team(slow, deadline=5 if stop == "deadline" else 99) as team:
        if stop == "cancel":
            asyncio.get_running_loop().call_later(5, team.cancel)
        outcomes = await all_of(team.run(come()))
    assert kinds(outcomes) == {"answered": 1, kind: 1}
    assert now() == 5


@virtual_time
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("error", [ValueError("line 3"), TimeoutError("of the file")])
async def test_error_of_the_iterable_comes_after_all_answers(
    is_async: bool, in_order: bool, error: Exception
) -> None:
    def read() -> Iterator[str]:
        yield from ("2", "1")
        raise error

    async def come() -> AsyncIterator[str]:
        for question in read():
            yield question

    kept = list[str]()

    async def keep(run: AsyncIterator[Outcome]) -> None:
        async for outcome in run:
            kept.append(outcome.question)

    async with a_team(slow) as team:
        run = team.run(come() if is_async else read(), in_order=in_order)
        with pytest.raises(type(error), match=str(error)):
            await keep(run)
    assert kept == (["2", "1"] if in_order else ["1", "2"])


@virtual_time
async def test_cancelled_iterable_does_not_hang_the_run() -> None:
    async def come() -> AsyncIterator[str]:
        yield "1"
        feed = asyncio.create_task(never(""))
        feed.cancel()
        await feed

    async with a_team(slow) as team:
        with pytest.raises(asyncio.CancelledError):
            await all_of(team.run(come()))
    assert now() == 1


@virtual_time
async def test_bug_in_the_estimate_is_raised_once() -> None:
    async with a_team(never, estimate=int) as team:
        with pytest.raises(ValueError, match="invalid literal"):
            await all_of(team.run(["a", "b", "c"]))
        gc.collect()


@virtual_time
@pytest.mark.parametrize("in_order", [False, True])
async def test_cancelled_workers_do_not_hang_the_run(
    in_order: bool,
) -> None:
    async with a_team(never, concurrency=2) as team:
        before = asyncio.all_tasks()
        run = asyncio.create_task(all_of(team.run(["a", "b"], in_order=in_order)))
        await asyncio.sleep(1)
        for worker in asyncio.all_tasks() - before - {run}:
            worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert now() == 1


@virtual_time
async def test_no_questions_are_no_outcomes() -> None:
    async with a_team(never) as team:
        assert await all_of(team.run([])) == []


@virtual_time
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("turns", range(4))
async def test_leaving_a_run_early_leaves_nothing_behind(
    in_order: bool, closes: bool, turns: int
) -> None:
    """Whether closed or only left, however soon after that the team ends."""
    pulled, model = Pulled(), FakeModel(seconds=1)
    async with a_team(model, concurrency=3) as team:
        run = team.run(pulled, in_order=in_order)
        async for _ in run:
            break
        if closes:
            await run.aclose()
            assert model.in_flight == 0
        del run
        for _ in range(turns):
            await asyncio.sleep(0)
        before = pulled.count
    await asyncio.sleep(100)
    assert pulled.count == before
    assert model.in_flight == 0


# Nesting


@virtual_time
@pytest.mark.parametrize("concurrency", [1, 2])
async def test_agents_that_ask_agents_finish_with_a_single_slot(
    concurrency: int,
) -> None:
    model = FakeModel()

    async def tree(question: str) -> str:
        """Asks itself, and then runs two agents of its own, four deep."""
        own = (await team.ask(question)).text
        if len(question) == 4:
            return own
        run = team.run([question + "a", question + "b"], agent=tree, in_order=True)
        return " ".join([own, *[outcome.text async for outcome in run]])

    async with a_team(model, concurrency=concurrency) as team:
        outcomes = await all_of(team.run(["x", "y"], agent=tree))
    assert [len(outcome.text.split()) for outcome in outcomes] == [15, 15]
    assert model.most == concurrency
    assert now() == 30 / concurrency


@virtual_time
async def test_too_deep_is_a_clear_error() -> None:
    async def deeper(question: str) -> str:
        [outcome] = await all_of(team.run([question + "."], agent=deeper))
        return outcome.text

    async with a_team(never, depth=3) as team:
        [outcome] = await all_of(team.run([""], agent=deeper))
    assert outcome.failure is not None
    assert "agents ask agents 4 deep: at most 3" in outcome.failure.message


@virtual_time
async def test_agents_side_by_side_are_not_deep() -> None:
    async def agent(question: str) -> str:
        return (await team.ask(question)).text

    async with a_team(FakeModel(), depth=1) as team:
        for _ in range(3):
            assert kinds(await all_of(team.run(["a", "b"], agent=agent))) == {
                "answered": 2
            }


@virtual_time
@pytest.mark.parametrize("hedge", [None, 1])
async def test_ask_that_asks_its_own_team_is_an_error(
    hedge: float | None,
) -> None:
    """It would wait for the slot that it holds itself."""

    async def asks(question: str) -> str:
        return (await team.ask(question)).text

    async def runs(question: str) -> str:
        return (await anext(team.run([question]))).text

    async with a_team(asks, concurrency=1, hedge=hedge) as team:
        for ask in (asks, runs):
            outcome = await team.ask("Why?", ask)
            assert outcome.failure is not None
            assert isinstance(outcome.failure.cause, NestingError)
            assert "make it an agent" in outcome.failure.message


@virtual_time
async def test_a_call_may_ask_another_team() -> None:
    async with a_team(FakeModel(), concurrency=1) as other:

        async def asks(question: str) -> str:
            return (await other.ask(question)).text

        async with a_team(asks, concurrency=1) as team:
            assert (await team.ask("Why?")).text == "Why?!"


@virtual_time
async def test_agent_can_ask_one_question_after_another() -> None:
    async def agent(question: str) -> str:
        for number in "123":
            question = (await team.ask(question + number)).text
        return question

    async with a_team(FakeModel(), concurrency=1) as team:
        [outcome] = await all_of(team.run(["x"], agent=agent))
    assert outcome.text == "x1!2!3!"


@virtual_time
async def test_agents_failure_has_the_kind_of_its_questions() -> None:
    async def agent(question: str) -> str:
        return (await team.ask(question)).text

    async with a_team(FakeModel(StatusError(400))) as team:
        [outcome] = await all_of(team.run(["x"], agent=agent))
    assert kinds([outcome]) == {FailureKind.REFUSED: 1}


@virtual_time
async def test_the_deadline_ends_agents_too() -> None:
    async def agent(question: str) -> str:
        return (await anext(team.run([question], agent=never))).text

    async with a_team(never, deadline=5) as team:
        assert kinds(await all_of(team.run("abc", agent=agent))) == {
            FailureKind.DEADLINE: 3
        }
        assert now() == 5


# Hedges


def in_turn(*seconds: float | Exception) -> tuple[FakeModel, Ask]:
    """Each request takes so long, in this order; or fails after a second."""
    model, left = FakeModel(), list(seconds)

    async def ask(question: str) -> Answer:
        takes = left.pop(0)
        if isinstance(takes, Exception):
            model.faults, model.seconds = [takes], 1
        else:
            model.seconds = takes
        return await model(question)

    return model, ask


@virtual_time
async def test_first_answer_of_a_hedged_question_counts() -> None:
    model, ask = in_turn(100, 1)
    async with a_team(ask, hedge=5) as team:
        outcome = await team.ask("Why?")
        assert now() == 6
        assert model.in_flight == 0  # the other one is cancelled
    assert model.at == [0, 5]
    assert (outcome.requests, outcome.tokens) == (2, 15)


@virtual_time
async def test_an_answer_in_time_needs_no_hedge() -> None:
    model, ask = in_turn(4)
    async with a_team(ask, hedge=5) as team:
        assert (await team.ask("Why?")).requests == 1
    assert model.at == [0]


@virtual_time
async def test_without_a_free_slot_there_is_no_hedge() -> None:
    model, ask = in_turn(100, 100)
    async with a_team(ask, hedge=5, concurrency=2, timeout=1000) as team:
        assert kinds(await all_of(team.run(["a", "b"]))) == {"answered": 2}
    assert (model.at, now()) == ([0, 0], 100)
    assert model.most == 2


@virtual_time
async def test_a_hedges_slot_counts() -> None:
    model, ask = in_turn(100, 20, 1)
    async with a_team(ask, hedge=5, concurrency=2) as team:
        a = asyncio.create_task(team.ask("a"))
        await asyncio.sleep(6)
        await team.ask("b")
        assert now() == 26  # when the hedge has let go of its slot
        assert (await a).in_flight == 25 + 20
    assert model.most == 2


@virtual_time
@pytest.mark.parametrize("first", [True, False])
async def test_if_one_of_both_fails_the_other_counts(first: bool) -> None:
    model, ask = in_turn(
        *((5.5, StatusError(500)) if first else (100, StatusError(500)))
    )
    async with a_team(ask, hedge=5, timeout=50 if first else 200) as team:
        assert (await team.ask("Why?")).requests == 2
    assert model.at == [0, 5]


@virtual_time
async def test_if_both_fail_it_is_one_failed_try() -> None:
    model, ask = in_turn(100, 100, 1)
    async with a_team(ask, Shortest(), hedge=5, timeout=10, tries=2) as team:
        outcome = await team.ask("Why?")
    assert outcome.requests == 3
    assert model.at == [0, 5, 15]


@virtual_time
async def test_time_in_line_is_not_time_in_flight() -> None:
    """The second question waits a minute for the rate: that is no reason to hedge."""
    model, ask = in_turn(3, 3)
    limits = {"rpm": 1, "request_burst": 1, "timeout": 10}
    async with a_team(ask, hedge=5, concurrency=9, **limits) as team:
        outcomes = await all_of(team.run(["a", "b"]))
        await asyncio.sleep(300)
    assert [outcome.requests for outcome in outcomes] == [1, 1]
    assert len(model.at) == 2


@virtual_time
async def test_refused_hedge_pauses_all() -> None:
    model, ask = in_turn(30, StatusError(429, retry_after=8), 1)
    async with a_team(ask, Longest(), hedge=5) as team:
        outcome = await team.ask("Why?")
    assert model.at == [0, 5, 16]
    assert (outcome.requests, now()) == (3, 17)


# Limits


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("concurrency", [0, -1, 1.5, True, None, "3"], "a whole number from 1"),
        ("depth", [0, 1.0], "a whole number from 1"),
        ("tries", [0, math.nan], "a whole number from 1"),
        ("answer_tokens", [-1, 0.5], "a whole number from 0"),
        ("refusals", [-1, None], "a whole number from 0"),
        ("free_retries", [-1, math.inf], "a whole number from 0"),
        ("rpm", [0, 0.5, -3, math.nan, math.inf, "60", True], "a number from 1"),
        ("tpm", [0, math.inf], "a number from 1"),
        ("request_burst", [0, math.inf], "a number from 1"),
        ("token_burst", [0, math.inf], "a number from 1"),
        ("connect", [0, -1, None, math.nan], "a number from 0.001"),
        ("timeout", [0, None], "a number from 0.001"),
        ("deadline", [0, None, "1 h"], "a number from 0.001"),
        ("hedge", [0, -1, math.nan], "a number from 0.001"),
        ("backoff", [-1, None, math.inf], "a number from 0"),
        ("longest_backoff", [-1, math.nan], "a number from 0"),
        ("retry_share", [-0.1, None], "a number from 0"),
    ],
)
def test_senseless_limit_is_a_value_error(
    name: str, values: list[Any], says: str
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}=.*: must be {says}$") as caught:
            Limits(**{name: value})
        assert repr(value) in str(caught.value)


# Seen from outside


@virtual_time
async def test_an_observer_that_raises_does_not_stop_the_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError

    async with a_team(FakeModel(), observer=broken) as team:
        assert kinds(await all_of(team.run(numbers(3)))) == {"answered": 3}
    assert "the observer failed" in caplog.text
