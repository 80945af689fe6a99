"""Many questions, within the limits, until the deadline: the module's front door."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from random import Random
from typing import Self
from weakref import WeakValueDictionary

from .bounded_map import map_bounded
from .dispatcher import Call, Calls, holding
from .journal import Journal, JournalError
from .limits import Limits
from .observe import Observer
from .rate_limiter import RateLimiter
from .results import (
    Answer,
    Ask,
    Failure,
    FailureKind,
    NestingError,
    Outcome,
    QuestionFailed,
    as_answer,
)
from .retry import kind_of

# How many agents that ask agents the running one has above it.
_depth: ContextVar[int] = ContextVar("depth", default=0)
# The runs that the running agent has begun.
_begun: ContextVar[list[AsyncGenerator[Outcome, None]]] = ContextVar("begun")


class Team:
    """Asks questions within the limits. `async with Team(ask, limits) as team:`

        outcome = await team.ask("One question?")
        async for outcome in team.run(many_questions):
            print(outcome.question, outcome.answer or outcome.failure)

    Time is the running loop's; the deadline begins at the `async with`, at the end of
    which nothing is left running. `estimate` gives the tokens to reserve for a question
    and its answer. Failures are outcomes. Raised are a `JournalError`, and what the
    caller did wrong: a `NestingError`, a RuntimeError outside of the `async with`.
    """

    def __init__(
        self,
        ask: Ask,
        limits: Limits | None = None,
        *,
        rate_limiter: RateLimiter | None = None,
        journal: Journal | None = None,
        observer: Observer | None = None,
        estimate: Callable[[str], float] | None = None,
        rng: Random | None = None,
    ) -> None:
        self.limits = limits = limits or Limits()
        rng = rng or Random()
        rate_limiter = rate_limiter or RateLimiter(limits, rng)
        self._calls = Calls(limits, rng, rate_limiter, journal, observer)
        self._ask, self._journal, self._estimate = ask, journal, estimate
        self._same = WeakValueDictionary[str, asyncio.Lock]()  # question -> its lock
        self._scopes = dict[asyncio.Timeout, None]()  # a set has no order
        self._runs = dict[AsyncGenerator[Outcome, None], None]()
        self._ends: float | None = None  # by the loop's clock
        self._why, self._draining = FailureKind.DEADLINE, False

    async def __aenter__(self) -> Self:
        self._why, self._draining = FailureKind.DEADLINE, False
        self._ends = asyncio.get_running_loop().time() + self.limits.deadline
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
        for run in tuple(self._runs):
            with suppress(RuntimeError):  # somebody still waits for it: gets the rest
                await run.aclose()
                self._runs.pop(run, None)

    async def ask(self, question: str, ask: Ask | None = None) -> Outcome:
        """Ask one question; with another `ask`, if given, within the same limits."""
        self._check_slots()
        reserve = self.limits.answer_tokens + len(question) / 4
        if self._estimate is not None:
            reserve = self._estimate(question)
        call = Call(question, ask or self._ask, reserve)
        self._calls.tell("queued", call)
        try:
            outcome = await self._outcome(call, self._answer)
        except BaseException as error:  # whoever asked has given up
            self._calls.tell(
                "failed", call, detail=f"cancelled: {type(error).__name__}"
            )
            raise
        kind, why = "answered", ""
        if outcome.failure is not None:
            kind, why = "failed", f"{outcome.failure.kind}: {outcome.failure.says}"
        self._calls.tell(kind, call, detail=why, outcome=outcome)
        return outcome

    async def run(
        self,
        questions: Iterable[str] | AsyncIterable[str],
        *,
        agent: Ask | None = None,
        in_order: bool = False,
    ) -> AsyncGenerator[Outcome, None]:
        """Ask many; yield each one's outcome, as they finish or in order.

        With `agent`, that is what answers each question: it may ask the team, and
        `run` agents of its own, and it holds no slot. Questions are pulled only when a
        slot is free. When the team stops, those that are left fail at once (of an async
        iterable, those that were pulled; of an endless one, without an end). Who breaks
        off should `aclose()` the run.
        """
        self._check_slots()
        depth = _depth.get() + 1
        if agent is not None and depth > self.limits.depth:
            raise NestingError(f"agents ask agents {depth} deep: at most {depth - 1}")

        async def work(question: str) -> Outcome:
            if self._draining:
                return Outcome(question, failure=Failure(self._why, "not begun"))
            if agent is None:
                return await self.ask(question)
            # In the worker's own context:
            begun: list[AsyncGenerator[Outcome, None]] = []
            _depth.set(depth)
            _begun.set(begun)
            try:
                return await self._outcome(Call(question, agent), _run_agent)
            finally:  # an agent that fails leaves its runs as they are
                for nested in begun:
                    with suppress(RuntimeError):
                        await nested.aclose()

        workers = 2 * self.limits.concurrency  # as many may wait for their next try
        run = map_bounded(self._pull(questions), work, workers, in_order)
        self._runs[run] = None
        _begun.get([]).append(run)
        try:
            async for outcome in run:
                yield outcome
            if run not in self._runs:
                raise RuntimeError("the team was left before the end of its run")
        finally:
            with suppress(RuntimeError):  # the team closes it already
                await run.aclose()
            self._runs.pop(run, None)

    def _check_slots(self) -> None:
        if self._calls in holding.get():
            raise NestingError(
                "a call to the model asks its own team, and would wait for its own "
                "slot: make it an agent, team.run(questions, agent=...)"
            )

    def drain(self, grace: float) -> None:
        """Begin no more questions; in `grace` seconds, cancel those that are left."""
        if not self._draining:
            self._why, self._draining = FailureKind.CANCELLED, True
            asyncio.get_running_loop().call_later(grace, self.cancel)

    def cancel(self) -> None:
        """Whatever is not done fails now, as cancelled."""
        if not self._is_over():
            self._why, self._draining, self._ends = (
                FailureKind.CANCELLED,
                True,
                self._now(),
            )
            for scope in tuple(self._scopes):
                if not scope.expired():
                    scope.reschedule(self._ends)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _is_over(self) -> bool:
        if self._ends is None:
            raise RuntimeError("use it within `async with Team(...) as team:`")
        return self._now() >= self._ends

    @asynccontextmanager
    async def _until_the_end(self) -> AsyncIterator[None]:
        """Raises TimeoutError when the team's time is over."""
        if self._is_over():
            raise TimeoutError
        async with asyncio.timeout_at(self._ends) as scope:
            self._scopes[scope] = None
            try:
                yield
            finally:
                del self._scopes[scope]

    async def _pull(
        self, questions: Iterable[str] | AsyncIterable[str]
    ) -> AsyncGenerator[str, None]:
        """The next question, when a slot is free."""
        if not isinstance(questions, AsyncIterable):
            for question in questions:
                with suppress(TimeoutError):
                    async with self._until_the_end(), self._calls.slots:
                        pass
                yield question
            return
        iterator = aiter(questions)
        while not self._draining:
            try:
                async with self._until_the_end():
                    async with self._calls.slots:
                        pass
                    question = await anext(iterator)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if self._is_over():
                    return
                raise
            yield question

    async def _outcome(
        self, call: Call, answer: Callable[[Call], Awaitable[Answer]]
    ) -> Outcome:
        begun, found, failure = self._now(), None, None
        try:
            async with self._until_the_end():
                found = await answer(call)
        except JournalError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                raise  # this task is meant; else what it has waited for was cancelled
            kind, says = kind_of(error), str(error) or type(error).__name__
            if isinstance(error, QuestionFailed):
                says = error.failure.says  # without the kind, which is said already
            if self._is_over():
                kind, says = self._why, "the team's time was over"
            failure = Failure(kind, says, error)
        waited = max(0.0, self._now() - begun - call.in_flight)
        counts = (call.sent, waited, call.in_flight, call.tokens)
        return Outcome(call.question, found, failure, *counts)

    async def _answer(self, call: Call) -> Answer:
        if self._journal is None:
            return await self._calls.answer(call)
        lock = self._same.setdefault(call.question, asyncio.Lock())
        async with lock:  # who asks the same at the same time gets the same answer
            known = self._journal.answer_to(call.question)
            return known or await self._calls.answer(call)


async def _run_agent(call: Call) -> Answer:
    return as_answer(await call.ask(call.question))
