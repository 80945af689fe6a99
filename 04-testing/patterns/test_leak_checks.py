"""Count what is held before and after: tasks, slots, connections.

A leak breaks nothing in the run that has it. It breaks the run that finds no slot left,
in production, on a Friday. So the test looks at what is still held when the code under
test has returned, because it must be what was held before.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from racelab import Ask
from racelab.pytest.wait_until import until
from racelab.server import serve

SLOTS = 3
Code = Callable[[asyncio.Semaphore, Ask], Awaitable[str]]


async def free(slots: asyncio.Semaphore) -> int:
    """Take all slots that are free without waiting, and return their number."""
    taken = 0
    while not slots.locked():
        await slots.acquire()
        taken += 1
    return taken


async def leaky(slots: asyncio.Semaphore, ask: Ask) -> str:
    await slots.acquire()
    answer = await ask("Ready?")
    slots.release()  # not reached when the call fails
    return answer


async def tidy(slots: asyncio.Semaphore, ask: Ask) -> str:
    async with slots:
        return await ask("Ready?")


@pytest.mark.parametrize(("code", "left"), [(leaky, SLOTS - 1), (tidy, SLOTS)])
async def test_only_a_with_returns_the_slot_after_failure(
    code: Code, left: int
) -> None:
    async def down(question: str) -> str:
        raise ConnectionError(question)

    slots = asyncio.Semaphore(SLOTS)
    with pytest.raises(ConnectionError):
        await code(slots, down)
    assert await free(slots) == left


async def first_answer(fast: Ask, slow: Ask) -> str:
    calls = [asyncio.ensure_future(ask("Ready?")) for ask in (fast, slow)]
    try:
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for call in calls:
            call.cancel()
        await asyncio.wait(
            calls
        )  # `cancel` only asks: this waits until they have ended


async def test_the_first_answer_leaves_no_task_behind() -> None:
    async def answers(question: str) -> str:
        return "Yes."

    async def never_answers(question: str) -> str:
        await asyncio.Event().wait()
        return "Never."

    before = asyncio.all_tasks()
    assert await first_answer(answers, never_answers) == "Yes."
    assert asyncio.all_tasks() == before


async def test_a_closed_client_leaves_no_connection_behind() -> None:
    plain = DefaultAsyncHttpxClient(verify=False, trust_env=False)
    async with serve() as server:
        url = server.base_url
        async with AsyncOpenAI(
            base_url=url, api_key="any", http_client=plain
        ) as client:
            await client.models.list()
            assert server.stats().connections_open == 1
        await until(server, connections_open=0)  # as the server sees it
