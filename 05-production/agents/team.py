"""The front door: ask many questions within the limits, until the deadline."""

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
from .dispatcher import Dispatcher, Request, slot_holders
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

# How deep the running agent is nested in other agents.
_depth: ContextVar[int] = ContextVar("depth", default=0)
# The runs that the running agent has begun.
_begun: ContextVar[list[AsyncGenerator[Outcome, None]]] = ContextVar("begun")


class Team:
    """Asks questions within the limits. `async with Team(ask, limits) as team:`

        outcome = await team.ask("One question?")
        async for outcome in team.run(many_questions):
            print(outcome.question, outcome.answer or outcome.failure)

    The deadline begins at the `async with`, by the running loop's clock. At the end of
    the block nothing is left running. `estimate` returns the tokens of a question and
    its answer. A model's failure is returned as an outcome, not raised. Raises
    `JournalError` if the journal fails, `NestingError` if the team is misused, and
    RuntimeError outside of the `async with`.
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
        self._dispatcher = Dispatcher(limits, rng, rate_limiter, journal, observer)
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
            with suppress(RuntimeError):  # a consumer still waits for it, and ends it
                await run.aclose()
                self._runs.pop(run, None)

    async def ask(self, question: str, ask: Ask | None = None) -> Outcome:
        """Ask one question, with another `ask` if given, within the same limits."""
        self._check_slots()
        estimated_tokens = self.limits.answer_tokens + len(question) / 4
        if self._estimate is not None:
            estimated_tokens = self._estimate(question)
        request = Request(question, ask or self._ask, estimated_tokens)
        self._dispatcher.notify("queued", request)
        try:
            outcome = await self._outcome(request, self._answer)
        except BaseException as error:  # the caller has given up
            why = f"cancelled: {type(error).__name__}"
            self._dispatcher.notify("failed", request, detail=why)
            raise
        kind, why = "answered", ""
        if outcome.failure is not None:
            kind, why = "failed", f"{outcome.failure.kind}: {outcome.failure.message}"
        self._dispatcher.notify(kind, request, detail=why, outcome=outcome)
        return outcome

    async def run(
        self,
        questions: Iterable[str] | AsyncIterable[str],
        *,
        agent: Ask | None = None,
        in_order: bool = False,
    ) -> AsyncGenerator[Outcome, None]:
        """Ask many questions. Yield each outcome as it finishes, or `in_order`.

        With `agent`, that function answers each question. It holds no slot, and can
        ask the team and `run` agents of its own. Questions are pulled only when a slot
        is free. When the team stops, the questions that are left fail at once. Of an
        async iterable, only those already pulled do. An endless iterable never ends.

        If you leave the loop early, close the run, with `contextlib.aclosing`.
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
                return await self._outcome(Request(question, agent), _run_agent)
            finally:  # an agent that fails does not close its own runs
                for nested in begun:
                    with suppress(RuntimeError):
                        await nested.aclose()

        workers = 2 * self.limits.concurrency  # half of them can wait to try again
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
        if self._dispatcher in slot_holders.get():
            raise NestingError(
                "a call to the model asks its own team, and would wait for its own "
                "slot: make it an agent, team.run(questions, agent=...)"
            )

    def drain(self, grace: float) -> None:
        """Begin no more questions. After `grace` seconds, cancel those in flight."""
        if not self._draining:
            self._why, self._draining = FailureKind.CANCELLED, True
            asyncio.get_running_loop().call_later(grace, self.cancel)

    def cancel(self) -> None:
        """End all questions that are not done, as cancelled."""
        if not self._is_over():
            self._why, self._draining = FailureKind.CANCELLED, True
            self._ends = self._now()
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
        """Raise TimeoutError when the team's time is over."""
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
        """Yield the next question when a slot is free."""
        if not isinstance(questions, AsyncIterable):
            for question in questions:
                with suppress(TimeoutError):
                    async with self._until_the_end(), self._dispatcher.slots:
                        pass
                yield question
            return
        iterator = aiter(questions)
        while not self._draining:
            try:
                async with self._until_the_end():
                    async with self._dispatcher.slots:
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
        self, request: Request, answer: Callable[[Request], Awaitable[Answer]]
    ) -> Outcome:
        begun, found, failure = self._now(), None, None
        try:
            async with self._until_the_end():
                found = await answer(request)
        except JournalError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                raise  # else only what this task waited for was cancelled
            kind, message = kind_of(error), str(error) or type(error).__name__
            if isinstance(error, QuestionFailed):
                message = error.failure.message  # `kind` is the same: not said twice
            if self._is_over():
                kind, message = self._why, "the team's time was over"
            failure = Failure(kind, message, error)
        waited = max(0.0, self._now() - begun - request.in_flight)
        counts = (request.sent, waited, request.in_flight, request.tokens)
        return Outcome(request.question, found, failure, *counts)

    async def _answer(self, request: Request) -> Answer:
        if self._journal is None:
            return await self._dispatcher.answer(request)
        lock = self._same.setdefault(request.question, asyncio.Lock())
        async with lock:  # single flight: the same question is asked once at a time
            known = self._journal.lookup(request.question)
            return known or await self._dispatcher.answer(request)


async def _run_agent(request: Request) -> Answer:
    return as_answer(await request.ask(request.question))
