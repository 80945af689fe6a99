"""
What other threads can come between, on this Python: a loss proves it, "all" does not.

Run:   python whats_atomic.py
Next:  python broken_fake_lock.py
Docs:  https://docs.python.org/3/library/threadsafety.html (list and dict),
       https://docs.python.org/3/howto/free-threading-python.html (iterators),
       and the pages of `collections.deque`, `queue` and `threading`
"""

import platform
import sys
import sysconfig
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Queue
from threading import Barrier, Lock
from types import SimpleNamespace
from typing import Any, NamedTuple

from racelab import result, start, table

THREADS = 8
ALL = 4000  # times in one round, by all threads together
ROUNDS = {True: 10, False: 50}  # at most, if promised or not: one loss is enough


class Race(NamedTuple):
    """All threads run `code` again and again. What is printed is what is run."""

    code: str  # `k` is another number each time
    kept: str
    promised: bool = False  # by Python's documentation
    of: int = ALL


class Halfway(NamedTuple):
    """Another thread runs `meanwhile` in the middle of `code`: the worst moment."""

    code: str  # it is `f` that lets the other one run; `v.__radd__` calls it, too
    meanwhile: str
    kept: str
    of: int
    promised: bool = False


CHECK = "if 9 not in d: d[9] = f()"
OPERATIONS = (
    Race("lst.append(k)", "len(lst)", promised=True),
    Race("got.append(jobs.pop())", "len(set(got))", promised=True),
    Race("d[k] = k", "len(d)", promised=True),
    Race("got.append(d.setdefault(k // 8, k))", "8 * len(set(got))", promised=True),
    Race("deq.append(k)", "len(deq)", promised=True),
    Race("q.put(k); got.append(q.get())", "len(set(got))", promised=True),
    Race("with lock: c['n'] = c.get('n', 0) + 1", "c['n']", promised=True),
    Halfway("for k in d.copy(): f(k)", "d[9] = 9", "len(calls)", of=3, promised=True),
    Race("x.n += 1", "x.n"),
    Race("c['n'] += 1", "c['n']"),
    Race("got.append(next(todo))", "len(set(got))"),
    Race("c['n'] = c.get('n', 0) + 1", "c['n']"),
    Halfway("x.n += f()", "x.n += 1", "x.n", of=2),
    Halfway("x.n += v", "x.n += 1", "x.n", of=2),
    Halfway(CHECK, CHECK, "len(d) - 3", of=2),
    Halfway("for k in d: f(k)", "d[9] = 9", "len(calls)", of=3),
    Halfway("for k in lst: f(k)", "lst.pop(0)", "len(calls)", of=3),
    Halfway("lst.sort(key=f)", "got.extend(lst)", "len(got)", of=3),
    Halfway("got.append(next(gen))", "got.append(next(gen))", "len(got)", of=2),
)
SO = {  # (all were kept, promised)
    (True, True): "rely on it",
    (True, False): "an accident",
    (False, False): "lock it",
    (False, True): "report it",
}


def race(operation: Race) -> int:
    """How many are kept in the first round that loses some, or else in the last."""
    for _ in range(ROUNDS[operation.promised]):
        jobs = list(range(ALL))
        names = {"lst": [], "jobs": jobs, "todo": iter([*jobs]), "d": {}, "c": {"n": 0}}
        names |= {"deq": deque(), "q": Queue(), "lock": Lock()}
        names |= {"x": SimpleNamespace(n=0), "got": []}
        together(function(operation.code, names))
        kept = int(eval(operation.kept, names))
        if kept != operation.of:
            break
    return kept


def together(work: Callable[[int], object]) -> None:
    """Call `work` with each number below ALL, in all threads at the same time."""
    ready = Barrier(THREADS)

    def begin(first: int) -> None:
        ready.wait()
        for number in range(first, ALL, THREADS):
            work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(begin, range(THREADS)))


def halfway(operation: Halfway) -> int:
    """How many are kept when another thread runs in the middle."""
    calls: list[object] = []

    def f(*args: object) -> int:
        calls.append(args)
        if len(calls) == 1:
            with ThreadPoolExecutor(1) as pool:
                meanwhile = pool.submit(function(operation.meanwhile, names))
            meanwhile.exception()  # a generator refuses a second thread
        return 1

    lst = [0, 1, 2]
    v = type("Slow", (), {"__radd__": lambda self, n: n + f()})()
    names = {"lst": lst, "d": dict.fromkeys(lst), "gen": (f() for _ in lst), "v": v}
    names |= {"x": SimpleNamespace(n=0), "got": [], "calls": calls, "f": f}
    with suppress(RuntimeError):  # a dict notices that it was changed
        function(operation.code, names)()
    return int(eval(operation.kept, names))


def function(code: str, names: dict[str, Any]) -> Callable[..., object]:
    exec(f"def work(k=None):\n    {code}", names)
    work: Callable[..., object] = names["work"]
    return work


def run() -> dict[str, int]:
    """How many were kept, for the code of each operation."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: threads take turns as often as they can
    try:
        return {
            each.code: race(each) if isinstance(each, Race) else halfway(each)
            for each in OPERATIONS
        }
    finally:
        sys.setswitchinterval(before)


def interpreter() -> str:
    """Its version, and whether only one thread at a time runs Python code."""
    build = "free-threaded, " if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return f"{platform.python_version()}, {build}{'with' if gil else 'without'} the GIL"


def main() -> int:
    print(f"python: {interpreter()}", file=sys.stderr)
    rows = [("operation", "others run", "kept", "promised", "so")]
    for (code, kept), operation in zip(run().items(), OPERATIONS, strict=True):
        when = "any time" if isinstance(operation, Race) else "halfway"
        held, promised = kept == operation.of, operation.promised
        some = f"{kept} of {operation.of}" if when == "halfway" else "not all"
        so = SO[held, promised]
        rows.append(
            (code, when, "all" if held else some, "yes" if promised else "no", so)
        )
    print(table(*rows))
    counts = [sum(row[-1] == so for row in rows) for so in SO.values()]
    return result(f"{counts[0]} to rely on, {counts[1]} accidents, {counts[2]} to lock")


if __name__ == "__main__":
    start(main)
