"""What happens, as it happens: an observer is any callable that takes an `Event`."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .results import Outcome

KINDS = ("queued", "sent", "refused", "retried", "answered", "failed", "paused")


@dataclass(frozen=True, slots=True)
class Event:
    """`paused` is the whole team's, all others are one question's."""

    kind: str  # one of KINDS
    question: str
    at: float  # seconds, by the loop's clock
    requests: int = 0  # requests sent for this question so far
    wait: float = 0.0  # seconds: refused, paused, and until it is retried
    detail: str = ""  # why it was refused, is retried, has failed
    outcome: Outcome | None = None  # answered, failed; None: who asked has given up


Observer = Callable[[Event], object]


class Summary:
    """Counts events: `summary["refused"]`, `summary.tokens`, `summary.open`."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.failures = Counter[str]()  # kind -> how many
        self.tokens = 0

    def __getitem__(self, kind: str) -> int:
        return self.counts[kind]

    def __call__(self, event: Event) -> None:
        self.counts[event.kind] += 1
        if event.outcome is not None:
            self.tokens += event.outcome.tokens
            if event.outcome.failure is not None:
                self.failures[event.outcome.failure.kind] += 1

    @property
    def open(self) -> int:
        """Questions that were begun and have not ended."""
        return self["queued"] - self["answered"] - self["failed"]

    def __str__(self) -> str:
        return ", ".join(f"{self[kind]} {kind}" for kind in KINDS if self[kind])


def log_to(logger: logging.Logger) -> Observer:
    """Failures as warnings, pauses and retries as info, the rest for debugging.

    Without the questions: they may be long, and private.
    """
    levels = {"failed": logging.WARNING, "paused": logging.INFO}
    levels |= {"retried": logging.INFO, "refused": logging.INFO}

    def log(event: Event) -> None:
        level = levels.get(event.kind, logging.DEBUG)
        says = "%s after %d requests, waits %.3f s %s"
        logger.log(level, says, event.kind, event.requests, event.wait, event.detail)

    return log


def all_of(*observers: Observer) -> Observer:
    """One observer that tells all of these."""

    def tell(event: Event) -> None:
        for observer in observers:
            observer(event)

    return tell
