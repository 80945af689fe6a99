"""The README of the chapter: what it shows comes from the scripts."""

import re
from pathlib import Path

import pytest

from racelab.pytest.plugin import RunScript, Stale

README = Path(__file__).parents[1] / "README.md"
EXERCISES = README.read_text("utf-8").partition("## Exercises")[2].split("\n**")[1:]


def test_the_readme_shows_what_the_scripts_print(stale: Stale) -> None:
    assert stale(README) == []


@pytest.mark.parametrize("exercise", EXERCISES, ids="exercise {:.1}".format)
def test_a_solution_reaches_the_verdict_of_its_exercise(
    exercise: str, run_inprocess: RunScript
) -> None:
    wanted = re.findall(r"`(OK: [^`]+)`", exercise)
    solution = re.findall(r"\[Solution\]\((.+)\)", exercise)
    assert [run_inprocess(name).last_line for name in solution] == wanted
