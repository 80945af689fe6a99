"""
While agents wait for models, a lock, frozen values and a queue cost next to nothing.

Run:   python benchmark_team_state.py
Next:  python broken_counter.py
"""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from threading import Barrier, Thread
from types import ModuleType
from typing import Any

import broken_team_state
import fixed_team_state_immutable
import fixed_team_state_lock
import fixed_team_state_queue

from racelab import result, start, table

THREADS = (1, 2, 4, 8, 16, 32)
DESIGNS = {
    "lock": fixed_team_state_lock,
    "immutable": fixed_team_state_immutable,
    "queue": fixed_team_state_queue,
}
ANSWER = "Our rate limit is too low for so many agents."
WAIT = 0.002  # seconds until an answer, where there is a wait: low contention
UPDATES = {"low": 32, "high": 2048}  # contention: how many in one measurement
REPEATS = 3


class NoTimeline:
    """Drawing is not measured."""

    def mark(self, agent: str, what: str) -> None:
        pass


def ask_slowly(question: str) -> str:
    time.sleep(WAIT)
    return ANSWER


def ask_at_once(question: str) -> str:
    return ANSWER


@contextmanager
def owned(team: Any) -> Iterator[None]:
    """Run the owner of the team's record, in the design that has one."""
    if not hasattr(team, "own"):
        yield
        return
    owner = Thread(target=team.own, args=[NoTimeline()])
    owner.start()
    try:
        yield
    finally:
        team.inbox.put(None)
        owner.join()


def measure(design: ModuleType, threads: int, contention: str) -> float:
    """Updates per second of so many threads. Raises AssertionError if one is lost."""
    updates, team = UPDATES[contention], design.Team()
    ask = ask_slowly if contention == "low" else ask_at_once
    ready = Barrier(threads + 1)

    def work() -> None:
        ready.wait()
        for _ in range(updates // threads):
            design.research("agent", team, ask, NoTimeline())

    with ThreadPoolExecutor(threads) as pool:
        workers = [pool.submit(work) for _ in range(threads)]
        ready.wait()
        begin = time.perf_counter()
        with owned(team):
            for worker in workers:
                worker.result()
        seconds = time.perf_counter() - begin
    assert len(team.look().findings) == updates
    return updates / seconds


def compare(contention: str, threads: int) -> dict[str, float]:
    """Medians as multiples of one thread without protection. The designs take turns."""
    ratios: dict[str, list[float]] = {name: [] for name in DESIGNS}
    for _ in range(REPEATS):
        alone = measure(broken_team_state, 1, contention)
        for name, design in DESIGNS.items():
            ratios[name].append(measure(design, threads, contention) / alone)
    return {name: median(values) for name, values in ratios.items()}


def main() -> int:
    print("measuring, about 8 s", file=sys.stderr)
    ways, rows = list(DESIGNS), []
    measured: dict[str, dict[int, dict[str, float]]] = {}
    for contention in UPDATES:
        measured[contention] = {n: compare(contention, n) for n in THREADS}
    for n in THREADS:
        cells = [f"{measured[kind][n][way]:.2f}x" for kind in UPDATES for way in ways]
        rows.append((n, *cells))
    heads = [f"{kind}: {way}" for kind in UPDATES for way in ways]
    print(table(("threads", *heads), *rows))
    low = measured["low"][THREADS[-1]]
    high = [ratio for ratios in measured["high"].values() for ratio in ratios.values()]
    return result(
        f"{THREADS[-1]} threads that wait for models: {min(low.values()):.0f}x one; "
        f"threads that only update: {median(high):.1f}x (median)"
    )


if __name__ == "__main__":
    start(main)
