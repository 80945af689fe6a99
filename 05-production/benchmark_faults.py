"""
One request in eleven fails, hangs or is garbled: nothing is lost, little time is.

Run:   python benchmark_faults.py  (with --full: 1,000 questions, three times)
Next:  python benchmark_memory.py

The four of `baselines.py`, and `agents` with a hedge: a request that takes long is sent
once more, and the first answer counts. Ideal is what the limit allows if nothing fails.
The bound is what a perfect client takes that never waits longer than it is told to, if
it does not hedge: mostly, it waits for the last request that hangs.
"""

import heapq
import sys
from dataclasses import replace
from statistics import median
from typing import NamedTuple

from agents import Limits
from baselines import Seen, children, share, times, wants_full
from racelab import Fault, Settings, local_server, result, start, table

LATENCY = 0.1  # seconds, half as much to half as much again
HEDGE = 0.3  # seconds: twice as long as the slowest answer
COMPARED = ("gather", "gather + semaphore", "by hand", "agents")
HEDGED = "agents, hedged"


class Size(NamedTuple):
    questions: int
    rate: int  # requests a second
    burst: int  # requests at once, after a rest
    timeout: float  # seconds for one try; a 503 asks for half of that before the next
    seeds: tuple[int, ...]  # each strikes other calls


# So that it takes 15 s: the same in half the time, and the end weighs more.
SHORT = Size(400, 200, 100, 1.0, (0,))
FULL = Size(1000, 100, 100, 2.0, (0, 1, 2))


def settings_of(size: Size, seed: int) -> Settings:
    faults = (
        Fault("500", 0.025),
        Fault("503", 0.025, retry_after=size.timeout / 2),
        Fault("reset", 0.02),
        Fault("hang", 0.01),
        Fault("malformed", 0.01),
    )
    pace = {"rpm": 60.0 * size.rate, "request_burst": float(size.burst)}
    return Settings(latency=LATENCY, faults=faults, seed=seed, **pace)


def limits_of(size: Size) -> Limits:
    return Limits(
        concurrency=50,
        rpm=60.0 * size.rate,
        request_burst=float(size.burst),
        timeout=size.timeout,
        tries=8,  # of 1,000 questions, some fail four times
    )


def bound(size: Size, settings: Settings) -> float:
    """Seconds that the faults of this seed cost anybody who does not hedge."""
    costs = {"500": 0.0, "503": size.timeout / 2, "reset": 0.0, "hang": size.timeout}
    again: list[float] = []  # when those that have failed may be sent again
    now = end = 0.0
    fresh, call = size.questions, 0
    while fresh or again:
        call += 1
        now = max(now, (call - size.burst) / size.rate)
        if fresh and not (again and again[0] <= now):
            fresh -= 1
        else:
            now = max(now, heapq.heappop(again))
        fault = settings.fault_for(call, "")
        back = now + costs.get(fault.kind if fault else "", LATENCY)
        if fault:
            heapq.heappush(again, back)
        end = max(end, back)
    return end


def measure(size: Size) -> tuple[dict[str, list[Seen]], list[float]]:
    """Return what each baseline has cost for each seed, and the bounds."""
    questions = [f"What is risk number {n}?" for n in range(size.questions)]
    seen: dict[str, list[Seen]] = {name: [] for name in (*COMPARED, HEDGED)}
    limits, bounds = limits_of(size), []
    hedged = replace(limits, hedge=HEDGE)
    with children(*COMPARED) as kids, local_server() as server:
        for seed in size.seeds:
            settings = settings_of(size, seed)
            bounds.append(bound(size, settings))
            for name in COMPARED:
                seen[name].append(kids[name].ask(questions, limits, server, settings))
            more = kids["agents"].ask(questions, hedged, server, settings)
            seen[HEDGED].append(more)
    return seen, bounds


def main(full: bool = False) -> int:
    size = FULL if full else SHORT
    print(f"measuring, about {'4 minutes' if full else '15 s'}", file=sys.stderr)
    seen, bounds = measure(size)
    ideal = (size.questions - size.burst) / size.rate + LATENCY
    rows = []
    for name, runs in seen.items():
        ratio = median(it.cost.seconds for it in runs) / ideal
        rows.append((name, f"{ratio:.2f}x", *cells(runs)))
    rows.append(("the bound", f"{median(bounds) / ideal:.2f}x", "", "", "", ""))
    head = f"{size.questions:,} questions, {size.rate} requests/s"
    names = ("wall / ideal", "refused", "lost", "paid again", "CPU per call")
    print(table((head, *names), *rows))
    (_, plain, _, lost, again, _), (_, hedged, *_), (_, least, *_) = rows[-3:]
    return result(
        f"agents take {plain} the ideal time, {hedged} with a hedge (the bound is "
        f"{least}), lose {lost}, pay again for {again} answers"
    )


def cells(runs: list[Seen]) -> tuple[str, str, str, str]:
    """Of all seeds together; the CPU is the median."""
    refused, again = sum(it.refused for it in runs), sum(it.again for it in runs)
    lost = share(sum(it.lost for it in runs), sum(it.asked for it in runs))
    cpu = median(it.cpu for it in runs)
    return times(refused), lost, times(again), f"{cpu:.2f} ms"


if __name__ == "__main__":
    start(lambda: main(wants_full(__doc__)))
