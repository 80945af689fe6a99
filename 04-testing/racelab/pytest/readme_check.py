"""READMEs that cannot drift: their output, diffs and code come from the scripts.

    python -m racelab.pytest.readme_check README.md          name the blocks out of date
    python -m racelab.pytest.readme_check --write README.md  bring them up to date

A block is fenced, and the comment on the line before it says where it comes from:
`<!-- output: broken_x.py -->`, `<!-- diff: broken_x.py fixed_x.py -->` or
`<!-- code: broken_x.py research -->` (one function or class). Paths are relative to the
README. Output is compared without its times and what depends on them, see `masked`.
"""

import argparse
import ast
import difflib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from racelab.pytest.run_scripts import run_as_reader

BLOCK = re.compile(
    r"^<!-- (?P<kind>output|diff|code): (?P<words>.+?) -->\n"
    r"(?P<fence>```\w*\n)(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# How often a script runs until its output agrees with the README: the order of a
# timeline depends on times, which a busy machine upsets.
TRIES = 10
MEASURED = re.compile(r"\d[\d.,]*(?=\s?(ms|s|x|%|calls/s|answers/s|us|MiB)\b|%)")


@dataclass(frozen=True)
class Block:
    """A block of a README that is made from scripts."""

    readme: Path
    kind: str  # output, diff or code
    words: tuple[str, ...]
    head: str  # the comment and the opening fence
    body: str

    def __str__(self) -> str:
        return f"{self.kind}: {' '.join(self.words)}"

    @property
    def script(self) -> Path:
        return (self.readme.parent / self.words[0]).resolve()

    def made_anew(self) -> str:
        """Return the body that the scripts make now."""
        if self.kind == "output":
            return output_of(self.script)
        if self.kind == "diff":
            return diff(self.script, self.readme.parent / self.words[1])
        return source(self.script, self.words[1])

    def is_fresh(self, first: Callable[[Path], str] | None = None) -> bool:
        """Return whether the body says what the scripts say.

        `first` may return the output of a script that ran already. An output that
        differs is made anew a few times, see TRIES.
        """
        if self.kind != "output":
            return self.made_anew() == self.body
        wanted = masked(self.body)
        if first is not None and masked(first(self.script)) == wanted:
            return True
        return any(masked(self.made_anew()) == wanted for _ in range(TRIES))


def blocks_of(readme: Path) -> list[Block]:
    """Return the blocks of a README that are made from scripts."""
    return [
        _block(readme, found) for found in BLOCK.finditer(readme.read_text("utf-8"))
    ]


def stale_blocks(readme: Path) -> list[Block]:
    """Return the blocks that no longer say what the scripts say."""
    return [block for block in blocks_of(readme) if not block.is_fresh()]


def _block(readme: Path, found: re.Match[str]) -> Block:
    kind, words = found["kind"], tuple(found["words"].split())
    head = f"<!-- {kind}: {found['words']} -->\n{found['fence']}"
    return Block(readme, kind, words, head, found["body"])


def refreshed(readme: Path) -> str:
    """Return the text of the README with every block made anew."""

    def renew(found: re.Match[str]) -> str:
        block = _block(readme, found)
        return f"{block.head}{block.made_anew()}```"

    return BLOCK.sub(renew, readme.read_text(encoding="utf-8"))


def output_of(script: Path) -> str:
    """Return what the script prints to a reader who has no key."""
    ran = run_as_reader(script)
    if ran.status not in (0, 1):
        raise RuntimeError(f"{script.name} ended with {ran.status}: {ran.err}")
    return ran.out


def masked(output: str) -> str:
    """Return output without what differs from run to run.

    In a timeline that is the first column, and the order of rows of different agents:
    a timeline is read agent by agent. Elsewhere it is every number before a unit of
    time, a ratio or a percentage, with the blanks that align it.
    """
    return "\n".join(_masked_lines(output.splitlines()))


def _masked_lines(lines: list[str]) -> Iterator[str]:
    rows: list[str] = []  # of a timeline
    for line in [*lines, ""]:
        if line.startswith("   ms  ") or (rows and re.match(r" *\d+  ", line)):
            rows.append(re.sub(r"^ *(\d+|ms)  ", "", line))
            continue
        yield from sorted(rows, key=lambda row: len(row) - len(row.lstrip()))
        rows = []
        yield " ".join(MEASURED.sub("#", line).split())


def diff(broken: Path, fixed: Path) -> str:
    """Return what differs in the code of two scripts, without their docstrings."""
    lines = difflib.unified_diff(_code(broken), _code(fixed), n=2)
    kept = [line for line in lines if not line.startswith(("---", "+++"))]
    hunks = re.split(r"^@@.*@@$", "\n".join(map(str.rstrip, kept)), flags=re.MULTILINE)
    return "\n@@\n".join(hunk.strip("\n") for hunk in hunks[1:]) + "\n"


def source(path: Path, name: str) -> str:
    """Return the source of one function or class of a script."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if getattr(node, "name", None) == name:
            return (ast.get_source_segment(text, node) or "") + "\n"
    raise ValueError(f"{path.name} has no function or class {name!r}")


def _code(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    docstring = ast.parse(text).body[0]
    return text.splitlines()[docstring.end_lineno or 0 :]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m racelab.pytest.readme_check",
        description="Check or renew the blocks of READMEs that come from scripts.",
    )
    parser.add_argument("readme", type=Path, nargs="+")
    parser.add_argument("--write", action="store_true", help="renew the blocks")
    arguments = parser.parse_args()
    stale = []
    for readme in arguments.readme:
        if arguments.write:
            readme.write_text(refreshed(readme), encoding="utf-8", newline="\n")
        else:
            stale += [f"{readme}: {block}" for block in stale_blocks(readme)]
    print("\n".join(stale) or "all blocks are up to date")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
