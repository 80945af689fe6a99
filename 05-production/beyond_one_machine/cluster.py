"""Many questions on a Ray cluster: a team in each worker, one limiter for all.

    async with WorkerGroup(job) as group:
        async for result in scale_out(questions, group):
            print(result.question, result.answer or result.failure)

Ray places the workers, notices when one dies, starts it again where there is room and
sends it the calls that it had not answered. `job.open_ask` gives each worker its model;
on the other machines, this folder arrives as Ray's working directory, but what it
imports must be installed there.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import ray
from openai import AsyncOpenAI, DefaultAioHttpClient
from ray.exceptions import RayActorError, RayError, RayTaskError

from agents import Ask, Journal, JournalError, Limits, Outcome, Team, openai_ask
from agents.bounded_map import map_bounded
from beyond_one_machine.leases import (
    BATCH,
    Counts,
    Lease,
    LeasedRateLimiter,
    LeaseRequest,
    Limiter,
)

RESTARTS = 10  # of each worker: then the questions that it has are failures
JOURNAL_TIMEOUT = 10.0  # seconds, for a journal that a dying worker still holds
CLOSE_TIMEOUT = 10.0  # seconds, for all actors to close

OpenAsk = Callable[[int], AbstractAsyncContextManager[Ask]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """How the questions are to be answered; it travels to each worker."""

    limits: Limits  # rpm and tpm are those of all workers together
    open_ask: OpenAsk  # gives a worker, by its number, its model
    workers: int = 2
    batch: int = BATCH  # requests of a lease
    journals: Path | None = None  # folder, on each machine's own disk
    cpus: float = 1.0  # of each worker, for Ray to count


@dataclass(frozen=True, slots=True)
class Result:
    """How one question ended: `answer` or `failure`."""

    number: int
    question: str
    answer: str | None = None
    failure: str | None = None
    requests: int = 0  # requests sent by the worker that answered
    tokens: int = 0
    worker: int = -1  # which one it was


class RayLimiter(Limiter):
    """The actor. What another one has leased before it died runs out first."""

    def __init__(self, limits: Limits) -> None:
        context = ray.get_runtime_context()
        super().__init__(limits, context.was_current_actor_reconstructed)


class RemoteLimiter:
    """The limiter as seen from a worker. Ray repeats calls during which it dies."""

    def __init__(self, name: str) -> None:
        self._actor: Any = ray.get_actor(name)
        self.last: Any = None  # news that it waits for

    async def lease(self, report: LeaseRequest) -> Lease:
        lease: Lease = await self._actor.lease.remote(report)
        return lease

    async def used_up(self, worker: str, number: int) -> None:
        await self._actor.used_up.remote(worker, number)

    async def refused(self, wait: float, tokens: float) -> int:
        pauses: int = await self._actor.refused.remote(wait, tokens)
        return pauses

    async def news(self, seen: int) -> tuple[int, float]:
        self.last = self._actor.news.remote(seen)
        news: tuple[int, float] = await self.last
        return news


class Worker:
    """The actor: one team in a process of its own."""

    def __init__(self, number: int, job: Job, limiter: str) -> None:
        self._number, self._job, self._limiter = number, job, RemoteLimiter(limiter)
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._team: Team | None = None

    async def ask(self, number: int, question: str) -> Result:
        async with self._opening:
            if self._team is None:
                self._team = await self._open()
        return result_of(number, await self._team.ask(question), self._number)

    async def _open(self) -> Team:
        job, name = self._job, f"{self._number}-{uuid4().hex}"
        enter = self._stack.enter_async_context
        ask = await enter(job.open_ask(self._number))
        journal = None
        if job.journals is not None:
            file = job.journals / f"worker-{self._number}.db"
            journal = self._stack.enter_context(await open_journal(file))
        rate_limiter = await enter(
            LeasedRateLimiter(job.limits, self._limiter, name, job.batch)
        )
        return await enter(
            Team(ask, job.limits, rate_limiter=rate_limiter, journal=journal)
        )

    async def close(self) -> None:
        """When the limiter is closed; so nothing waits for it when it ends."""
        await self._stack.aclose()
        if self._limiter.last is not None:
            await self._limiter.last


async def open_journal(file: Path) -> Journal:
    """Raises `JournalError`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ends = asyncio.get_running_loop().time() + JOURNAL_TIMEOUT
    while True:
        try:
            return Journal(file)
        except JournalError:
            if asyncio.get_running_loop().time() > ends:
                raise
        await asyncio.sleep(0.1)


def result_of(number: int, outcome: Outcome, worker: int) -> Result:
    """Without the cause of a failure, as not every exception can travel."""
    answer = failure = None
    if outcome.answer is not None:
        answer = outcome.answer.text
    if outcome.failure is not None:
        failure = f"{outcome.failure.kind}: {outcome.failure.message}"
    counts = (outcome.requests, outcome.tokens, worker)
    return Result(number, outcome.question, answer, failure, *counts)


@asynccontextmanager
async def openai_model(
    number: int, *, model: str, limits: Limits, base_url: str | None = None
) -> AsyncIterator[Ask]:
    """A worker's model. Without a `base_url`, as its own environment says.

    So no key travels, nor is stored in the cluster: OPENAI_API_KEY is set on each node.
    """
    key = "local" if base_url else None
    http = DefaultAioHttpClient(trust_env=base_url is None)
    async with AsyncOpenAI(base_url=base_url, api_key=key, http_client=http) as client:
        yield openai_ask(client, model, limits)


def cannot_begin(who: str, error: RayActorError) -> RuntimeError:
    """With the last line of a traceback from another machine."""
    return RuntimeError(f"{who} cannot begin: {str(error).strip().splitlines()[-1]}")


class WorkerGroup:
    """The actors of a job: `async with WorkerGroup(job) as group:`."""

    def __init__(self, job: Job) -> None:
        self.job = job
        name = f"limiter-{uuid4().hex}"
        actor: Any = ray.remote(RayLimiter)
        again = {"max_restarts": -1, "max_task_retries": -1}
        options = {"name": name, "num_cpus": 0, "max_concurrency": 10_000}
        self.limiter = actor.options(**options, **again).remote(job.limits)
        places = 2 * job.limits.concurrency  # as many may wait for their next try
        options = {"num_cpus": job.cpus, "max_concurrency": places + 10}
        again = {"max_restarts": RESTARTS, "max_task_retries": -1}
        actor = ray.remote(Worker).options(
            **options, **again, scheduling_strategy="SPREAD"
        )
        self.workers = [actor.remote(n, job, name) for n in range(job.workers)]
        self._places = places
        self._dead = set[int]()

    def places(self, workers: int) -> asyncio.Queue[int]:
        """Those of the first so many workers, by turns."""
        free: asyncio.Queue[int] = asyncio.Queue()
        for _ in range(self._places):
            for number in range(workers):
                free.put_nowait(number)
        return free

    async def ask(self, free: asyncio.Queue[int], numbered: tuple[int, str]) -> Result:
        """Ask whoever has a free place: a slow worker has fewer of them."""
        number, question = numbered
        worker = await free.get()
        try:
            answered: Result = await self.workers[worker].ask.remote(number, question)
        except RayTaskError as error:
            raise error.cause from None  # no model, or no journal: nothing will work
        except RayActorError as error:  # it died, and does not start again
            if error.actor_init_failed:
                raise cannot_begin("a worker", error) from None
            self._dead.add(worker)
            if len(self._dead) == len(self.workers):
                raise RuntimeError("all workers are dead") from None
            says = str(error).partition("\n")[0]
            return Result(number, question, failure=f"{type(error).__name__}: {says}")
        free.put_nowait(worker)
        return answered

    async def counts(self) -> Counts:
        counts: Counts = await self.limiter.counts.remote()
        return counts

    async def __aenter__(self) -> Self:
        try:
            await self.counts()
        except RayActorError as error:
            raise cannot_begin("the limiter", error) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ray ends an actor that nobody can reach any more."""
        with suppress(RayError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.limiter.close.remote()
                for worker in self.workers:
                    await worker.close.remote()
        self.workers.clear()
        del self.limiter


async def scale_out(
    questions: Iterable[tuple[int, str]], group: WorkerGroup, workers: int | None = None
) -> AsyncGenerator[Result, None]:
    """Yield the result of each question as it finishes.

    All workers of the group answer, or only the first `workers`. A question is pulled
    from `questions` when a worker has a free place.
    """

    async def pull() -> AsyncGenerator[tuple[int, str], None]:
        for numbered in questions:
            yield numbered

    free, pulled = group.places(workers or group.job.workers), pull()
    ask = partial(group.ask, free)
    run = map_bounded(pulled, ask, free.qsize(), in_order=False)
    try:
        async for result in run:
            yield result
    finally:
        await run.aclose()
        await pulled.aclose()
