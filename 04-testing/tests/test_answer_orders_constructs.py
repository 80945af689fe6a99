"""Each construct of asyncio: the same orders and the same schedule on every Python.

And what is correct is never flagged, whatever it relies on that asyncio documents.
"""

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


# Correct programs


async def tasks_start_in_the_order_they_were_made(ask: Ask) -> None:
    log = list[int]()

    async def one(number: int) -> None:
        log.append(number)
        await ask("?")

    await asyncio.gather(*map(one, range(3)))
    assert log == [0, 1, 2]


async def call_soon_is_first_in_first_out(ask: Ask) -> None:
    loop, log = asyncio.get_running_loop(), list[int]()

    async def one(number: int) -> None:
        await ask("?")
        for step in range(3):
            loop.call_soon(log.append, 3 * number + step)

    await asyncio.gather(one(0), one(1))
    await asyncio.sleep(0)
    assert sorted(log) == list(range(6))
    assert [x for x in log if x < 3] == [0, 1, 2]


async def getters_of_a_queue_are_served_in_order(ask: Ask) -> None:
    queue, log = asyncio.Queue[int](), list[tuple[str, int]]()

    async def get(name: str) -> None:
        log.append((name, await queue.get()))

    async def put(items: range) -> None:
        await ask("?")
        for item in items:
            await queue.put(item)

    await asyncio.gather(*map(get, "abcd"), put(range(2)), put(range(2)))
    assert [name for name, _ in log] == list("abcd")


async def a_lock_is_fair(ask: Ask) -> None:
    lock, log = asyncio.Lock(), list[str]()

    async def one(name: str) -> None:
        async with lock:
            await ask("?")
            log.append(name)

    await asyncio.gather(*map(one, "abcd"))
    assert log == list("abcd")


async def a_condition_after_several_turns(ask: Ask) -> None:
    ready, changed = list[int](), asyncio.Condition()

    async def notify() -> None:
        await ask("?")
        for number in range(3):
            await asyncio.sleep(0)
            async with changed:
                ready.append(number)
                changed.notify_all()

    async def wait() -> int:
        async with changed:
            await changed.wait_for(lambda: len(ready) == 3)
            return len(ready)

    assert await asyncio.gather(wait(), wait(), notify(), ask("?"))


async def a_heartbeat_beats_until_the_work_is_done(ask: Ask) -> None:
    async def beat() -> None:
        while True:  # noqa: ASYNC110 - it beats
            await asyncio.sleep(1)

    heart = asyncio.create_task(beat())
    await asyncio.gather(ask("a"), ask("b"))
    heart.cancel()


async def hundreds_of_turns_without_a_pause(ask: Ask) -> None:
    for _ in range(500):
        await asyncio.sleep(0)
    await ask("?")


async def a_deadline_and_a_second_try(ask: Ask) -> None:
    for wait in (1, 2, 4):
        try:
            async with asyncio.timeout(wait):
                await ask("?")
                return
        except TimeoutError:
            await asyncio.sleep(wait)


async def a_task_that_nobody_waits_for(ask: Ask) -> None:
    background = asyncio.create_task(agent("b", ask, Log()))
    await ask("?")
    assert not background.cancelled()


async def all_failures_are_collected(ask: Ask) -> None:
    async def fails() -> None:
        await ask("?")
        raise ConnectionError

    outcomes = await asyncio.gather(fails(), fails(), return_exceptions=True)
    assert all(isinstance(outcome, ConnectionError) for outcome in outcomes)


async def a_cancelled_call(ask: Ask) -> None:
    call = asyncio.create_task(agent("a", ask, Log()))
    await ask("?")
    call.cancel()
    await asyncio.wait([call])


@pytest.mark.parametrize(
    "run",
    [
        tasks_start_in_the_order_they_were_made,
        call_soon_is_first_in_first_out,
        getters_of_a_queue_are_served_in_order,
        a_lock_is_fair,
        a_condition_after_several_turns,
        a_heartbeat_beats_until_the_work_is_done,
        hundreds_of_turns_without_a_pause,
        a_deadline_and_a_second_try,
        a_task_that_nobody_waits_for,
        all_failures_are_collected,
        a_cancelled_call,
    ],
)
def test_what_is_correct_is_never_flagged(
    run: Callable[[Ask], Coroutine[Any, Any, None]],
) -> None:
    report = explore(run)
    assert report.holds, str(report)
    assert report.exhausted
