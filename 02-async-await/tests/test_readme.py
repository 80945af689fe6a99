"""The README shows what the scripts print, and its exercises have solutions."""

from pathlib import Path

import pytest

from racelab.pytest.plugin import RunScript, Stale

README = Path(__file__).parents[1] / "README.md"
SOLUTIONS = {
    "fanout_workers": "OK: the server saw 40 of 40 calls",
    "first_answer": "OK: kept 1 of 1 answers",
    "client_per_loop": "OK: got 5 of 5 answers paid for",
}


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_a_solution_reaches_the_verdict_of_its_exercise(
    solution: str, run_inprocess: RunScript
) -> None:
    ran = run_inprocess(f"solutions/{solution}.py", speed=1)
    assert (ran.status, ran.last_line) == (0, SOLUTIONS[solution])
    assert f"`{SOLUTIONS[solution]}`" in README.read_text("utf-8")


def test_the_readme_shows_what_the_scripts_print(stale: Stale) -> None:
    assert stale(README) == []
