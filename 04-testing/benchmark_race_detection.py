"""
A search of every order finds all eight planted bugs; 1,000 stress runs do not.

Run:   python benchmark_race_detection.py
Next:  README.md

The bugs, their fixes and the ways to look for them are in planted_bugs/. Where frontrun
(https://pypi.org/project/frontrun/) is installed, its default search runs beside ours;
for threads start this with `frontrun python ...`.
"""

import sys
import time
from importlib.util import find_spec
from typing import Any

from planted_bugs import finders
from planted_bugs.bugs import BUGS
from racelab import result, start, table

RUNS, CHECKS = 1_000, 200  # orders drawn at random: of the broken, of the fixed side


def timed(call: Any, *args: Any, **options: Any) -> tuple[Any, str]:
    """What it returns, and how long it took."""
    began = time.perf_counter()
    value = call(*args, **options)
    return value, f"{(time.perf_counter() - began) * 1000:.0f} ms"


def ways() -> dict[str, Any]:
    if find_spec("frontrun"):
        return {**finders.WAYS, "frontrun": finders.frontrun}
    print("frontrun is not installed: skipped", file=sys.stderr)
    return dict(finders.WAYS)


def hunt(ways: dict[str, Any]) -> tuple[dict[str, int], int]:
    """Print who finds what in which run; give how many each finds, and false alarms."""
    found = dict.fromkeys(ways, 0)
    alarms = dict.fromkeys(ways, 0)
    runs: list[tuple[object, ...]] = [("run that fails", *ways)]
    times = [("time until then", *ways)]
    for bug in BUGS:
        row = [timed(way, bug, "broken", RUNS) for way in ways.values()]
        runs.append((bug.name, *(f"{run or 'none'}" for run, _ in row)))
        hits = [isinstance(run, int) for run, _ in row]
        cells = [took if hit else "-" for hit, (_, took) in zip(hits, row, strict=True)]
        times.append((bug.name, *cells))
        for name, hit in zip(ways, hits, strict=True):
            found[name] += hit
            alarms[name] += isinstance(ways[name](bug, "fixed", CHECKS), int)
    runs.append(("found", *(f"{number} of {len(BUGS)}" for number in found.values())))
    runs.append(("false alarms", *alarms.values()))
    print(table(*runs), table(*times), sep="\n\n")
    return found, sum(alarms.values())


def prove() -> None:
    """Print that each fix holds in every order."""
    rows = [("fixed side", "what the search of every order says", "in")]
    for bug in BUGS:
        report, took = timed(finders.explored, bug, "fixed")
        rows.append((bug.name, report.says, took))
    for bug in filter(lambda bug: bug.merges, BUGS):
        report, took = timed(finders.explored, bug, "broken", merge=True)
        says = f"run {report.runs} fails (equal states merged)"
        rows.append((f"{bug.name}, broken", says, took))
    print(f"\n{table(*rows)}\n")


def main() -> int:
    print("measuring, about 10 s", file=sys.stderr)
    for bug in BUGS:
        finders.WAYS["every order"](bug, "fixed", RUNS)  # warm up
    found, alarms = hunt(ways())
    prove()
    finds = [f"{found[way]} of {len(BUGS)}" for way in ("every order", "stress")]
    return result(
        f"every order finds {finds[0]} bugs, {RUNS:,} stress runs {finds[1]}, "
        f"{alarms} false alarms"
    )


if __name__ == "__main__":
    start(main)
