"""`open_model()`: whom it asks, and one clear line when there is no answer."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from racelab import (
    Fault,
    Refused,
    Settings,
    local_server,
    open_model,
    open_model_sync,
)
from racelab.model import DEFAULT_MODEL
from racelab.process import LocalServer
from racelab.pytest.run_scripts import Ran, RunScript

CHAPTER_1 = "../01-race-conditions"
KEY = "sk-test-0123456789abcdef"
SCRIPTS = [
    f"{CHAPTER_1}/{kind}_{pair}.py"
    for pair in ("agents", "shared_history", "shared_agent", "wrong_owner")
    for kind in ("broken", "fixed")
]


@pytest.fixture
def play_real(run_inprocess: RunScript, monkeypatch: pytest.MonkeyPatch) -> RunScript:
    """Run a script's `main()` here, with a server that stands for the real API."""

    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)

    def run(name: str, base_url: str, **changes: str) -> Ran:
        environment = {"RACELAB_LOCAL": "", "OPENAI_API_KEY": KEY}
        environment["OPENAI_BASE_URL"] = base_url
        for variable, value in {**environment, **changes}.items():
            monkeypatch.setenv(variable, value)
        return run_inprocess(name)

    return run


async def test_a_question_gets_its_answer(model_server: LocalServer) -> None:
    async with open_model(model_server) as ask:
        assert "Lyon" in await ask("Is Lyon a city?")
    assert model_server.stats().answered == 1


def test_threads_have_a_twin(model_server: LocalServer) -> None:
    with open_model_sync(model_server) as ask:
        assert "Lyon" in ask("Is Lyon a city?")
    assert model_server.stats().answered == 1


async def test_a_refusal_says_its_status_and_why(model_server: LocalServer) -> None:
    async with open_model(model_server) as model:
        with pytest.raises(
            Refused, match=r"127\.0\.0\.1 answered 400: .*tool"
        ) as refusal:
            await model.chat([{"role": "tool", "tool_call_id": "1", "content": "x"}])
    assert refusal.value.status == 400


@pytest.mark.parametrize("name", SCRIPTS)
def test_with_a_key_the_scripts_ask_the_api(
    name: str, play_real: RunScript, model_server: LocalServer
) -> None:
    ran = play_real(name, model_server.base_url, OPENAI_MODEL="tiny")
    assert ran.word == ("BROKEN" if "broken" in name else "OK"), ran
    assert ran.err == "model: tiny at 127.0.0.1\n"
    assert model_server.stats().answered > 0


def test_a_script_that_counts_at_the_server_stays_local(play_real: RunScript) -> None:
    with local_server() as api:
        ran = play_real(f"{CHAPTER_1}/fixed_double_spend.py", api.base_url)
        assert ran.word == "OK"
        assert api.stats().received == 0


def fails(ran: Ran, *words: str) -> None:
    """Status 2, one line that has these words, no verdict, and no key."""
    assert ran.status == 2, ran
    assert ran.out == ""
    *_, line = ran.err.splitlines()
    assert all(word in line for word in ("error:", *words)), line
    assert ran.err.count("\n") <= 2
    assert KEY not in ran.err


def test_a_wrong_key_is_one_line(script: RunScript) -> None:
    environment = {"RACELAB_LOCAL": "", "OPENAI_API_KEY": KEY}
    with local_server(api_key="sk-the-right-one") as api:
        ran = script(SCRIPTS[0], **environment, OPENAI_BASE_URL=api.base_url)
    fails(ran, "401", "OPENAI_API_KEY")


def test_impossible_key_is_one_line_without_it(play_real: RunScript) -> None:
    ran = play_real(SCRIPTS[0], "http://127.0.0.1/v1", OPENAI_API_KEY=f"{KEY}\n{KEY}")
    fails(ran, "OPENAI_API_KEY")


def test_a_refused_connection_is_one_line(play_real: RunScript) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    fails(play_real(SCRIPTS[0], url), "cannot be reached", "OPENAI_BASE_URL")


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://here/v1", "http://", "http://x:99999/v1", "nonsense"],
)
def test_base_url_that_is_no_url_is_one_line(url: str, play_real: RunScript) -> None:
    fails(play_real(SCRIPTS[0], url), f"OPENAI_BASE_URL='{url}' is not a URL")


def test_a_key_pasted_as_the_url_is_not_shown(play_real: RunScript) -> None:
    fails(play_real(SCRIPTS[0], KEY), "OPENAI_BASE_URL", "not a URL")


def test_an_unknown_model_is_one_line(play_real: RunScript) -> None:
    with local_server(models=["other"]) as api:
        ran = play_real(SCRIPTS[0], api.base_url)
    fails(ran, "404", DEFAULT_MODEL, "OPENAI_MODEL")


def test_wrong_path_is_one_line(
    play_real: RunScript, model_server: LocalServer
) -> None:
    fails(play_real(SCRIPTS[0], model_server.base_url.removesuffix("/v1")), "404")


@pytest.mark.parametrize("kind", ["malformed", "cut", "500", "429"])
def test_a_broken_answer_is_one_line(
    kind: str, play_real: RunScript, model_server: LocalServer
) -> None:
    fault = Fault(kind, probability=1.0, retry_after=0.01)
    model_server.reset(Settings(faults=(fault,)))
    fails(play_real(SCRIPTS[0], model_server.base_url), "127.0.0.1")


def endpoint_of(script: Path, cwd: Path, **environment: str) -> str:
    """Whom a script at this place would ask."""
    ended = run_there(script, cwd, **environment)
    assert ended.returncode == 0, ended
    return ended.stdout.strip()


def run_there(
    script: Path, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    script.write_text(
        "from racelab import start\n"
        "from racelab.model import real_endpoint\n"
        "def main():\n"
        "    found = real_endpoint()\n"
        "    print(found and (found.base_url, found.model, found.api_key))\n"
        "    return 0\n"
        "start(main)\n"
    )
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=cwd,
        env={**inherited, "RACELAB_LOCAL": "", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a `.env`, a folder with scripts in it, and a folder elsewhere."""
    (tmp_path / "project" / "chapter").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "project"


def test_a_dotenv_is_found_from_every_folder(project: Path) -> None:
    (project / ".env").write_text(
        "OPENAI_API_KEY=one\nOPENAI_MODEL=\nOPENAI_BASE_URL=http://here/v1\n"
    )
    script = project / "chapter" / "script.py"
    expected = str(("http://here/v1", DEFAULT_MODEL, "one"))
    for cwd in (project, project / "chapter", project.parent / "elsewhere"):
        assert endpoint_of(script, cwd) == expected


def test_what_is_set_goes_before_the_dotenv(project: Path) -> None:
    (project / ".env").write_text("OPENAI_API_KEY=one\nOPENAI_MODEL=a\n")
    script = project / "chapter" / "script.py"
    found = endpoint_of(script, project, OPENAI_API_KEY="two", OPENAI_MODEL="b")
    assert found == str(("https://api.openai.com/v1", "b", "two"))


def test_an_empty_value_counts_as_unset(project: Path) -> None:
    script = project / "chapter" / "script.py"
    assert endpoint_of(script, project, OPENAI_API_KEY="") == "None"
    (project / ".env").write_text("OPENAI_API_KEY=\n")
    assert endpoint_of(script, project, OPENAI_BASE_URL="http://here/v1") == "None"
    (project / ".env").write_text("OPENAI_API_KEY=one\n")
    found = endpoint_of(script, project, OPENAI_API_KEY=" ", OPENAI_BASE_URL="")
    assert found == str(("https://api.openai.com/v1", DEFAULT_MODEL, "one"))


def test_a_dotenv_that_is_no_text_is_one_line(project: Path) -> None:
    (project / ".env").write_bytes(b"OPENAI_API_KEY=\xff\xfe")
    ended = run_there(project / "chapter" / "script.py", project)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {project / '.env'} cannot be read")
    assert ended.stderr.count("\n") == 1


def test_the_example_env_names_all_three_and_no_value() -> None:
    text = (Path(__file__).parents[2] / ".env.example").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == ["OPENAI_API_KEY=", "OPENAI_MODEL=", "OPENAI_BASE_URL="]


def test_the_default_model_is_listed_and_not_deprecated() -> None:
    from typing import get_args

    from openai.types import ChatModel
    from openai.types.shared import chat_model

    assert DEFAULT_MODEL in get_args(ChatModel)
    deprecated = Path(chat_model.__file__).read_text().partition("Deprecated values")[2]
    assert f'"{DEFAULT_MODEL}"' not in deprecated
