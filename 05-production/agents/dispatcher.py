"""Takes one question to its answer: slots, rate limits, a timeout, retries, a hedge."""

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

# The dispatchers of which the running task holds a slot.
slot_holders = ContextVar[tuple["Dispatcher", ...]]("slot_holders", default=())


@dataclass(slots=True)
class Request:
    """A question to the model, and what it has cost so far."""

    question: str
    ask: Ask
    estimated_tokens: float = 0.0  # of the question and its answer
    sent: int = 0  # times, refused ones included
    failed: int = 0  # tries; a refusal that names a wait is not a failed one
    since: float = math.inf  # when the request in flight was sent, by the loop's clock
    in_flight: float = 0.0  # seconds
    tokens: int = 0


class Dispatcher:
    """Sends the requests of a team: they share its slots, rate and retries."""

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

    async def answer(self, request: Request) -> Answer:
        """Try until there is an answer. Raise the failure if it is final."""
        self._rate_limiter.check(request.estimated_tokens)
        self._budget.earn()
        while True:
            try:
                async with self.slots:
                    return await self._hedged(request)
            except JournalError:
                raise
            except Exception as error:
                wait = self._wait_after(error, request)
                message = str(error) or type(error).__name__
                self.notify("retried", request, wait, f"{kind_of(error)}: {message}")
            await asyncio.sleep(wait)  # without a slot: others can use it

    def _wait_after(self, error: Exception, request: Request) -> float:
        """Return the seconds until the next try. Raise the error if there is none."""
        request.failed += 1
        is_last = request.failed >= self._limits.tries
        if is_last or not may_pass(error) or not self._budget.spend():
            raise error
        wait = backoff(request.failed, self._limits, self._rng)
        return max(wait, (isinstance(error, StatusError) and error.retry_after) or 0)

    async def _hedged(self, request: Request) -> Answer:
        """Make one try. If it takes long and a slot is free, make a second beside it.

        Dean and Barroso, The Tail at Scale, 2013: https://doi.org/10.1145/2408776.2408794
        """
        if (hedge := self._limits.hedge) is None:
            return await self._try(request)
        async with AsyncExitStack() as stack:
            tries = {asyncio.create_task(self._try(request))}
            stack.push_async_callback(_cancel, frozenset(tries))
            done, now = set[asyncio.Task[Answer]](), asyncio.get_running_loop().time
            while not done and (wait := min(request.since, now()) + hedge - now()) > 0:
                done, _ = await asyncio.wait(tries, timeout=wait)
            if not done and not self.slots.locked():
                await stack.enter_async_context(self.slots)
                tries.add(asyncio.create_task(self._try(request)))
                stack.push_async_callback(_cancel, frozenset(tries))
            while True:
                done, others = await asyncio.wait(tries, return_when="FIRST_COMPLETED")
                good = [task for task in done if task.exception() is None]
                if good or not others:
                    return (good or [*done])[0].result()
                tries = others

    async def _try(self, request: Request) -> Answer:
        """Send it. Send it again, first in line, after a refusal that names a wait."""
        limiter, tokens = self._rate_limiter, request.estimated_tokens
        for refusals in range(self._limits.refusals + 1):
            await limiter.acquire(tokens, first=request.sent > 0)
            try:
                answer = await self._send(request)
            except StatusError as error:
                if error.status < 500:  # its tokens do not count, the request does
                    limiter.reconcile(tokens, 0)
                await limiter.update_from_headers(error.remaining)
                wait = error.retry_after if error.status == 429 else None
                if wait is None or not may_pass(error):
                    raise
                pause = limiter.refused(wait, tokens)
                self.notify("refused", request, pause, str(error))
                self.notify("paused", request, pause)
                if refusals == self._limits.refusals:
                    raise
            else:
                if answer.tokens is not None:
                    limiter.reconcile(tokens, answer.tokens)
                await limiter.update_from_headers(answer.remaining)
                return answer
        raise AssertionError("never here")

    async def _send(self, request: Request) -> Answer:
        """Send it once, within its time. Record the answer before anything else."""
        number = self._journal.start(request.question) if self._journal else 0
        request.sent += 1
        self.notify("sent", request)
        loop, answer, ended = asyncio.get_running_loop(), None, "cancelled"
        request.since = begun = loop.time()
        token = slot_holders.set((*slot_holders.get(), self))
        try:
            async with asyncio.timeout(self._limits.timeout):
                answer = as_answer(await request.ask(request.question))
            request.tokens += answer.tokens or 0
            ended = "answered"
            return answer
        except Exception as error:
            ended = kind_of(error)
            raise
        finally:
            slot_holders.reset(token)
            request.in_flight += loop.time() - begun
            request.since = math.inf
            if self._journal:
                self._journal.finish(request.question, number, ended, answer)

    def notify(
        self,
        kind: str,
        request: Request,
        wait: float = 0,
        detail: str = "",
        outcome: Outcome | None = None,
    ) -> None:
        if self._observer is not None:
            now = asyncio.get_running_loop().time()
            facts = (now, request.sent, wait, detail, outcome)
            event = Event(kind, request.question, *facts)
            try:
                self._observer(event)
            except Exception:  # an observer must not stop the work
                logging.getLogger(__name__).exception("the observer failed")


async def _cancel(tasks: frozenset[asyncio.Task[Answer]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
