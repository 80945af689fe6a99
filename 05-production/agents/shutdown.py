"""Ctrl-C and SIGTERM: the first drains the team, the second cancels it."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .team import Team


class Shutdown:
    """The first signal that came, if any, and the exit status that reports it."""

    signal: int | None = None

    @property
    def status(self) -> int:
        return 0 if self.signal is None else 128 + self.signal


@contextmanager
def stop_on_signals(team: Team, grace: float = 5.0) -> Iterator[Shutdown]:
    """Drain the team for `grace` seconds on SIGINT or SIGTERM. Cancel it on the next.

    Use it in the main thread, within the running loop. Windows only has Ctrl-C.
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
