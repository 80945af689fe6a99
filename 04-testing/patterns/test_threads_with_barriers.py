"""A barrier in the fake: all threads are inside before any of them goes on.

The system switches threads when it likes. A barrier in front of the model takes the
worst moment instead, on every run, without a sleep: all agents have done what they do
before a question when the first one is answered. `racelab.ask_together` is a barrier of
this kind.

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
