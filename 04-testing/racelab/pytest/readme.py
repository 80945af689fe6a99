"""READMEs that cannot drift: their output, diffs and code come from the scripts.

    python -m racelab.pytest.readme README.md          say which blocks are out of date
    python -m racelab.pytest.readme --write README.md  bring them up to date

A block is fenced, and the comment on the line before it says where it comes from:
`<!-- output: broken_x.py -->`, `<!-- diff: broken_x.py fixed_x.py -->` or
`<!-- code: broken_x.py research -->` (one function or class). Paths are relative to the
README. Output is compared without its times and what depends on them, see `masked`.
"""

import argparse
import ast
import difflib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCK = re.compile(
    r"^<!-- (?P<kind>output|diff|code): (?P<words>.+?) -->\n"
    r"(?P<fence>```\w*\n)(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
TRIES = 5
MEASURED = re.compile(r"\d[\d.,]*(?=\s?(ms|s|x|%|calls/s|answers/s|us|MiB)\b|%)")


def stale_blocks(readme: Path, first: Callable[[Path], str] | None = None) -> list[str]:
    """The comments of the blocks that no longer say what their source says.

    `first` may give the output of a script that was run already. Where that differs,
    the script is run again, a few times: the order of a timeline depends on
    times, which a busy machine may upset.
    """
    stale = []
    for block in BLOCK.finditer(readme.read_text(encoding="utf-8")):
        kind, words = block["kind"], block["words"].split()
        if kind == "output":
            outputs = _outputs((readme.parent / words[0]).resolve(), first)
            fresh = any(masked(output) == masked(block["body"]) for output in outputs)
        else:
            fresh = _make(kind, words, readme.parent) == block["body"]
        if not fresh:
            stale.append(f"{kind}: {block['words']}")
    return stale


def _outputs(script: Path, first: Callable[[Path], str] | None) -> Iterator[str]:
    if first is not None:
        yield first(script)
    for _ in range(TRIES):
        yield run_script(script)


def refreshed(readme: Path) -> str:
    """The text of the README with every block made anew."""

    def renew(block: re.Match[str]) -> str:
        body = _make(block["kind"], block["words"].split(), readme.parent)
        head = f"<!-- {block['kind']}: {block['words']} -->\n{block['fence']}"
        return f"{head}{body}```"

    return BLOCK.sub(renew, readme.read_text(encoding="utf-8"))


def masked(output: str) -> str:
    """Output without what differs from run to run.

    In a timeline these are the first column and, between agents, the order of rows
    that came at about the same time: it is read agent by agent. Elsewhere it is every
    number before a unit of time, a ratio or a percentage, with the blanks that align
    it, and bars of `#`.
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
        yield " ".join(re.sub("#+", "#", MEASURED.sub("#", line)).split())


def command_of(script: Path) -> tuple[list[str], Path | None]:
    """The command that runs a script, and the folder to run it in; None: any.

    A script in a package runs as a module of it.
    """
    if (script.parent / "__init__.py").exists():
        module = f"{script.parent.name}.{script.stem}"
        return [sys.executable, "-m", module], script.parents[1]
    return [sys.executable, str(script)], None


def run_script(path: Path) -> str:
    """What the script prints, run as a reader does who has no key."""
    environment = {**os.environ, "RACELAB_LOCAL": "1", "NO_COLOR": "1"}
    command, folder = command_of(path)
    ended = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        timeout=60,
    )
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"{path.name} ended with {ended.returncode}: {ended.stderr}")
    return ended.stdout


def diff(broken: Path, fixed: Path) -> str:
    """What differs in the code of two scripts, without their docstrings."""
    lines = difflib.unified_diff(_code(broken), _code(fixed), n=2)
    kept = [line for line in lines if not line.startswith(("---", "+++"))]
    hunks = re.split(r"^@@.*@@$", "\n".join(map(str.rstrip, kept)), flags=re.MULTILINE)
    return "\n@@\n".join(hunk.strip("\n") for hunk in hunks[1:]) + "\n"


def source(path: Path, name: str) -> str:
    """The source of one function or class of a script."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if getattr(node, "name", None) == name:
            return (ast.get_source_segment(text, node) or "") + "\n"
    raise ValueError(f"{path.name} has no function or class {name!r}")


def _make(kind: str, words: list[str], folder: Path) -> str:
    makers: dict[str, Callable[[], str]] = {
        "output": lambda: run_script(folder / words[0]),
        "diff": lambda: diff(folder / words[0], folder / words[1]),
        "code": lambda: source(folder / words[0], words[1]),
    }
    return makers[kind]()


def _code(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    docstring = ast.parse(text).body[0]
    return text.splitlines()[docstring.end_lineno or 0 :]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m racelab.pytest.readme",
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
