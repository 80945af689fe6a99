"""
Under a rate limit, a good pace takes the time that the limit allows, and loses nothing.

Run:   python benchmark_rate_limit.py  (with --full: 1,500 and 400 questions)
Next:  python benchmark_faults.py

The four of `baselines.py` ask the same questions, on a server that counts refused
requests against the limit, as OpenAI does. Ideal is what the limit itself allows: what
is beyond the burst, at the rate, and one latency. The memory is what came on top.
Then the same four where no limit holds them up: what does all that cost the CPU?
"""

import math
import sys
from random import Random
from statistics import median
from typing import NamedTuple

from agents import Limits
from baselines import BARE, BaselineProcess, Seen, children, share, times, wants_full
from racelab import LocalServer, Settings, local_server, result, start, table

COMPARED = ("gather", "gather + semaphore", "by hand", "agents")
LATENCY = 0.1  # seconds, half as much to half as much again
RATE = 100  # requests a second
CONCURRENT = 50  # in flight, for those who can be told
LENGTHS = (50, 4000)  # characters of a question: as many short ones as long ones
IN_FLIGHT = 100  # where the CPU is weighed
Took = tuple[Seen, float]  # one baseline, and the ideal: seconds
Processes = dict[str, BaselineProcess]  # by the name of the baseline


class Size(NamedTuple):
    """Bursts are small, so that the rate is what is measured."""

    calls: int
    burst: int  # requests at once, after a rest
    texts: int
    token_rate: int  # a second
    token_burst: int
    rounds: int  # of twice IN_FLIGHT calls


# So that it takes 15 s. What is done once, at the start, weighs ten times more here.
SHORT = Size(150, 50, 80, 25_000, 10_000, 3)
FULL = Size(1500, 100, 400, 10_000, 10_000, 7)


def texts(number: int) -> list[str]:
    """Questions of very different length; the same on every run."""
    rng, (low, high) = Random(1), map(math.log, LENGTHS)
    lengths = [round(math.exp(rng.uniform(low, high))) for _ in range(number)]
    return [(f"{n}: " + "word " * length)[:length] for n, length in enumerate(lengths)]


def count_requests(size: Size, kids: Processes, server: LocalServer) -> Took:
    """Measure all under the limit of requests. Return what `agents` took, and ideal."""
    questions = [f"What is risk number {number}?" for number in range(size.calls)]
    pace = {"rpm": 60.0 * RATE, "request_burst": float(size.burst)}
    limits = Limits(concurrency=CONCURRENT, **pace)
    settings = Settings(latency=LATENCY, **pace)
    seen = {
        name: kids[name].ask(questions, limits, server, settings) for name in COMPARED
    }
    ideal = (size.calls - size.burst) / RATE + LATENCY
    show(f"{size.calls:,} questions, {RATE} requests/s", seen, ideal)
    return seen["agents"], ideal


def count_tokens(size: Size, kids: Processes, server: LocalServer) -> Took:
    """Measure all under the limit of tokens. Return what `agents` took, and ideal."""
    questions = texts(size.texts)
    pace = {"tpm": 60.0 * size.token_rate, "token_burst": float(size.token_burst)}
    limits = Limits(concurrency=CONCURRENT, **pace)
    settings = Settings(latency=LATENCY, **pace)
    seen = {
        name: kids[name].ask(questions, limits, server, settings) for name in COMPARED
    }
    tokens = max(it.stats.tokens_billed for it in seen.values())  # nobody lost any
    ideal = (tokens - size.token_burst) / size.token_rate + LATENCY
    show(f"{size.texts} questions, {size.token_rate:,} tokens/s", seen, ideal)
    return seen["agents"], ideal


def show(head: str, seen: dict[str, Seen], ideal: float) -> None:
    names = ("wall / ideal", "refused", "lost", "CPU per call", "memory")
    rows = []
    for name, it in seen.items():
        ratio, lost = f"{it.cost.seconds / ideal:.2f}x", share(it.lost, it.asked)
        cost = f"{it.cpu:.2f} ms", f"{it.cost.memory:.1f} MiB"
        rows.append((name, ratio, times(it.refused), lost, *cost))
    print(table((head, *names), *rows), end="\n\n", flush=True)


def weigh_cpu(size: Size, kids: Processes, server: LocalServer) -> float:
    """The CPU of `agents` by that of the bare SDK, where nobody has to wait."""
    pace = {"rpm": 6e7, "request_burst": 1e6, "tpm": 6e9, "token_burst": 1e8}
    limits = Limits(concurrency=IN_FLIGHT, **pace)
    settings = Settings(latency=LATENCY / 2, spread=0, **pace)
    questions = [f"What is risk number {n}?" for n in range(2 * IN_FLIGHT)]
    measured = [name for name in (BARE, *COMPARED) if name != "gather"]
    costs: dict[str, list[float]] = {name: [] for name in measured}
    for round_ in range(size.rounds + 1):  # they take turns; the first is a warm-up
        for name in measured:
            asked = questions if round_ else questions[:IN_FLIGHT]
            costs[name].append(kids[name].ask(asked, limits, server, settings).cpu)
    medians = {name: median(costs[name][1:]) for name in measured}
    rows = [
        (name, f"{cpu:.2f} ms", f"{cpu / medians[BARE]:.2f}x")
        for name, cpu in medians.items()
    ]
    print(table((f"{IN_FLIGHT} in flight", "CPU per call", "to the SDK"), *rows))
    return medians["agents"] / medians[BARE]


def main(full: bool = False) -> int:
    size = FULL if full else SHORT
    print(f"measuring, about {'3 minutes' if full else '15 s'}", file=sys.stderr)
    with children(BARE, *COMPARED) as kids, local_server() as server:
        took = count_requests(size, kids, server), count_tokens(size, kids, server)
        cpu = weigh_cpu(size, kids, server)
    ratios = " and ".join(f"{it.cost.seconds / ideal:.2f}x" for it, ideal in took)
    refused, lost = sum(it.refused for it, _ in took), sum(it.lost for it, _ in took)
    return result(
        f"agents take {ratios} the ideal time, are refused {times(refused)}, lose "
        f"{share(lost, size.calls + size.texts)}, at {cpu:.2f}x the bare SDK's CPU"
    )


if __name__ == "__main__":
    start(lambda: main(wants_full(__doc__)))
