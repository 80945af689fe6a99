"""`ask_together()`: a barrier in front of the model makes a race of threads certain."""

import threading
from collections.abc import Callable

from racelab.model import SyncAsk
from racelab.reader_error import ReaderError

PATIENCE = 10.0  # seconds that an agent waits for the others to ask


class NotTogether(ReaderError):
    """Not all agents asked: one waits for something that another one holds."""


def ask_together(
    ask: SyncAsk, agents: int, watch: Callable[[], object] | None = None
) -> SyncAsk:
    """`ask` for `agents` threads: no question goes out before all of them have one.

    Threads may take turns at any moment; this makes it the worst one, on every run:
    whatever an agent does before it asks, all have done before anyone is answered. It
    holds for each round of questions. `watch` is called once a round, while all wait.
    Raises `NotTogether` when an agent is missing after PATIENCE seconds, and, in all
    threads, what the `ask` or the `watch` of one of them raises.
    """
    failures: list[Exception] = []

    def look() -> None:
        try:
            if watch is not None:
                watch()
        except Exception as error:
            failures.append(error)
            raise

    barrier = threading.Barrier(agents, look, PATIENCE)

    def together(question: str) -> str:
        try:
            barrier.wait()
            return ask(question)
        except threading.BrokenBarrierError:
            if failures:
                raise failures[0] from None
            raise NotTogether(
                f"not all of {agents} agents asked within {PATIENCE:g} s: does one "
                "hold a lock while it asks, and do the others wait for it?"
            ) from None
        except Exception as error:
            failures.append(error)
            barrier.abort()
            raise

    return together
