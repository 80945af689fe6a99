"""Ctrl-C and SIGTERM: the first lets what is in flight finish, the second does not."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .team import Team


class Shutdown:
    """Whether a signal came; `status` is the exit status that says so, or 0."""

    signal: int | None = None

    @property
    def status(self) -> int:
        return 0 if self.signal is None else 128 + self.signal


@contextmanager
def stop_on_signals(team: Team, grace: float = 5.0) -> Iterator[Shutdown]:
    """Drain the team for `grace` seconds on SIGINT or SIGTERM; on the next, cancel it.

    For the main thread, within the running loop. On Windows only Ctrl-C is a signal.
    """
    loop, stop = asyncio.get_running_loop(), Shutdown()

    def act(number: int) -> None:
        if stop.signal is None:
            stop.signal = number
            team.drain(grace)
        else:
            team.cancel()

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(act, number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, on_signal) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
