"""One question on its way to its answer: slots, pace, a timeout, retries, a hedge."""

import asyncio
import logging
import math
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random

from .journal import Journal, JournalError
from .limits import Limits
from .observe import Event, Observer
from .rate_limiter import RateLimiter
from .results import Answer, Ask, Outcome, StatusError, as_answer
from .retry import RetryBudget, backoff, kind_of, may_pass

# The calls whose slot is held by what runs now.
holding: ContextVar[tuple["Calls", ...]] = ContextVar("holding", default=())


@dataclass(slots=True)
class Call:
    """One question, and what it has cost so far."""

    question: str
    ask: Ask
    reserve: float = 0.0  # tokens
    sent: int = 0
    failed: int = 0  # tries; those refused with a wait do not count
    since: float = math.inf  # when the request in flight was sent, by the loop's clock
    in_flight: float = 0.0  # seconds
    tokens: int = 0


class Calls:
    """What all calls of a team share."""

    def __init__(
        self,
        limits: Limits,
        rng: Random,
        rate_limiter: RateLimiter,
        journal: Journal | None,
        observer: Observer | None,
    ) -> None:
        self._limits, self._rng, self._rate_limiter = limits, rng, rate_limiter
        self._journal, self._observer = journal, observer
        self.slots = asyncio.Semaphore(limits.concurrency)
        self._budget = RetryBudget(limits)

    async def answer(self, call: Call) -> Answer:
        """Try until there is an answer, or a failure is final."""
        self._rate_limiter.check(call.reserve)
        self._budget.earn()
        while True:
            try:
                async with self.slots:
                    return await self._hedged(call)
            except JournalError:
                raise
            except Exception as error:
                wait = self._wait_after(error, call)
                says = str(error) or type(error).__name__
                self.tell("retried", call, wait, f"{kind_of(error)}: {says}")
            await asyncio.sleep(wait)  # without a slot: others can use it

    def _wait_after(self, error: Exception, call: Call) -> float:
        """Seconds until the next try. Raises the error if there is none."""
        call.failed += 1
        is_last = call.failed >= self._limits.tries
        if is_last or not may_pass(error) or not self._budget.spend():
            raise error
        wait = backoff(call.failed, self._limits, self._rng)
        return max(wait, (isinstance(error, StatusError) and error.retry_after) or 0)

    async def _hedged(self, call: Call) -> Answer:
        """One try; and if it takes long and a slot is free, another one beside it.

        Dean and Barroso, The Tail at Scale, 2013: https://doi.org/10.1145/2408776.2408794
        """
        if (hedge := self._limits.hedge) is None:
            return await self._try(call)
        async with AsyncExitStack() as stack:
            tries = {asyncio.create_task(self._try(call))}
            stack.push_async_callback(_cancel, frozenset(tries))
            done, now = set[asyncio.Task[Answer]](), asyncio.get_running_loop().time
            while not done and (wait := min(call.since, now()) + hedge - now()) > 0:
                done, _ = await asyncio.wait(tries, timeout=wait)
            if not done and not self.slots.locked():
                await stack.enter_async_context(self.slots)
                tries.add(asyncio.create_task(self._try(call)))
                stack.push_async_callback(_cancel, frozenset(tries))
            while True:
                done, others = await asyncio.wait(tries, return_when="FIRST_COMPLETED")
                good = [task for task in done if task.exception() is None]
                if good or not others:
                    return (good or [*done])[0].result()
                tries = others

    async def _try(self, call: Call) -> Answer:
        """Send it; and again, at the head of the line, while the server says when."""
        for refusals in range(self._limits.refusals + 1):
            await self._rate_limiter.acquire(call.reserve, first=call.sent > 0)
            try:
                answer = await self._send(call)
            except StatusError as error:
                if error.status < 500:  # its tokens do not count, the request does
                    self._rate_limiter.reconcile(call.reserve, 0)
                await self._rate_limiter.update_from_headers(error.remaining)
                wait = error.retry_after if error.status == 429 else None
                if wait is None or not may_pass(error):
                    raise
                pause = self._rate_limiter.refused(wait, call.reserve)
                self.tell("refused", call, pause, str(error))
                self.tell("paused", call, pause)
                if refusals == self._limits.refusals:
                    raise
            else:
                if answer.tokens is not None:
                    self._rate_limiter.reconcile(call.reserve, answer.tokens)
                await self._rate_limiter.update_from_headers(answer.remaining)
                return answer
        raise AssertionError("never here")

    async def _send(self, call: Call) -> Answer:
        """One request, within its time, recorded before anybody else sees it."""
        number = self._journal.sent(call.question) if self._journal else 0
        call.sent += 1
        self.tell("sent", call)
        loop, answer, ended = asyncio.get_running_loop(), None, "cancelled"
        call.since = begun = loop.time()
        token = holding.set((*holding.get(), self))
        try:
            async with asyncio.timeout(self._limits.timeout):
                answer = as_answer(await call.ask(call.question))
            call.tokens += answer.tokens or 0
            ended = "answered"
            return answer
        except Exception as error:
            ended = kind_of(error)
            raise
        finally:
            holding.reset(token)
            call.in_flight += loop.time() - begun
            call.since = math.inf
            if self._journal:
                self._journal.ended(call.question, number, ended, answer)

    def tell(
        self,
        kind: str,
        call: Call,
        wait: float = 0,
        detail: str = "",
        outcome: Outcome | None = None,
    ) -> None:
        if self._observer is not None:
            now = asyncio.get_running_loop().time()
            event = Event(kind, call.question, now, call.sent, wait, detail, outcome)
            try:
                self._observer(event)
            except Exception:  # whoever looks on must not stop the work
                logging.getLogger(__name__).exception("the observer failed")


async def _cancel(tasks: frozenset[asyncio.Task[Answer]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
