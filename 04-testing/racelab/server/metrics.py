"""What the server counts from one reset to the next."""

import asyncio
import time
from collections import Counter

from racelab.server.buckets import KeyLimits
from racelab.server.completions import Completion
from racelab.settings import Settings, Stats

LONGEST_QUESTION = 2_000  # characters of a question that the counts keep


class Metrics:
    """The counts."""

    def __init__(self) -> None:
        self._began, self._cpu_before = time.perf_counter(), time.process_time()
        self.received = self.answered = self.abandoned = 0
        self.connections_opened = self.chunks_sent = 0
        self.in_flight = self.largest_in_flight = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.refused: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.arrivals: list[float] = []

    def arrive(self) -> int:
        """Count a call that has just arrived. Return its number, from 1."""
        self.received += 1
        self.arrivals.append(round(time.perf_counter() - self._began, 6))
        return self.received

    def start(self) -> None:
        self.in_flight += 1
        self.largest_in_flight = max(self.largest_in_flight, self.in_flight)

    def finish(self) -> None:
        self.in_flight -= 1

    def answer(self, question: str) -> None:
        self.answered += 1
        self.answers[question[:LONGEST_QUESTION]] += 1

    def bill(self, answer: Completion, share: float = 1.0) -> None:
        """Count the tokens that were generated, even if the client never reads them."""
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += round(answer.completion_tokens * share)

    def stats(self, connections_open: int) -> Stats:
        counts = {n: v for n, v in vars(self).items() if not n.startswith("_")}
        for name in ("refused", "faults", "answers"):
            counts[name] = dict(counts[name])
        counts["arrivals"] = tuple(self.arrivals)
        counts["cpu_seconds"] = time.process_time() - self._cpu_before
        return Stats(**counts, connections_open=connections_open)


class Epoch:
    """The time from one reset to the next.

    A call belongs to the epoch in which it arrived, so calls that are still in flight
    after a reset never disturb the new counts.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.limits: dict[str, KeyLimits] = {}
        self.over = asyncio.Event()

    def limits_of(self, key: str) -> KeyLimits:
        if key not in self.limits:
            self.limits[key] = KeyLimits(self.settings, time.perf_counter())
        return self.limits[key]
