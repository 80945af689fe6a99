"""A barrier in the fake: all threads are inside before anyone goes on.

Threads are switched when the system likes. A barrier in front of the model takes the
worst moment instead, on every run, without a sleep: whatever an agent does before it
asks, all have done before anyone is answered. `racelab.ask_together` is such a barrier.

A barrier proves the one race that you have thought of. To search for others, let a tool
choose the switches: `racelab.explore.threads` here, or frontrun
(https://pypi.org/project/frontrun/).
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from racelab import SyncAsk, ask_together

AGENTS, RUNS = 4, 100


class Usage:
    """Words that the agents have been answered."""

    def __init__(self) -> None:
        self.words = 0
        self.lock = threading.Lock()

    def racy(self, question: str, ask: SyncAsk) -> None:
        self.words += len(ask(question).split())  # reads `words` before it asks

    def right(self, question: str, ask: SyncAsk) -> None:
        words = len(ask(question).split())
        with self.lock:
            self.words += words


def answer(question: str) -> str:
    return "Yes, but."


@pytest.mark.parametrize(("method", "counted"), [("racy", 2), ("right", 2 * AGENTS)])
def test_usage_read_before_the_call_is_lost(method: str, counted: int) -> None:
    for _ in range(RUNS):
        usage, ask = Usage(), ask_together(answer, AGENTS)
        with ThreadPoolExecutor(AGENTS) as pool:
            for _ in range(AGENTS):
                pool.submit(getattr(usage, method), "Ready?", ask)
        assert usage.words == counted
