"""The folder `agents`, copied into an empty project, under this name or another one."""

import ast
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from racelab import LocalServer

AGENTS = Path(__file__).parents[1] / "agents"
NAMES = ("crew", "agents")  # OpenAI's Agents SDK is imported as `agents`, too

# Lets nobody import what the project has not installed; then asks one question.
PROJECT = """
import asyncio, importlib, sys

base_url, installed, *folders = sys.argv[1:]
there = {*installed.split(","), *sys.stdlib_module_names}

class Installed:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in there and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Installed())

async def main(crew, file):
    from openai import AsyncOpenAI, DefaultAioHttpClient
    limits = crew.Limits(rpm=600, tpm=100_000)
    http = DefaultAioHttpClient(verify=False, trust_env=False)
    client = AsyncOpenAI(base_url=base_url, api_key="any", http_client=http)
    with crew.Journal(file) as journal:
        ask = crew.openai_ask(client, "any", limits)
        async with client, crew.Team(ask, limits, journal=journal) as team:
            with crew.stop_on_signals(team):
                async for outcome in team.run([crew.__name__]):
                    print(outcome.text)

try:
    import racelab
except ModuleNotFoundError as error:
    print(error)
for folder in folders:
    name = folder.rpartition("-")[2]
    there.add(name)
    sys.path.insert(0, folder)
    asyncio.run(main(importlib.import_module(name), f"{folder}/run.db"))
"""


def needed(*requirements: str) -> set[str]:
    """The names of these distributions and of all that they need."""
    found, left = set[tuple[str, str]](), [*map(Requirement, requirements)]
    while left:
        wanted = left.pop()
        for extra in ("", *wanted.extras):
            if (one := (canonicalize_name(wanted.name), extra)) not in found:
                found.add(one)
                for line in requires(wanted.name) or []:
                    part = Requirement(line)
                    if part.marker is None or part.marker.evaluate({"extra": extra}):
                        left.append(part)
    return {name for name, _ in found}


def test_agents_need_nothing_but_openai(
    tmp_path: Path, model_server: LocalServer
) -> None:
    distributions = needed("openai[aiohttp]")
    installed = [
        module
        for module, sources in packages_distributions().items()
        if distributions & {canonicalize_name(source) for source in sources}
    ]
    folders = [tmp_path / f"project-of-{name}" for name in NAMES]
    for folder, name in zip(folders, NAMES, strict=True):
        shutil.copytree(
            AGENTS, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    ran = subprocess.run(
        [
            *(sys.executable, "-I", "-X", "utf8", "-W", "error", "-c", PROJECT),
            *(model_server.base_url, ",".join(installed), *map(str, folders)),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.stderr == ""
    assert ran.returncode == 0
    first, *answers = ran.stdout.splitlines()
    assert first == "No module named 'racelab'"
    assert len(answers) == len(NAMES)
    assert dict(model_server.stats().answers) == dict.fromkeys(NAMES, 1)


def test_only_openai_ask_imports_a_package() -> None:
    imports: dict[str, set[str]] = {}
    for file in AGENTS.glob("*.py"):
        text = file.read_text("utf-8")
        assert "environ" not in text
        assert "getenv" not in text
        for node in ast.walk(ast.parse(text)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                imports.setdefault(name.partition(".")[0], set()).add(file.name)
    assert {
        name: files
        for name, files in imports.items()
        if name not in sys.stdlib_module_names
    } == {"openai": {"openai_ask.py"}}
