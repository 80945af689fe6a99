"""What happened when, one column per agent, and the verdict line under it."""

import os
import sys
import time
from collections.abc import Callable


class Timeline:
    """Marks of several agents, printed as one column per agent.

    Agents in threads may mark at the same time: a mark is one `list.append`, which
    Python documents as atomic. Times are milliseconds since the first mark.
    """

    def __init__(
        self, *agents: str, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.agents = agents
        self._clock = clock
        self._marks: list[tuple[float, str, str]] = []

    def mark(self, agent: str, what: str) -> None:
        """Note that `agent` does `what` now. Raises ValueError for an unknown agent."""
        if agent not in self.agents:
            raise ValueError(
                f"agent {agent!r}: must be one of {', '.join(self.agents)}"
            )
        self._marks.append((self._clock(), agent, what))

    def of(self, agent: str) -> list[str]:
        """The marks of one agent, in order."""
        return [what for _, who, what in self._marks if who == agent]

    def __str__(self) -> str:
        cells = [[agent, *self.of(agent)] for agent in self.agents]
        widths = [max(map(len, column)) + 2 for column in cells]
        rows = ["   ms  " + _row(self.agents, widths)]
        start = self._marks[0][0] if self._marks else 0.0
        for moment, who, what in self._marks:
            row = [what if agent == who else "" for agent in self.agents]
            rows.append(f"{(moment - start) * 1000:5.0f}  " + _row(row, widths))
        return "\n".join(rows)


def verdict(holds: bool, says: str) -> int:
    """Print `OK: ...` or `BROKEN: ...`, and return the exit status, 0 or 1."""
    word = "OK" if holds else "BROKEN"
    _print_verdict(word, says, "green" if holds else "red")
    return 0 if holds else 1


def result(says: str) -> int:
    """Print the last line of a benchmark, `RESULT: ...`, and return exit status 0."""
    _print_verdict("RESULT", says, "cyan")
    return 0


def table(*rows: tuple[object, ...]) -> str:
    """Rows in aligned columns: the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _row(cells: tuple[str, ...] | list[str], widths: list[int]) -> str:
    return "".join(map(str.ljust, cells, widths)).rstrip()


def _print_verdict(word: str, says: str, colour: str) -> None:
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        from rich.console import Console  # it knows what each terminal can do
        from rich.text import Text

        line = Text.assemble((f"{word}:", f"bold {colour}"), f" {says}")
        Console(soft_wrap=True).print(line)
    else:
        print(f"{word}: {says}", flush=True)
