"""`ask_together()`: a barrier in front of the model makes a race of threads certain."""

import threading
from collections.abc import Callable

from racelab.model import SyncAsk
from racelab.reader_error import ReaderError

ASK_TOGETHER_TIMEOUT = 10.0  # seconds that an agent waits for the others to ask


class NotTogether(ReaderError):
    """Not all agents asked, because one waits for something that another one holds."""


def ask_together(
    ask: SyncAsk, agents: int, watch: Callable[[], object] | None = None
) -> SyncAsk:
    """Return an `ask` for `agents` threads that sends no question before all have one.

    Threads may take turns at any moment. This barrier makes it the worst moment, on
    every run: all agents have done what they do before a question when the first one is
    answered. It holds for each round of questions. `watch` is called once a round,
    while all agents wait.

    Raises `NotTogether` when an agent is missing after ASK_TOGETHER_TIMEOUT seconds.
    What `ask` or `watch` raises in one thread is raised in all of them.
    """
    failures: list[Exception] = []

    def look() -> None:
        try:
            if watch is not None:
                watch()
        except Exception as error:
            failures.append(error)
            raise

    barrier = threading.Barrier(agents, look, ASK_TOGETHER_TIMEOUT)

    def together(question: str) -> str:
        try:
            barrier.wait()
            return ask(question)
        except threading.BrokenBarrierError:
            if failures:
                raise failures[0] from None
            raise NotTogether(
                f"not all of {agents} agents asked within {ASK_TOGETHER_TIMEOUT:g} s: "
                "does one hold a lock while it asks, and do the others wait for it?"
            ) from None
        except Exception as error:
            failures.append(error)
            barrier.abort()
            raise

    return together
