"""
A search of every order finds all eight planted bugs; 1,000 stress runs do not.

Run:   python benchmark_race_detection.py
Next:  README.md

The bugs, their fixes and the finders are in planted_bugs/. Where frontrun
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
    """Return the value of `call`, and how long it took."""
    began = time.perf_counter()
    value = call(*args, **options)
    return value, f"{(time.perf_counter() - began) * 1000:.0f} ms"


def installed() -> dict[str, Any]:
    if find_spec("frontrun"):
        return {**finders.FINDERS, "frontrun": finders.frontrun}
    print("frontrun is not installed: skipped", file=sys.stderr)
    return dict(finders.FINDERS)


def hunt(tried: dict[str, Any]) -> tuple[dict[str, int], int]:
    """Print the run in which each finder finds each bug.

    Return the bugs that each finds, and the number of false alarms.
    """
    found = dict.fromkeys(tried, 0)
    alarms = dict.fromkeys(tried, 0)
    runs: list[tuple[object, ...]] = [("run that fails", *tried)]
    times = [("time until then", *tried)]
    for bug in BUGS:
        row = [timed(find, bug, "broken", RUNS) for find in tried.values()]
        runs.append((bug.name, *(f"{run or 'none'}" for run, _ in row)))
        hits = [isinstance(run, int) for run, _ in row]
        cells = [took if hit else "-" for hit, (_, took) in zip(hits, row, strict=True)]
        times.append((bug.name, *cells))
        for name, hit in zip(tried, hits, strict=True):
            found[name] += hit
            alarms[name] += isinstance(tried[name](bug, "fixed", CHECKS), int)
    runs.append(("found", *(f"{number} of {len(BUGS)}" for number in found.values())))
    runs.append(("false alarms", *alarms.values()))
    print(table(*runs), table(*times), sep="\n\n")
    return found, sum(alarms.values())


def prove() -> None:
    """Print that each fix holds in every order."""
    rows = [("fixed side", "what the search of every order says", "in")]
    for bug in BUGS:
        report, took = timed(finders.explored, bug, "fixed")
        rows.append((bug.name, report.message, took))
    for bug in filter(lambda bug: bug.merges, BUGS):
        report, took = timed(finders.explored, bug, "broken", merge=True)
        says = f"run {report.runs} fails (equal states merged)"
        rows.append((f"{bug.name}, broken", says, took))
    print(f"\n{table(*rows)}\n")


def main() -> int:
    print("measuring, about 10 s", file=sys.stderr)
    for bug in BUGS:
        finders.FINDERS["every order"](bug, "fixed", RUNS)  # warm up
    found, alarms = hunt(installed())
    prove()
    finds = [f"{found[name]} of {len(BUGS)}" for name in ("every order", "stress")]
    return result(
        f"every order finds {finds[0]} bugs, {RUNS:,} stress runs {finds[1]}, "
        f"{alarms} false alarms"
    )


if __name__ == "__main__":
    start(main)
