"""Run the same code in every order: of its answers, or of the lines of its threads.

Chapter 4 explains how it works.
"""

from racelab.explore import clock, threads
from racelab.explore.answer_orders import explore, for_every_order, replay
from racelab.explore.clock import CannotControl, Stuck
from racelab.explore.fault_injection import cancel_everywhere, fail_everywhere
from racelab.explore.search import CannotReplay, NotTheSame, SearchResult

__all__ = [
    "CannotControl",
    "CannotReplay",
    "NotTheSame",
    "SearchResult",
    "Stuck",
    "cancel_everywhere",
    "clock",
    "explore",
    "fail_everywhere",
    "for_every_order",
    "replay",
    "threads",
]
