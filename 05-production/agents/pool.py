"""Workers that pull: no more is begun than is wanted, whatever the number of items."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def work_through(
    items: AsyncIterator[T],
    work: Callable[[T], Awaitable[R]],
    workers: int,
    in_order: bool,
) -> AsyncGenerator[R, None]:
    """Yield `await work(item)` for each item, as they finish or in order.

    Backpressure: at most `workers` items are in work and as many results wait, so a
    slow consumer slows the workers down. In order, one slow item holds up the others.
    What `items` or `work` raises is raised here, and nothing is left running.
    """
    results: asyncio.Queue[asyncio.Future[R] | None] = asyncio.Queue(workers)
    pulling = asyncio.Lock()
    loop = asyncio.get_running_loop()
    at_work = workers

    async def worker() -> None:
        nonlocal at_work
        while True:
            result: asyncio.Future[R] = loop.create_future()
            is_in_line = False
            try:
                async with pulling:
                    item = await anext(items)
                    if in_order:
                        await results.put(result)
                        is_in_line = True
                result.set_result(await work(item))
            except StopAsyncIteration:
                break
            except asyncio.CancelledError:
                result.cancel()
                raise
            except Exception as error:
                result.set_exception(error)
            if not is_in_line:
                await results.put(result)
        at_work -= 1
        if not at_work:
            await results.put(None)

    tasks = [asyncio.create_task(worker()) for _ in range(workers)]
    try:
        while (result := await results.get()) is not None:
            yield await result
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
