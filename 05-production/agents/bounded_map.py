"""A bounded worker pool: memory does not grow with the number of items."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def map_bounded(
    items: AsyncGenerator[T, None],
    work: Callable[[T], Awaitable[R]],
    workers: int,
    in_order: bool,
) -> AsyncGenerator[R, None]:
    """Yield `await work(item)` for each item, as it finishes or `in_order`.

    Backpressure: at most `workers` items are in work and as many results wait, so a
    slow consumer slows the workers down. `in_order` has head-of-line blocking: one slow
    item holds up the others. An error of `work` is raised here at once, an error of
    `items` after the last result. Nothing is left running.
    """
    results: asyncio.Queue[asyncio.Future[R] | None] = asyncio.Queue()
    room, pulling = asyncio.Semaphore(workers), asyncio.Lock()

    is_over = False  # because an agent can swallow the cancellation of its worker

    async def put(result: asyncio.Future[R]) -> None:
        if not is_over:
            await room.acquire()
        results.put_nowait(result)

    async def worker() -> None:
        with suppress(StopAsyncIteration):
            while not is_over:
                result = asyncio.Future[R]()
                async with pulling:
                    item = await anext(items)
                    if in_order:
                        await put(result)
                try:
                    result.set_result(await work(item))
                except asyncio.CancelledError:
                    result.cancel()
                    raise
                except Exception as error:
                    result.set_exception(error)
                    result.exception()  # so asyncio does not log it as lost
                if not in_order:
                    await put(result)

    tasks = [asyncio.create_task(worker()) for _ in range(workers)]
    for task in tasks:
        task.add_done_callback(lambda _: results.put_nowait(None))
    try:
        while workers:
            if (result := await results.get()) is None:
                workers -= 1
            else:
                room.release()
                yield await result
        for task in tasks:
            await task
    finally:
        is_over = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await items.aclose()
