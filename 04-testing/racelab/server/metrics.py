"""What the server knows of one run, from one reset to the next: a reset starts anew."""

import asyncio
import time
from collections import Counter

from racelab.server.buckets import Limits
from racelab.server.completions import Answer
from racelab.settings import Settings, Stats


class Ledger:
    """The counts."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.cpu_before = time.process_time()
        self.received = self.answered = self.abandoned = 0
        self.connections_opened = self.chunks_sent = 0
        self.in_flight = self.largest_in_flight = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.refused: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.arrivals: list[float] = []

    def arrive(self) -> int:
        """The number of the call that has just arrived; the first is 1."""
        self.received += 1
        self.arrivals.append(round(time.perf_counter() - self.began, 6))
        return self.received

    def start(self) -> None:
        self.in_flight += 1
        self.largest_in_flight = max(self.largest_in_flight, self.in_flight)

    def finish(self) -> None:
        self.in_flight -= 1

    def bill(self, answer: Answer, share: float = 1.0) -> None:
        """Tokens are paid once generated, whether or not anybody reads them."""
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += round(answer.completion_tokens * share)

    def stats(self, connections_open: int) -> Stats:
        return Stats(
            received=self.received,
            answered=self.answered,
            abandoned=self.abandoned,
            refused=dict(self.refused),
            faults=dict(self.faults),
            connections_opened=self.connections_opened,
            connections_open=connections_open,
            in_flight=self.in_flight,
            largest_in_flight=self.largest_in_flight,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            chunks_sent=self.chunks_sent,
            answers=dict(self.answers),
            arrivals=tuple(self.arrivals),
            cpu_seconds=time.process_time() - self.cpu_before,
        )


class Run:
    """A call belongs to the run in which it arrived, so calls that are still in flight
    after a reset never disturb the new counts."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger()
        self.limits: dict[str, Limits] = {}
        self.over = asyncio.Event()

    def limits_of(self, key: str) -> Limits:
        if key not in self.limits:
            self.limits[key] = Limits(self.settings, time.perf_counter())
        return self.limits[key]
