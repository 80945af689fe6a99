"""
Several workers use up one shared limit and keep to it; one process does for most.

Run:   python -m beyond_one_machine.benchmark_scale_out  (needs Ray)
Next:  python -m beyond_one_machine.simulate_leases

Against the local model server, which counts: 1, 2 and 4 workers under one limit, and
then with none that binds, beside the same `agents` in this process, without Ray. All of
them, and the server, share the cores of this machine. "of the limit": of the
requests that the server allows in the time that these took: its bucket, which holds one
second's worth, and the rate. "leases": asked for, per call.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any
from uuid import uuid4

if __name__ == "__main__" and not __package__:  # started by its path
    module = "beyond_one_machine.benchmark_scale_out"
    print(f"error: from 05-production, run python -m {module}", file=sys.stderr)
    sys.exit(2)

from agents import Limits, RateLimiter, Team
from beyond_one_machine.leases import BATCH, LeasedRateLimiter
from beyond_one_machine.scale_out_ray import check_ray, open_cluster
from racelab import LocalServer, Settings, local_server, result, start, table

WORKERS = (1, 2, 4)
RATE, LIMITED_CALLS = 100, 600  # requests a second
CONCURRENT = 50
CALLS = 1_000  # without a limit
TAKES = 2_000
LIMITED = Limits(rpm=60 * RATE, concurrency=CONCURRENT)
NO_LIMIT = Limits(rpm=1e9, concurrency=CONCURRENT)
SERVER = Settings(latency=0.05)
Cells = tuple[object, ...]


@asynccontextmanager
async def open_group(server: LocalServer, limits: Limits) -> AsyncIterator[Any]:
    """Start the largest number of workers, and warm them up."""
    from beyond_one_machine.cluster import Job, WorkerGroup, openai_model

    ask = partial(openai_model, model="any", limits=limits, base_url=server.base_url)
    job = Job(limits=limits, open_ask=ask, workers=max(WORKERS), cpus=0)
    async with WorkerGroup(job) as group:
        server.reset(SERVER)
        await answer(group, max(WORKERS), 100)
        yield group


async def answer(group: Any, workers: int, calls: int) -> int:
    """Answer `calls` questions, and return how many leases that took."""
    from beyond_one_machine.cluster import scale_out

    before = (await group.counts()).leases
    questions = ((number, f"question {number}") for number in range(calls))
    assert all([each.answer async for each in scale_out(questions, group, workers)])
    return int((await group.counts()).leases - before)


def seconds(server: LocalServer) -> float:
    """From the first request to the last."""
    times = server.stats().arrivals
    return times[-1] - times[0]


async def here(server: LocalServer) -> float:
    """Requests a second of this process alone."""
    from beyond_one_machine.cluster import openai_model

    limits = Limits(concurrency=CONCURRENT)
    for calls in (20, CALLS):
        server.reset(SERVER)
        questions = (f"question {number}" for number in range(calls))
        async with (
            openai_model(
                0, model="any", limits=limits, base_url=server.base_url
            ) as ask,
            Team(ask, limits) as team,
        ):
            assert all([outcome.answer async for outcome in team.run(questions)])
    return CALLS / seconds(server)


async def microseconds(limiter: RateLimiter) -> float:
    for takes in (100, TAKES):
        begun = time.perf_counter()
        for _ in range(takes):
            await limiter.acquire(0)
    return (time.perf_counter() - begun) / TAKES * 1e6


async def price() -> tuple[float, float]:
    """Microseconds for a call to take its turn: from leases, and from this process."""
    import ray

    from beyond_one_machine.cluster import RayLimiter, RemoteLimiter

    name = uuid4().hex
    limiter: Any = ray.remote(RayLimiter)
    limiter = limiter.options(name=name, num_cpus=0).remote(NO_LIMIT)
    await limiter.counts.remote()
    remote = RemoteLimiter(name)
    async with LeasedRateLimiter(NO_LIMIT, remote, "benchmark") as leased_limiter:
        leased = await microseconds(leased_limiter)
        await limiter.close.remote()
        await remote.last
    return leased, await microseconds(RateLimiter(NO_LIMIT, Random()))


async def under_a_limit(server: LocalServer) -> list[Cells]:
    rows: list[Cells] = [("workers", "of the limit", "refused", "leases")]
    async with open_group(server, LIMITED) as group:
        for workers in WORKERS:
            await asyncio.sleep(1)  # until the limiter's bucket is full
            server.reset(replace(SERVER, rpm=LIMITED.rpm, request_burst=RATE))
            leases = await answer(group, workers, LIMITED_CALLS)
            share = LIMITED_CALLS / (RATE + RATE * seconds(server))
            refused = sum(server.stats().refused.values())
            cells = (f"{share:.2f}", refused, f"{leases / LIMITED_CALLS:.2f}")
            rows.append((f"{workers} under one limit", *cells))
    return rows


async def without(server: LocalServer) -> list[Cells]:
    rows: list[Cells] = [("workers", "calls/s", "of each")]
    alone = await here(server)
    rows.append(("no Ray, one process", f"{alone:.0f}", f"{alone:.0f}"))
    async with open_group(server, NO_LIMIT) as group:
        for workers in WORKERS:
            server.reset(SERVER)
            await answer(group, workers, CALLS)
            seen = CALLS / seconds(server)
            rows.append(
                (f"{workers} without a limit", f"{seen:.0f}", f"{seen / workers:.0f}")
            )
    return rows


async def measure(server: LocalServer) -> tuple[list[Cells], list[Cells], Any]:
    return await under_a_limit(server), await without(server), await price()


def main() -> int:
    check_ray()  # before the server starts
    print("measuring, about 40 s", file=sys.stderr)
    with local_server() as server, open_cluster(None, max(WORKERS)):
        limited, free, (leased, own) = asyncio.run(measure(server))
    print(table(*limited), table(*free), sep="\n\n")
    print(
        f"\nA turn costs {leased:.0f} us from leases of {BATCH}, {own:.0f} us without."
    )
    print(f"{os.cpu_count()} cores, shared with the server and Ray.\n")
    refused = sum(int(str(row[2])) for row in limited[1:])
    return result(
        f"{max(WORKERS)} workers use {limited[-1][1]} of one limit, {refused} refused; "
        f"one process without Ray sends {free[1][1]} calls/s"
    )


if __name__ == "__main__":
    start(main)
