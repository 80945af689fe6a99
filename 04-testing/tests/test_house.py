"""The house: what a folder shows, which way imports point, and one meaning per name."""

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RACELAB, AGENTS = ROOT / "04-testing" / "racelab", ROOT / "05-production" / "agents"
CHAPTERS = sorted(folder for folder in ROOT.glob("0?-*") if folder.is_dir())
# The most entries that a reader sees in a folder.
ENTRIES = {"01": 18, "02": 24, "03": 28, "04": 20, "05": 32}
# What supports the lessons. Lessons themselves use short names, each pair its own.
SUPPORT = (
    *(RACELAB, AGENTS, ROOT / "04-testing" / "planted_bugs"),
    *(
        ROOT / "05-production" / room
        for room in ("research_team", "beyond_one_machine")
    ),
)


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def scripts() -> list[Path]:
    return [script for chapter in CHAPTERS for script in sorted(chapter.glob("*.py"))]


def imports(file: Path) -> Iterator[str]:
    """The absolute names of all modules that a file imports."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_of(package: str, module: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)
def test_a_folder_shows_the_lessons_and_few_other_entries(chapter: Path) -> None:
    """Your own copies of scripts do not count: only what git tracks does."""
    command = ["git", "ls-files", "--cached"]
    tracked = subprocess.run(command, cwd=chapter, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    entries = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    assert len(entries) <= ENTRIES[chapter.name[:2]], sorted(entries)
    assert not [name for name in entries if name.startswith("test_")]


def test_only_the_pytest_room_of_racelab_imports_pytest() -> None:
    for module in modules(RACELAB):
        if module.parent.name != "pytest":
            used = set(imports(module))
            assert not [name for name in used if is_of("pytest", name)], module
            assert not [name for name in used if is_of("racelab.pytest", name)], module


def test_no_script_imports_the_pytest_room() -> None:
    solutions = [s for chapter in CHAPTERS for s in modules(chapter / "solutions")]
    rooms = [module for room in SUPPORT[1:] for module in modules(room)]
    for script in [*scripts(), *solutions, *rooms]:
        used = [name for name in imports(script) if is_of("racelab.pytest", name)]
        assert not used, script


def test_racelab_knows_no_chapter_and_agents_knows_nothing_of_this_repository() -> None:
    here = {script.stem for script in scripts()}
    here |= {folder.name for folder in SUPPORT if folder != RACELAB}
    for module in [*modules(RACELAB), *modules(AGENTS)]:
        used = {name.split(".")[0] for name in imports(module)}
        known = here | ({"racelab"} if module.is_relative_to(AGENTS) else set())
        assert not used & known, module


def test_importing_racelab_does_nothing_else() -> None:
    """At their top level, modules import, define and assign."""
    for module in [*modules(RACELAB), *modules(AGENTS)]:
        for statement in ast.parse(module.read_text("utf-8")).body:
            is_call = isinstance(statement, ast.Expr) and not isinstance(
                statement.value, ast.Constant
            )
            assert not is_call, f"{module}:{statement.lineno}"


def test_no_two_modules_of_racelab_and_agents_share_a_file_name() -> None:
    places = defaultdict(list)
    for module in [*modules(RACELAB), *modules(AGENTS)]:
        if not module.name.startswith("__"):
            places[module.name].append(str(module.relative_to(ROOT)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_a_class_name_has_one_meaning() -> None:
    places = defaultdict(list)
    for module in [m for folder in SUPPORT for m in modules(folder)]:
        for name in re.findall(
            r"^class (\w+)", module.read_text("utf-8"), re.MULTILINE
        ):
            places[name].append(str(module.relative_to(ROOT)))
    allowed = {
        "TokenBucket"
    }  # racelab's server has one, and the folder to copy another
    shared = {name for name, found in places.items() if len(found) > 1}
    assert shared <= allowed, {name: places[name] for name in shared}
