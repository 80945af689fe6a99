"""
Five calls at a time, and no more than the limit allows each second: none is refused.

Run:   python fixed_semaphore_is_not_a_rate.py
Next:  python broken_retry_herd.py
Real:  https://github.com/crewAIInc/crewAI/issues/494
"""

import asyncio
from collections import Counter
from functools import partial

from aiolimiter import AsyncLimiter
from openai import AsyncOpenAI, RateLimitError

from racelab import Ask, local_server, start, table, verdict

QUESTIONS = 12
SLOTS = 5  # calls in flight
RPM, BURST = 300, 6  # the account's limit, and how many may come at once after a rest


async def ask_model(client: AsyncOpenAI, question: str) -> str:
    reply = await client.chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
    )
    return reply.choices[0].message.content or ""


async def run(ask: Ask) -> Counter[str]:
    """Ask all questions, SLOTS at a time; give how many were answered and refused."""
    slots = asyncio.Semaphore(SLOTS)
    # RPM, with a bucket of half the BURST: so many go at once, then as it refills.
    # `AsyncLimiter(RPM, 60)` has the same rate and a bucket of 300: all go at once.
    pace = AsyncLimiter(BURST / 2, BURST / 2 / RPM * 60)

    async def ask_in_turn(number: int) -> str:
        # First the slot, then the pace: who is let out of the bucket sends at once.
        async with slots, pace:
            try:
                await ask(f"What is risk number {number}?")
            except RateLimitError:
                return "refused"
            return "answered"

    return Counter(await asyncio.gather(*map(ask_in_turn, range(QUESTIONS))))


async def main() -> int:
    with local_server(latency=0.02, spread=0, rpm=RPM, request_burst=BURST) as server:
        async with AsyncOpenAI(
            base_url=server.base_url,
            api_key=server.api_key,
            max_retries=0,  # so that each refusal is seen
        ) as client:
            await client.models.list()  # warm up: the first request is slow to start
            fates = await run(partial(ask_model, client))
        arrivals = server.stats().arrivals
    allowed = (QUESTIONS - BURST) / RPM * 60  # seconds from the first to the last
    sent = arrivals[-1] - arrivals[0]
    rows = [("the limit allows them in", allowed), ("they were sent within", sent)]
    print(table(*((what, f"{1000 * time:.0f} ms") for what, time in rows)))
    answered = fates["answered"]
    return verdict(
        answered == QUESTIONS, f"answered {answered} of {QUESTIONS} questions"
    )


if __name__ == "__main__":
    start(main)
