"""What every script, pair and README of the repository keeps to."""

import ast
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

from racelab.pytest.readme_check import Block, blocks_of, diff
from racelab.pytest.run_scripts import Reader

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(folder for folder in ROOT.glob("0?-*") if folder.is_dir())
SCRIPTS = sorted(
    script for folder in FOLDERS for script in folder.glob("[bf][reix]*_*.py")
)
BROKEN = [script for script in SCRIPTS if script.name.startswith("broken_")]
HEADINGS = [
    "Claim",
    "Run it",
    "What you see",
    "Why",
    "The fix",
    "When not to use it",
    "The other pairs",
    "Exercises",
]


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def docstring(script: Path) -> str:
    return ast.get_docstring(ast.parse(script.read_text("utf-8"))) or ""


def test_the_top_level_is_what_a_reader_expects() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    assert {entry for entry in top if not entry.startswith(".")} == {
        *(folder.name for folder in FOLDERS),
        "README.md",
        "requirements.txt",
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_docstring_says_claim_run_next_and_report(script: Path) -> None:
    claim, *facts = docstring(script).splitlines()
    found = dict(re.findall(r"^(\w+): +(.+)$", "\n".join(facts), re.MULTILINE))
    assert claim.endswith(".")
    assert found["Run"].split()[:2] == ["python", script.name]
    for following in re.findall(r"\S+\.(?:py|md)", found["Next"]):
        assert (script.parent / following).exists()
    if not script.name.startswith("benchmark_"):
        assert found["Real"].startswith("https://github.com/")
        readme = (script.parent / "README.md").read_text("utf-8")
        assert found["Real"] in readme
        assert f"({script.name})" in readme


@pytest.mark.parametrize("broken", BROKEN, ids=name)
def test_the_diff_of_a_pair_is_small(broken: Path) -> None:
    """About ten changed lines of code on each side; comments don't count.

    The three designs for one record are more than a fix.
    """
    most = 24 if broken.name == "broken_team_state.py" else 12
    fixes = sorted(broken.parent.glob(broken.name.replace("broken_", "fixed_")))
    fixes += broken.parent.glob(broken.name.replace("broken_", "fixed_")[:-3] + "_*.py")
    assert fixes
    for fixed in fixes:
        lines = diff(broken, fixed).splitlines()
        code = [line for line in lines if not re.match(r"[-+]\s*(#|$)", line)]
        for side in "-+":
            assert sum(line.startswith(side) for line in code) <= most, fixed.name


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_script_is_short(script: Path) -> None:
    lines = script.read_text("utf-8").splitlines()
    most = 95 if "team_state" in script.name else 82  # three designs
    assert len(lines) <= (175 if script.name.startswith("benchmark_") else most)
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.returns is not None
            assert (node.end_lineno or 0) - node.lineno < 25


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_what_a_script_prints_is_ascii(script: Path) -> None:
    with open(script, "rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    assert all(token.string.isascii() for token in tokens)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_chapter_has_its_headings(folder: Path) -> None:
    text = (folder / "README.md").read_text("utf-8")
    if not list(folder.glob("broken_*.py")):
        assert "not written yet" in text.lower()
        return
    found = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert [heading for heading in found if heading in HEADINGS] == HEADINGS


@pytest.mark.parametrize("block", blocks_of(ROOT / "README.md"), ids=str)
def test_first_readme_block_is_fresh(block: Block, reader: Reader) -> None:
    assert block.is_fresh(reader.output)


def test_local_links_lead_somewhere() -> None:
    inner = [
        readme for folder in FOLDERS for readme in sorted(folder.rglob("README.md"))
    ]
    for readme in [ROOT / "README.md", *inner]:
        links = re.findall(r"\]\((?!https?://)([^)#]*)", readme.read_text("utf-8"))
        missing = [link for link in links if not (readme.parent / link).exists()]
        assert missing == [], readme
