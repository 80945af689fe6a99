"""Events as they happen. An observer is any callable that takes an `Event`."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .results import Outcome

KINDS = ("queued", "sent", "refused", "retried", "answered", "failed", "paused")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to one question, or (`paused`) to the whole team."""

    kind: str  # one of KINDS
    question: str
    at: float  # seconds, by the loop's clock
    requests: int = 0  # requests sent for this question so far
    wait: float = 0.0  # seconds: refused, paused, and until it is retried
    detail: str = ""  # why it was refused, is retried, has failed
    outcome: Outcome | None = None  # of an end. None: the caller has given up


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
        """Return how many questions have begun and not ended."""
        return self["queued"] - self["answered"] - self["failed"]

    def __str__(self) -> str:
        return ", ".join(f"{self[kind]} {kind}" for kind in KINDS if self[kind])


def log_to(logger: logging.Logger) -> Observer:
    """Log failures as warnings, pauses and retries as info, the rest for debugging.

    Questions are not logged, because they can be long or private.
    """
    levels = {"failed": logging.WARNING, "paused": logging.INFO}
    levels |= {"retried": logging.INFO, "refused": logging.INFO}

    def log(event: Event) -> None:
        level = levels.get(event.kind, logging.DEBUG)
        message = "%s after %d requests, waits %.3f s %s"
        logger.log(level, message, event.kind, event.requests, event.wait, event.detail)

    return log


def all_of(*observers: Observer) -> Observer:
    """Return one observer that passes each event on to all of these."""

    def notify(event: Event) -> None:
        for observer in observers:
            observer(event)

    return notify
