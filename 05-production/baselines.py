"""
Four baselines that ask many questions, each measured in a process of its own.

All have the same questions, the same limits, the same guess of the tokens that a
question takes, and the SDK with `DefaultAioHttpClient` as its transport.

The benchmarks start this script as a child process: a job is a line of JSON on its
standard input, and the job's cost is a line on its standard output.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, NoReturn

import aiolimiter
import openai

from agents import Limits, Team, openai_ask
from racelab import LocalServer, ReaderError, Settings, Stats, guard

MODEL = "gpt-5.4-mini"
TRIES = 10  # by hand; refused ones count
BURST_SHARE = 0.5  # used by hand; with 1.0 of a burst, many requests are refused
PASSING = (408, 409, 429)  # and all from 500


def tokens_of(question: str) -> int:
    """A guess: four characters are a token; the answer is about as long as this."""
    return 40 + len(question) // 2


async def ask_sdk(client: openai.AsyncOpenAI, question: str) -> str:
    reply = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": question}]
    )
    return reply.choices[0].message.content or ""


async def gather(
    client: openai.AsyncOpenAI, questions: list[str], limits: Limits
) -> int:
    """All at once; whatever is refused is for the SDK, which tries three times."""
    asked = (ask_sdk(client, question) for question in questions)
    return count(await asyncio.gather(*asked, return_exceptions=True))


async def semaphore(
    client: openai.AsyncOpenAI, questions: list[str], limits: Limits
) -> int:
    """The same, with no more in flight than the limits say."""
    slots = asyncio.Semaphore(limits.concurrency)

    async def ask(question: str) -> str:
        async with slots:
            return await ask_sdk(client, question)

    return count(await asyncio.gather(*map(ask, questions), return_exceptions=True))


def count(answers: list[str | BaseException]) -> int:
    return sum(isinstance(answer, str) for answer in answers)


class ByHand:
    """What a good engineer writes in an afternoon: a semaphore, two limiters, retries.

    The pace is taken at the moment of sending, with the slot in hand; retries are in
    one place, outside the slot, with full jitter or as late as the server says.
    """

    def __init__(self, client: openai.AsyncOpenAI, limits: Limits) -> None:
        self.client = client.with_options(max_retries=0)
        self.slots = asyncio.Semaphore(limits.concurrency)
        self.requests = limiter(limits.rpm, limits.request_burst)
        self.tokens = limiter(limits.tpm, limits.token_burst)
        self.rng = Random()

    async def ask(self, question: str) -> str:
        for tried in range(TRIES):
            try:
                async with self.slots:
                    await self.pace(tokens_of(question))
                    return await ask_sdk(self.client, question)
            except (openai.APIError, json.JSONDecodeError) as error:
                if tried == TRIES - 1 or not may_pass(error):
                    raise
                backoff = self.rng.uniform(0, min(30, 0.5 * 2**tried))
                wait = max(backoff, retry_after(error))
            await asyncio.sleep(wait)
        raise AssertionError("never here")

    async def pace(self, tokens: float) -> None:
        if self.requests is not None:
            await self.requests.acquire()
        if self.tokens is not None:
            await self.tokens.acquire(min(tokens, self.tokens.max_rate))


def limiter(
    per_minute: float | None, burst: float | None
) -> aiolimiter.AsyncLimiter | None:
    if per_minute is None or burst is None:
        return None
    size = BURST_SHARE * burst
    return aiolimiter.AsyncLimiter(size, size / per_minute * 60)


def may_pass(error: Exception) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in PASSING or error.status_code >= 500
    return True  # no connection, no answer in time, or none that can be read


def retry_after(error: Exception) -> float:
    if isinstance(error, openai.APIStatusError):
        headers = error.response.headers
        return float(headers.get("retry-after", 0))  # seconds
    return 0.0


async def by_hand(
    client: openai.AsyncOpenAI, questions: list[str], limits: Limits
) -> int:
    ask = ByHand(client, limits).ask
    return count(await asyncio.gather(*map(ask, questions), return_exceptions=True))


async def agents(
    client: openai.AsyncOpenAI, questions: list[str], limits: Limits
) -> int:
    ask = openai_ask(client, MODEL, limits)
    async with Team(ask, limits, estimate=tokens_of) as team:
        run = team.run(questions)
        return sum([outcome.answer is not None async for outcome in run])


Baseline = Callable[[openai.AsyncOpenAI, list[str], Limits], Awaitable[int]]
BARE = "the SDK as it comes"  # on its default transport
BASELINES: dict[str, Baseline] = {
    "gather": gather,
    "gather + semaphore": semaphore,
    "by hand": by_hand,
    "agents": agents,
    BARE: semaphore,
}


@dataclass(frozen=True)
class Cost:
    """What a job has cost its process."""

    answered: int
    seconds: float
    cpu: float  # seconds
    memory: float  # MiB, at most, beyond what there was before; 0 on Windows


async def work(name: str) -> None:
    """The child's side: one job after another, until there are no more."""
    transport = None if name == BARE else openai.DefaultAioHttpClient()
    client = openai.AsyncOpenAI(
        base_url=sys.stdin.readline().strip(), api_key="local", http_client=transport
    )
    async with client:
        await client.models.list()  # warm up: imports, a connection
        print("{}", flush=True)
        gc.freeze()  # what is imported need not be searched for garbage
        while line := sys.stdin.readline():
            job = json.loads(line)
            limits = Limits(**job["limits"])
            patient = client.with_options(timeout=limits.timeout)
            before, begin, cpu = peak(), time.perf_counter(), time.process_time()
            answered = await BASELINES[name](patient, job["questions"], limits)
            seconds = time.perf_counter() - begin
            cpu, memory = time.process_time() - cpu, peak() - before
            cost = Cost(answered, seconds, cpu, memory)
            print(json.dumps(asdict(cost)), flush=True)


def peak() -> float:
    """MiB of memory that this process has had at most."""
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


@dataclass(frozen=True)
class Seen:
    """What a job has cost its process, and what the server has seen of it."""

    asked: int
    cost: Cost
    stats: Stats

    @property
    def refused(self) -> int:
        return self.stats.refused.get("429", 0)

    @property
    def lost(self) -> int:
        return self.asked - self.cost.answered

    @property
    def again(self) -> int:
        """Answers that were delivered, and paid, more than once."""
        return sum(times - 1 for times in self.stats.answers.values())

    @property
    def cpu(self) -> float:
        """Milliseconds for each question."""
        return self.cost.cpu / self.asked * 1000


def times(number: int) -> str:
    """A count that differs from run to run."""
    return f"{number:,}x"


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}"


class BaselineProcess:
    """A child process that runs one baseline."""

    def __init__(self, name: str) -> None:
        """Start it. It goes on starting while others are started."""
        self.name, self.knows_server = name, False
        self.process = subprocess.Popen(
            [sys.executable, __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def ask(
        self,
        questions: list[str],
        limits: Limits,
        server: LocalServer,
        settings: Settings,
    ) -> Seen:
        """Let it ask them all, on a fresh server. Raises `ReaderError` if it ends."""
        if not self.knows_server:
            self.send(server.base_url)
            self.knows_server = self.receive() == {}
        server.reset(settings)
        self.send(json.dumps({"questions": questions, "limits": asdict(limits)}))
        return Seen(len(questions), Cost(**self.receive()), server.stats())

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: then it gives no answer
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ReaderError(f"{self.name}: its process has ended")
        values: dict[str, Any] = json.loads(line)
        return values

    def close(self) -> None:
        self.process.kill()
        with contextlib.suppress(OSError), self.process:  # closes pipes, waits
            pass


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ReaderError(message)


def wants_full(description: str | None) -> bool:
    """Whether `--full` is on the command line."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=description, formatter_class=shape, allow_abbrev=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--short", action="store_true", help="about 15 s (the default)")
    which.add_argument("--full", action="store_true", help="all of it, some minutes")
    return bool(parser.parse_args().full)


@contextmanager
def children(*names: str) -> Iterator[dict[str, BaselineProcess]]:
    """Start a process for each baseline, and end them all, whatever happens."""
    started = {name: BaselineProcess(name) for name in names}
    try:
        yield started
    finally:
        for child in started.values():
            child.close()


if __name__ == "__main__":
    guard.install_if_asked()
    with contextlib.suppress(KeyboardInterrupt):  # the parent says so
        asyncio.run(work(sys.argv[1]))
