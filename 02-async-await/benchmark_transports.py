"""
100 calls at once cost the SDK half the CPU on aiohttp; one at a time, nobody notices.

Run:   python benchmark_transports.py
Next:  ../03-thread-safety/README.md
Real:  https://github.com/openai/openai-python/issues/1596
"""

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from statistics import median

import aiohttp
from openai import AsyncOpenAI, DefaultAioHttpClient

from racelab import LocalServer, local_server, result, start, table

LATENCY = 0.05  # seconds: each answer takes exactly this long at the server
WAVES = {1: 5, 10: 5, 100: 7, 500: 1}  # in flight: how often so many start together
DECISIVE = 100  # in flight: the row of the result
MESSAGES = [{"role": "user", "content": "Name one risk of our launch."}]
SendCall = Callable[[], Awaitable[str]]
Cost = tuple[float, float]  # of a call: seconds, and seconds of this process's CPU


async def ask_sdk(client: AsyncOpenAI) -> str:
    reply = await client.chat.completions.create(model="local", messages=MESSAGES)
    return reply.choices[0].message.content or ""


async def ask_bare(session: aiohttp.ClientSession, server: LocalServer) -> str:
    """The floor: no types, no retries, no errors; what a call costs at least."""
    url = f"{server.base_url}/chat/completions"
    body = {"model": "local", "messages": MESSAGES}
    headers = {"authorization": f"Bearer {server.api_key}"}
    async with session.post(url, json=body, headers=headers) as response:
        return str((await response.json())["choices"][0]["message"]["content"])


@asynccontextmanager
async def open_clients(server: LocalServer) -> AsyncIterator[dict[str, SendCall]]:
    where = {"base_url": server.base_url, "api_key": server.api_key}
    new = partial(AsyncOpenAI, **where, timeout=60, max_retries=0)
    async with (
        new() as default,
        new(http_client=DefaultAioHttpClient()) as on_aiohttp,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1000)) as session,
    ):
        yield {
            "SDK": partial(ask_sdk, default),
            "SDK on aiohttp": partial(ask_sdk, on_aiohttp),
            "bare aiohttp": partial(ask_bare, session, server),
        }


async def measure(ask: SendCall, in_flight: int) -> Cost:
    """One wave of calls, and what each of them costs."""
    begin, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask() for _ in range(in_flight)))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return seconds / in_flight, cpu / in_flight


async def compare(clients: dict[str, SendCall], in_flight: int) -> dict[str, Cost]:
    """Medians. The clients take turns, so that a slow moment strikes them all."""
    costs: dict[str, list[Cost]] = {name: [] for name in clients}
    for _ in range(WAVES[in_flight]):
        for name, ask in clients.items():
            costs[name].append(await measure(ask, in_flight))
    return {
        name: (median(seconds for seconds, _ in runs), median(cpu for _, cpu in runs))
        for name, runs in costs.items()
    }


async def measure_all() -> dict[int, dict[str, Cost]]:
    with local_server(latency=LATENCY, spread=0) as server:
        async with open_clients(server) as clients:
            for ask in clients.values():
                await ask()  # warm up: imports, a connection
            gc.freeze()  # what is imported need not be searched for garbage
            costs = {
                in_flight: await compare(clients, in_flight) for in_flight in WAVES
            }
            gc.unfreeze()
            return costs


def row(in_flight: int, name: str, costs: dict[str, Cost]) -> tuple[object, ...]:
    seconds, cpu = costs[name]
    numbers = (f"{cpu * 1000:.2f} ms", f"{cpu / seconds:.0%}")
    compared = costs["SDK"][0] / seconds
    return in_flight, name, *numbers, f"{1 / seconds:.0f} calls/s", f"{compared:.1f}x"


async def main() -> int:
    print("measuring, about 15 s", file=sys.stderr)
    costs = await measure_all()
    head = ("in flight", "client", "CPU per call", "CPU busy", "speed", "to the SDK")
    print(table(head, *(row(n, name, costs[n]) for n in costs for name in costs[n])))
    share = costs[DECISIVE]["SDK on aiohttp"][1] / costs[DECISIVE]["SDK"][1]
    says = f"at {DECISIVE} in flight the SDK takes {share:.2f}x the CPU on aiohttp"
    return result(says)


if __name__ == "__main__":
    start(main)
