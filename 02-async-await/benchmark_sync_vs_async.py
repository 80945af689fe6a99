"""
Four calls in flight are more than three times as fast as one, threads or asyncio.

Run:   python benchmark_sync_vs_async.py
Next:  python benchmark_transports.py
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from statistics import median

from openai import AsyncOpenAI, OpenAI

from racelab import LocalServer, local_server, result, start, table

IN_FLIGHT = 4  # at most, in "threads" and in "asyncio"
LATENCY = 0.03  # seconds: each answer takes exactly this long at the server
REPEATS = {1: 3, 4: 3, 20: 1, 200: 1}  # calls: how often; many average themselves
MESSAGES = [{"role": "user", "content": "Name one risk of our launch."}]
MakeCalls = Callable[[int], Awaitable[None]]  # makes that many calls
Cost = tuple[float, float]  # seconds, and seconds of CPU (the server has its own)


def one_at_a_time(client: OpenAI, calls: int) -> None:
    for _ in range(calls):
        client.chat.completions.create(model="local", messages=MESSAGES)


def in_threads(client: OpenAI, calls: int) -> None:
    ask = partial(client.chat.completions.create, model="local", messages=MESSAGES)
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        for call in [pool.submit(ask) for _ in range(calls)]:
            call.result()


async def bounded(client: AsyncOpenAI, calls: int) -> None:
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def ask() -> None:
        async with slots:  # all other calls wait here
            await client.chat.completions.create(model="local", messages=MESSAGES)

    await asyncio.gather(*(ask() for _ in range(calls)))


async def unbounded(client: AsyncOpenAI, calls: int) -> None:
    ask = partial(client.chat.completions.create, model="local", messages=MESSAGES)
    await asyncio.gather(*(ask() for _ in range(calls)))


@asynccontextmanager
async def open_ways(server: LocalServer) -> AsyncIterator[dict[str, MakeCalls]]:
    """A client for each, because idle connections of another would cost it time."""
    where = {"base_url": server.base_url, "api_key": server.api_key}
    sync = partial(OpenAI, **where, timeout=60, max_retries=0)
    new = partial(AsyncOpenAI, **where, timeout=60, max_retries=0)
    with sync() as alone, sync() as shared:
        async with new() as few, new() as many:
            yield {
                "one at a time": partial(asyncio.to_thread, one_at_a_time, alone),
                "threads": partial(asyncio.to_thread, in_threads, shared),
                "asyncio": partial(bounded, few),
                "unbounded": partial(unbounded, many),
            }


async def measure(way: MakeCalls, calls: int) -> Cost:
    begin, cpu = time.perf_counter(), time.process_time()
    await way(calls)
    return time.perf_counter() - begin, time.process_time() - cpu


async def compare(ways: dict[str, MakeCalls], calls: int) -> dict[str, Cost]:
    """Medians. The ways take turns, so that a slow moment strikes them all."""
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(REPEATS[calls]):
        for name, way in ways.items():
            costs[name].append(await measure(way, calls))
    return {
        name: (median(seconds for seconds, _ in runs), median(cpu for _, cpu in runs))
        for name, runs in costs.items()
    }


def speed(way: str, calls: int, seconds: float) -> str:
    """Calls per second, and the share of what the latency alone would allow."""
    in_flight = {"one at a time": 1, "unbounded": calls}.get(way, IN_FLIGHT)
    ideal = calls / in_flight * LATENCY if calls > in_flight else LATENCY
    return f"{calls / seconds:.0f} calls/s {ideal / seconds:4.0%}"


async def main() -> int:
    print("measuring, about 15 s", file=sys.stderr)
    rows = []
    with local_server(latency=LATENCY, spread=0) as server:
        async with open_ways(server) as ways:
            for way in ways.values():
                await way(IN_FLIGHT)  # warm up: imports, connections
            for calls in REPEATS:
                costs = await compare(ways, calls)
                rows.append((calls, *(speed(w, calls, costs[w][0]) for w in ways)))
    busy = (f"{cpu / seconds:.0%}" for seconds, cpu in costs.values())
    print(table(("calls", *ways), *rows, (f"CPU busy at {calls}", *busy)))
    gain = costs["one at a time"][0] / costs["asyncio"][0]
    return result(f"{calls} calls, {IN_FLIGHT} in flight: {gain:.1f}x one at a time")


if __name__ == "__main__":
    start(main)
