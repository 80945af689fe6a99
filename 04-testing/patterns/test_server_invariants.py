"""Let the server be the witness: check what arrived, not what the client believes.

Calls of a mock are not requests, because retries, timeouts and connections are made
below it. You can ask a local server that counts. An invariant holds in every run, with
trouble and without: nothing lost, nothing done twice, never more at once than allowed.
"""

import asyncio
from collections import Counter

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from racelab import Fault, LocalServer, Settings

AT_ONCE = 4
QUESTIONS = [f"What is risk number {number}?" for number in range(30)]
TROUBLE = Fault("503", probability=0.3, retry_after=0.001)


async def ask_all(client: AsyncOpenAI) -> int:
    """The code under test: at most four calls at a time. Gives the answers received."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def ask(question: str) -> str:
        async with slots:
            answer = await client.chat.completions.create(
                model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
            )
            return answer.choices[0].message.content or ""

    return len(await asyncio.gather(*map(ask, QUESTIONS)))


@pytest.mark.parametrize("faults", [(), (TROUBLE,)], ids=["calm", "trouble"])
async def test_nothing_is_lost_and_the_bound_is_kept(
    faults: tuple[Fault, ...], model_server: LocalServer
) -> None:
    model_server.reset(Settings(latency=0.002, faults=faults))
    async with AsyncOpenAI(
        base_url=model_server.base_url,
        api_key=model_server.api_key,
        max_retries=10,
        http_client=DefaultAsyncHttpxClient(verify=False, trust_env=False),
    ) as client:
        received = await ask_all(client)
    stats = model_server.stats()
    refused = sum(stats.refused.values())
    assert received == len(QUESTIONS)
    assert stats.answers == Counter(QUESTIONS)  # each of them, and each once
    assert stats.received == stats.answered + refused  # nothing else was sent
    assert stats.largest_in_flight <= AT_ONCE
    assert stats.connections_opened <= AT_ONCE
    assert (refused > 0) == bool(faults)  # the trouble did happen
