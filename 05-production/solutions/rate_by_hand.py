"""
Exercise: five calls at a time, one every 200 ms and without a library: none is refused.

Run:   python solutions/rate_by_hand.py
Next:  the next exercise
"""

import asyncio
from collections import Counter
from functools import partial

from openai import AsyncOpenAI, RateLimitError

from racelab import Ask, local_server, start, table, verdict

QUESTIONS = 12
SLOTS = 5  # calls in flight
RPM, BURST = 300, 6  # the account's limit, and how many may come at once after a rest


class Spacer:
    """A token bucket that holds one: requests go a fixed gap apart."""

    def __init__(self, per_minute: float) -> None:
        self.gap = 60 / per_minute
        self.next = 0.0  # when the next request may be sent, by the loop's clock

    async def wait(self) -> None:
        now = asyncio.get_running_loop().time()
        mine = max(now, self.next)
        # Taken before the await: nobody else can run since we have read it.
        self.next = mine + self.gap
        await asyncio.sleep(mine - now)


async def ask_model(client: AsyncOpenAI, question: str) -> str:
    reply = await client.chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
    )
    return reply.choices[0].message.content or ""


async def run(ask: Ask) -> Counter[str]:
    """Ask all questions, SLOTS at a time; give how many were answered and refused."""
    slots = asyncio.Semaphore(SLOTS)
    spacer = Spacer(RPM)

    async def ask_in_turn(number: int) -> str:
        async with slots:
            await spacer.wait()
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
