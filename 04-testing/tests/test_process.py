"""The local server's process: it is there when needed, and gone when its parent is."""

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from racelab import BadSetting, Fault, ServerError, local_server, open_model
from racelab.process import LocalServer, reuse_server

END_TIMEOUT = 120  # seconds until a process that does not end fails the test

# Starts a server, says its port, and then does what the test wants to see.
PARENT = """
import sys, time
from racelab import local_server
with local_server() as server:
    print(server.base_url, flush=True)
    {then}
"""
unix_only = pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")


@contextmanager
def parent(then: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A process that has a local server, and the server's base URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(then=then)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def is_gone(base_url: str) -> bool:
    """True as soon as nobody listens there any more."""
    host, port = base_url.removeprefix("http://").removesuffix("/v1").split(":")

    async def wait_until_refused() -> bool:
        async with asyncio.timeout(END_TIMEOUT):
            while True:
                try:
                    _, writer = await asyncio.open_connection(host, int(port))
                except ConnectionRefusedError:
                    return True
                except ConnectionResetError:  # it is just going
                    continue
                writer.close()

    return asyncio.run(wait_until_refused())


def test_it_is_gone_after_the_with_block() -> None:
    with local_server() as server:
        url = server.base_url
    assert is_gone(url)


def test_it_is_gone_after_an_exception() -> None:
    with parent("raise ValueError") as (process, url):
        process.wait(END_TIMEOUT)
        assert is_gone(url)


def test_it_is_gone_when_its_parent_exits_uncleanly() -> None:
    with parent("import os; os._exit(3)") as (process, url):
        process.wait(END_TIMEOUT)
        assert is_gone(url)


def test_it_is_gone_when_its_parent_is_killed() -> None:
    with parent("time.sleep(600)") as (process, url):
        process.kill()  # SIGKILL on Unix: no chance to clean up
        assert is_gone(url)


@unix_only
def test_it_is_gone_after_ctrl_c_to_both() -> None:
    """A terminal sends Ctrl-C to every process of the script, the server included."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(then="time.sleep(600)")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        os.killpg(process.pid, signal.SIGINT)
        assert is_gone(url)
        _, err = process.communicate(timeout=END_TIMEOUT)
    assert err.count("Traceback") == 1  # the parent's own; the server is silent


@unix_only
def test_ctrl_c_is_one_line_and_status_130(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio\n"
        "from racelab import open_model, start\n"
        "async def main():\n"
        "    async with open_model() as ask:\n"
        "        print('ready', flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "start(main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=END_TIMEOUT)
    assert process.returncode == 130
    assert err == "model: local server, no key needed\nerror: interrupted\n"


def test_it_listens_on_loopback_only(model_server: LocalServer) -> None:
    assert model_server.base_url.startswith("http://127.0.0.1:")


def test_control_without_the_secret_is_refused(model_server: LocalServer) -> None:
    url = model_server.base_url.removesuffix("/v1") + "/control/stats"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url)
    with refusal.value:
        assert refusal.value.code == 403


async def test_a_reset_forgets_the_counts(model_server: LocalServer) -> None:
    async with open_model(model_server) as ask:
        await ask("Is Lyon a city?")
    model_server.reset()
    stats = model_server.stats()
    assert (stats.received, stats.answered, stats.answers) == (0, 0, {})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"latency": -1}, "latency=-1: must be a number from 0 to 600"),
        ({"rpm": 0}, "rpm=0: must be a number from 1"),
        ({"seed": 1.5}, "seed=1.5: must be a whole number"),
        ({"faults": [{"kind": "fire"}]}, "fault 'fire': must be one of 500, 503"),
        (
            {"faults": [{"kind": "500", "often": 1}]},
            "'often': must be one of kind",
        ),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(
    settings: dict[str, object], says: str
) -> None:
    with pytest.raises(BadSetting) as error, local_server(**settings):
        pass
    assert says in str(error.value)


def test_a_server_that_is_gone_is_a_clear_error() -> None:
    with local_server() as server:
        assert server.stats().received == 0
    with pytest.raises(ServerError, match="is gone"):
        server.stats()


async def test_settings_reach_the_server() -> None:
    with local_server(faults=[Fault("500", calls=(1,))]) as server:
        async with open_model(server) as ask:
            with pytest.raises(Exception, match="answered 500"):
                await ask("one")
            assert "two" in await ask("two")
        assert server.stats().refused == {"500": 1}


def test_local_server_is_the_one_that_is_reused(
    model_server: LocalServer,
) -> None:
    with reuse_server(model_server), local_server(latency=0) as server:
        assert server is model_server


def test_no_proxy_of_the_environment_comes_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "example.org")

    async def ask_it() -> str:
        from openai import AsyncOpenAI

        async with AsyncOpenAI(
            base_url=server.base_url, api_key=server.api_key, max_retries=0
        ) as client:
            completion = await client.chat.completions.create(
                model="any", messages=[{"role": "user", "content": "hello"}]
            )
        return completion.choices[0].message.content or ""

    with local_server(latency=0) as server:
        assert "hello" in asyncio.run(ask_it())
    assert os.environ["NO_PROXY"].split(",") == ["example.org", "127.0.0.1"]
