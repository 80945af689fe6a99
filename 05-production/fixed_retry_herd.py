"""
Forty agents wait as long as they are told to and a little longer: they come one by one.

Run:   python fixed_retry_herd.py
Next:  python broken_timeout.py
Real:  https://github.com/NousResearch/hermes-agent/pull/109234
"""

import asyncio
import math
from collections import Counter
from random import Random

from httpx2 import Request, Response
from openai import RateLimitError

from racelab import Ask, start, verdict
from racelab.explore import clock

AGENTS = 40
SPREAD = 2.0  # seconds over which they first ask, each at a moment of its own
OPENS = 10.0  # seconds: until then the account has used up its limit
AT_ONCE = 0.05  # seconds
ROOM = 10  # requests at once that the server can take


class Api:
    """Stands for the server, so that time can be virtual: ten seconds take none."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []

    async def ask(self, question: str) -> str:
        now = asyncio.get_running_loop().time()
        self.arrivals.append(now)
        if now >= OPENS:
            return "Yes."
        wait = {"retry-after-ms": str(math.ceil((OPENS - now) * 1000))}
        response = Response(429, headers=wait, request=Request("POST", "http://api"))
        raise RateLimitError("Rate limit reached", response=response, body=None)


async def research(agent: int, ask: Ask, rng: Random) -> str:
    await asyncio.sleep(rng.uniform(0, SPREAD))
    while True:
        try:
            return await ask(f"What does agent {agent} have to know?")
        except RateLimitError as refusal:
            wait = float(refusal.response.headers["retry-after-ms"]) / 1000
            # Never sooner than told, and later by a time that is mine alone.
            await asyncio.sleep(wait + rng.uniform(0, SPREAD))


async def run(ask: Ask, rng: Random) -> list[str]:
    team = (research(agent, ask, rng) for agent in range(AGENTS))
    return await asyncio.gather(*team)


def largest_crowd(arrivals: list[float]) -> int:
    """The most requests within AT_ONCE."""
    return max(sum(t <= x < t + AT_ONCE for x in arrivals) for t in arrivals)


def main() -> int:
    api = Api()
    clock.run(run(api.ask, Random(1)))  # seeded: each run is the same
    halves = Counter(math.floor(2 * moment) for moment in api.arrivals)
    for half, requests in sorted(halves.items()):
        print(f"{half / 2:4.1f} s  {'#' * requests} {requests}")
    after = largest_crowd([moment for moment in api.arrivals if moment >= OPENS])
    return verdict(after <= ROOM, f"{after} of {AGENTS} agents came back at once")


if __name__ == "__main__":
    start(main)
