"""Bars of a benchmark: in the terminal, and as an SVG with `--chart FILE`."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from racelab.reader_error import ReaderError

WIDTH = 40  # of the longest bar in the terminal, in letters
INSTALL = "--chart needs matplotlib: pip install -e './04-testing[charts]'"


class ChartError(ReaderError):
    """The chart cannot be drawn; the message says what to do."""


@dataclass(frozen=True)
class Chart:
    """Values in groups, as `{group: {name: value}}`, all in one unit."""

    title: str
    unit: str
    groups: Mapping[str, Mapping[str, float]]

    def __str__(self) -> str:
        """One bar of ASCII letters per value. The smallest is one letter long."""
        names = [name for bars in self.groups.values() for name in bars]
        largest = max(value for bars in self.groups.values() for value in bars.values())
        lines = [self.title]
        for group, bars in self.groups.items():
            lines.append(group)
            for name, value in bars.items():
                bar = "#" * max(1, round(WIDTH * value / largest))
                label = f"{short(value)} {self.unit}"
                lines.append(f"  {name.ljust(max(map(len, names)))}  {bar} {label}")
        return "\n".join(lines)

    def show(self, file: Path | None) -> None:
        """Print the bars, and draw them to `file` if there is one."""
        print(self)
        if file is not None:
            self.save(file)
            print(f"chart: {file}", file=sys.stderr)

    def save(self, file: Path) -> None:
        """Draw it as an SVG, with matplotlib. Raises `ChartError`."""
        from matplotlib.figure import Figure  # not pyplot: no window, no global state

        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.add_subplot()
        names = list(dict.fromkeys(n for bars in self.groups.values() for n in bars))
        thickness = 0.8 / len(names)
        for place, name in enumerate(names):
            values = [bars.get(name, 0) for bars in self.groups.values()]
            left = [group + place * thickness for group in range(len(values))]
            drawn = axes.bar(left, values, thickness, align="edge", label=name)
            axes.bar_label(drawn, [short(value) for value in values], fontsize=8)
        axes.set_xticks([group + 0.4 for group in range(len(self.groups))], self.groups)
        axes.set(title=self.title, ylabel=self.unit)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=len(names), frameon=False)
        try:
            figure.savefig(file, format="svg", metadata={"Title": self.title})
        except OSError as error:
            raise ChartError(f"--chart {file}: {error.strerror}") from error


def short(value: float) -> str:
    """Three digits are enough for a bar."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def chart_file(description: str | None = None) -> Path | None:
    """The FILE of `--chart FILE` on the command line; None: no chart was asked for.

    Raises `ChartError` if it could not be written, or without matplotlib: now, and not
    when everything is measured.
    """
    parser = _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = "also draw the result as an SVG (needs matplotlib)"
    parser.add_argument("--chart", type=Path, metavar="FILE", help=what)
    file: Path | None = parser.parse_args().chart
    if file is not None:
        check(file)
    return file


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ChartError(message)


def check(file: Path) -> None:
    """Raises `ChartError` if no chart can be drawn to `file`."""
    if file.suffix.lower() != ".svg":
        raise ChartError(f"--chart {file}: the name must end in .svg")
    if not file.parent.is_dir():
        raise ChartError(f"--chart {file}: there is no folder {file.parent}")
    try:
        is_new = not file.exists()
        file.open("ab").close()  # may it be written? What is in it stays, for now
        if is_new:
            file.unlink()
    except OSError as error:
        raise ChartError(f"--chart {file}: {error.strerror}") from error
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ChartError(INSTALL) from error
