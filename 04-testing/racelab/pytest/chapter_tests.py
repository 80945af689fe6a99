"""The tests that all chapters share: pairs, solutions and README blocks.

A chapter gets them with one class in its `tests/`:

    class TestChapter(ChapterTests):
        chapter = Chapter(numbers={"broken_agents": (1, 5), "fixed_agents": (5, 5)})

The scripts, the solutions, the exercises and the blocks are found in the chapter's
folder. The tables hold only what is special about one of them.
"""

import gc
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from racelab.pytest.readme_check import Block, blocks_of
from racelab.pytest.run_scripts import Ran, Reader, RunScript, chapter_of

LOCAL = "model: local server, no key needed\n"
WORDS = ("OK", "BROKEN")  # by exit status
LONG_OUTPUTS = ("benchmark_", "simulate_", "whats_")  # checked only with --long
Numbers = tuple[int | range, ...]  # in a last line; a range allows any of its numbers


@dataclass(frozen=True)
class Chapter:
    """What is special about scripts and solutions, by their names without `.py`."""

    # The first numbers in the last line. A script that is not in this table prints two
    # numbers that differ if it is broken, and that are equal if it is fixed.
    numbers: Mapping[str, Numbers] = field(default_factory=dict)
    # Words on stderr, where it is more than the line about the server.
    errors: Mapping[str, str] = field(default_factory=dict)
    # How to run it in this process: the speed of the server, and constants.
    inprocess: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # It takes half a second and more in this process, so it is repeated less often.
    slow: AbstractSet[str] = frozenset()
    # Why it cannot run in this process.
    not_inprocess: Mapping[str, str] = field(default_factory=dict)
    # Warnings that belong to the lesson, as in `pytest.mark.filterwarnings`.
    ignored: Mapping[str, str] = field(default_factory=dict)


class ChapterTests:
    """The tests. A chapter's subclass may bring its own `chapter`."""

    chapter = Chapter()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        folder = chapter_of(metafunc.definition.path)
        for name, found in (
            ("readers_script", pairs(folder)),
            ("repeated_script", self._repeated(folder)),
            ("solution", sorted(folder.glob("solutions/*.py"))),
            (
                "block",
                [b for r in sorted(folder.rglob("README.md")) for b in blocks_of(r)],
            ),
        ):
            if name in metafunc.fixturenames:
                parameters = [self._parameter(each) for each in found]
                metafunc.parametrize(name, parameters)

    def _repeated(self, folder: Path) -> list[Path]:
        left_out = self.chapter.not_inprocess
        return [each for each in pairs(folder) if each.stem not in left_out]

    def _parameter(self, found: Path | Block) -> Any:
        if isinstance(found, Block):
            is_long = found.script.stem.startswith(LONG_OUTPUTS)
            marks = [pytest.mark.long] if is_long else []
            return pytest.param(found, id=str(found), marks=marks)
        ignore = self.chapter.ignored.get(found.stem)
        marks = [pytest.mark.filterwarnings(f"ignore:{ignore}")] if ignore else []
        return pytest.param(found, id=found.stem, marks=marks)

    def check(self, script: Path, ran: Ran, same_numbers: bool = True) -> None:
        """Check the verdict of a script, its exit status, and the numbers in it."""
        assert ran.status == int(script.stem.startswith("broken_")), ran
        assert ran.word == WORDS[ran.status], ran
        if not same_numbers:
            return
        wanted = self.chapter.numbers.get(script.stem)
        if wanted is None:
            assert (ran.numbers[0] == ran.numbers[1]) == (ran.status == 0), ran
            return
        assert len(ran.numbers) >= len(wanted), ran
        for number, allowed in zip(ran.numbers, wanted, strict=False):
            assert number in (allowed if isinstance(allowed, range) else [allowed]), ran

    def test_tables_name_scripts_of_this_chapter(self, chapter: Path) -> None:
        scripts = [*pairs(chapter), *chapter.glob("solutions/*.py")]
        named = {name for table in vars(self.chapter).values() for name in table}
        assert named <= {script.stem for script in scripts}

    def test_reader_sees_the_verdict(
        self, readers_script: Path, reader: Reader, pytestconfig: pytest.Config
    ) -> None:
        says_who_answers = "open_model" in readers_script.read_text("utf-8")
        err = LOCAL if says_who_answers else ""
        more = self.chapter.errors.get(readers_script.stem)
        for _ in range(pytestconfig.getoption("--script-runs")):
            ran = reader.run(readers_script)
            self.check(readers_script, ran)
            assert len(ran.out.splitlines()) > 1  # a timeline or a table goes before
            assert "Traceback" not in ran.err
            assert ran.err == err if more is None else more in ran.err

    def test_every_run_in_this_process_ends_the_same(
        self, repeated_script: Path, run_inprocess: RunScript, repeats: int
    ) -> None:
        arguments = self.chapter.inprocess.get(repeated_script.stem, {})
        is_slow = repeated_script.stem in self.chapter.slow
        for _ in range((repeats + 2) // 3 if is_slow else repeats):
            ran = run_inprocess(repeated_script.name, **arguments)
            self.check(repeated_script, ran, same_numbers=set(arguments) <= {"speed"})
        gc.collect()  # what a lesson leaves open is found here, not in another test

    def test_solution_reaches_the_verdict_of_its_exercise(
        self, solution: Path, run_inprocess: RunScript
    ) -> None:
        readme = (solution.parents[1] / "README.md").read_text("utf-8")
        arguments = self.chapter.inprocess.get(solution.stem, {})
        ran = run_inprocess(f"solutions/{solution.name}", **arguments)
        self.check(solution, ran)
        assert f"](solutions/{solution.name})" in readme
        assert verdicts(readme).get(solution.name) in (None, ran.last_line)

    def test_readme_block_is_fresh(self, block: Block, reader: Reader) -> None:
        assert block.is_fresh(reader.output)


def pairs(folder: Path) -> list[Path]:
    """Return the broken and fixed scripts of a chapter."""
    return sorted([*folder.glob("broken_*.py"), *folder.glob("fixed_*.py")])


def verdicts(readme: str) -> dict[str, str]:
    """Return the verdict that each exercise asks for, by the file of its solution."""
    exercises = readme.partition("## Exercises")[2].split("\n**")[1:]
    found = {}
    for exercise in exercises:
        for solution in re.findall(r"\[Solution\]\(solutions/(.+)\)", exercise):
            (found[solution],) = re.findall(r"`(OK: [^`]+)`", exercise)
    return found
