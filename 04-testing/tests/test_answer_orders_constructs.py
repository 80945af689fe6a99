"""Each construct of asyncio: the same orders and the same schedule on every Python."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from racelab import Ask
from racelab.explore import explore, replay

Log = list[str]
Program = Callable[[Ask], Coroutine[Any, Any, Log]]


async def agent(name: str, ask: Ask, log: Log, calls: int = 1) -> None:
    for _ in range(calls):
        await ask(name)
        log.append(name)


async def with_task_group(ask: Ask) -> Log:
    log = Log()
    async with asyncio.TaskGroup() as team:
        for name in "abc":
            team.create_task(agent(name, ask, log), name=name)
    return log


async def with_gather(ask: Ask) -> Log:
    log = Log()
    await asyncio.gather(*(agent(name, ask, log) for name in "abc"))
    return log


async def with_wait(ask: Ask) -> Log:
    log = Log()
    tasks = [asyncio.create_task(agent(name, ask, log)) for name in "abc"]
    done, others = await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
    log.append(f"{len(done)} done")
    await asyncio.wait(others)
    return log


async def with_as_completed(ask: Ask) -> Log:
    log = Log()
    tasks = [asyncio.create_task(agent(name, ask, log)) for name in "abc"]
    for finished in asyncio.as_completed(tasks):  # coroutines: in the order of a set
        await finished
        log.append("-")
    return log


async def with_timeout(ask: Ask) -> Log:
    log = Log()

    async def patient(name: str) -> None:
        try:
            async with asyncio.timeout(1):
                await agent(name, ask, log, 2)
        except TimeoutError:
            log.append("late")

    await asyncio.gather(patient("a"), agent("b", ask, log))
    return log


async def with_wait_for(ask: Ask) -> Log:
    log = Log()
    try:
        await asyncio.wait_for(agent("a", ask, log, 2), timeout=1)
    except TimeoutError:
        log.append("late")
    return log


async def with_lock(ask: Ask) -> Log:
    log, lock = Log(), asyncio.Lock()

    async def one(name: str) -> None:
        await ask(name)
        log.append(f"{name} comes")
        async with lock:
            await agent(name, ask, log)

    await asyncio.gather(one("a"), one("b"))
    return log


async def with_semaphore(ask: Ask) -> Log:
    log, slots = Log(), asyncio.Semaphore(2)

    async def one(name: str) -> None:
        async with slots:
            await agent(name, ask, log)

    await asyncio.gather(*map(one, "abcd"))
    return log


async def with_condition(ask: Ask) -> Log:
    log, changed = Log(), asyncio.Condition()

    async def reader() -> None:
        async with changed:
            await changed.wait_for(lambda: len(log) >= 2)
            log.append("read")

    async def writer(name: str) -> None:
        await ask(name)
        async with changed:
            log.append(name)
            changed.notify_all()

    await asyncio.gather(reader(), *map(writer, "abc"))
    return log


async def with_queue(ask: Ask) -> Log:
    log, queue = Log(), asyncio.Queue[str]()

    async def worker(name: str) -> None:
        while True:
            item = await queue.get()
            await ask(name)
            log.append(name + item)
            queue.task_done()

    workers = [asyncio.create_task(worker(name), name=name) for name in "ab"]
    for item in "123":
        queue.put_nowait(item)
    await queue.join()
    for task in workers:
        task.cancel()
    return log


async def with_event(ask: Ask) -> Log:
    log, go = Log(), asyncio.Event()

    async def waits(name: str) -> None:
        await go.wait()
        await agent(name, ask, log)

    async def starts() -> None:
        await agent("s", ask, log)
        go.set()

    await asyncio.gather(waits("a"), waits("b"), starts())
    return log


async def with_barrier(ask: Ask) -> Log:
    log, all_here = Log(), asyncio.Barrier(2)

    async def one(name: str) -> None:
        await agent(name, ask, log)
        await all_here.wait()
        await agent(name.upper(), ask, log)

    await asyncio.gather(one("a"), one("b"))
    return log


async def with_shield(ask: Ask) -> Log:
    log = Log()
    inner = asyncio.create_task(agent("a", ask, log, 2), name="inner")
    try:
        async with asyncio.timeout(1):
            await asyncio.shield(inner)
    except TimeoutError:
        log.append("late")
    await inner
    return log


async def with_async_generators(ask: Ask) -> Log:
    log = Log()

    async def stream(name: str) -> AsyncIterator[str]:
        try:
            for number in "123":
                await ask(name)
                yield name + number
        finally:
            log.append(f"{name} closed")

    async def one(name: str) -> None:
        async for chunk in stream(name):
            log.append(chunk)
            if chunk.endswith("2"):
                break  # the rest of the stream is left to asyncio

    await asyncio.gather(one("a"), one("b"))
    await asyncio.sleep(0)
    return log


async def with_eager_tasks(ask: Ask) -> Log:
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    log = Log()
    await asyncio.gather(*(agent(name, ask, log) for name in "abc"))
    return log


async def with_sleep(ask: Ask) -> Log:
    log = Log()

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        log.append(name)

    await asyncio.gather(sleeper("z", 2), sleeper("y", 1), agent("a", ask, log))
    return log


async def with_busy_waiting(ask: Ask) -> Log:
    log = Log()
    task = asyncio.create_task(agent("a", ask, log), name="a")
    while not task.done():  # noqa: ASYNC110 - the point
        await asyncio.sleep(0)
    return log


ORDERS: dict[Program, tuple[int, str]] = {  # how many, and the last of them
    with_task_group: (6, "c#1 b#1 a#1"),
    with_gather: (6, "agent-3#1 agent-2#1 agent-1#1"),
    with_wait: (6, "agent-3#1 agent-2#1 agent-1#1"),
    with_as_completed: (6, "agent-3#1 agent-2#1 agent-1#1"),
    with_timeout: (8, "clock#1 agent-1#1"),
    with_wait_for: (3, "clock#1"),
    with_lock: (4, "one-2#1 one-2#2 one-1#1 one-1#2"),
    with_semaphore: (8, "one-2#1 one-3#1 one-4#1 one-1#1"),
    with_condition: (6, "writer-3#1 writer-2#1 writer-1#1"),
    with_queue: (4, "b#1 b#2 a#1"),
    with_event: (2, "starts-1#1 waits-2#1 waits-1#1"),
    with_barrier: (4, "one-2#1 one-1#1 one-2#2 one-1#2"),
    with_shield: (3, "clock#1 inner#1 inner#2"),
    with_async_generators: (6, "one-2#1 one-2#2 one-1#1 one-1#2"),
    with_eager_tasks: (6, "agent-3#1 agent-2#1 agent-1#1"),
    with_sleep: (3, "clock#1 clock#2 agent-1#1"),
    with_busy_waiting: (1, "a#1"),
}


@pytest.mark.parametrize("run", ORDERS)
def test_the_same_orders_on_every_python(run: Program) -> None:
    orders, _ = ORDERS[run]
    report = explore(run)
    assert (report.runs, report.exhausted) == (orders, True)
    assert str(report) == f"all {orders} orders hold"


@pytest.mark.parametrize("run", ORDERS)
def test_the_same_schedule_fails_on_every_python_and_replays(run: Program) -> None:
    """Whatever comes out last, and in no order before, is forbidden."""
    orders, last = ORDERS[run]
    logs = list[Log]()
    explore(run, logs.append)
    assert len(logs) == orders

    def invariant(log: Log) -> bool:
        return log != logs[-1]

    assert logs.index(logs[-1]) == orders - 1
    found = explore(run, invariant)
    assert found.failing is not None
    assert (found.kind, found.runs) == ("invariant", orders)
    assert last.startswith(found.failing)  # the rest is first in, first out
    for schedule in (last, found.failing):
        again = replay(run, schedule, invariant)
        assert (again.kind, again.timeline) == ("invariant", found.timeline)


def test_hundreds_of_turns_are_no_livelock() -> None:
    async def run(ask: Ask) -> None:
        for _ in range(500):
            await asyncio.sleep(0)
        await ask("?")

    assert explore(run).exhausted
