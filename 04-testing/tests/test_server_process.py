"""The local model server as a process: by hand, and as the child of another."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from racelab.server import serve
from racelab.server.options import parse
from racelab.settings import Fault, Settings

COMMAND = [sys.executable, "-m", "racelab.server"]
PROCESS_TIMEOUT = 60.0  # seconds
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy
posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def tell(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def call(port: int, path: str = "/v1/models", **headers: str) -> tuple[int, Any]:
    """The status and the JSON of one request."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with DIRECT.open(request, timeout=PROCESS_TIMEOUT) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rpm many", "argument --rpm: invalid float value: 'many'"),
        ("--rpm 0", "rpm=0.0: must be a number from 1 to 1e+12"),
        ("--port x", "argument --port: invalid int value: 'x'"),
        ("--colour red", "unrecognized arguments: --colour red"),
        (
            "--fault rain:calls=1",
            "fault 'rain': must be one of 500, 503, 429, reset, hang,",
        ),
        ("--fault 500:when=1", "'when': must be one of kind, probability, calls,"),
        ("--fault 500:probability=2", "probability=2.0: must be a number from 0 to 1"),
        ("--fault 500:calls=a", "argument --fault: invalid fault value: '500:calls=a'"),
    ],
)
def test_bad_option_prints_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments.split(), {})
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"racelab.server: {message}")


def test_every_setting_is_an_option() -> None:
    options = "--port 0 --latency 1 --spread 0 --seed 7 --rpm 60 --tpm 600"
    options += " --request-burst 5 --token-burst 50 --no-count-refused --models a,b"
    options += " --chunk-delay 0.5 --fault 503:probability=0.1:retry_after=2"
    options += " --fault cut:calls=3,5:question=a:b=c"
    assert parse(options.split(), {"RACELAB_API_KEY": "secret"}) == (
        Settings(
            latency=1,
            spread=0,
            seed=7,
            rpm=60,
            tpm=600,
            request_burst=5,
            token_burst=50,
            count_refused=False,
            chunk_delay=0.5,
            api_key="secret",
            models=("a", "b"),
            faults=(
                Fault("503", probability=0.1, retry_after=2),
                Fault("cut", calls=(3, 5), question="a:b=c"),
            ),
        ),
        0,
    )
    assert parse([], {}) == (Settings(), 8000)


def test_port_that_cannot_be_used_prints_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 70_000):
            command = [*COMMAND, "--port", str(port)]
            ended = subprocess.run(command, capture_output=True, text=True)
            assert (ended.returncode, ended.stdout) == (2, "")
            assert ended.stderr.startswith("racelab.server: ")
            assert ended.stderr.count("\n") == 1


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_by_hand_prints_its_address_and_counts(number: int) -> None:
    secrets = {"RACELAB_API_KEY": "sk-hidden", "RACELAB_CONTROL_SECRET": "s3cret"}
    with running("--port", "0", "--latency", "0", **secrets) as process:
        where, how = line_of(process), line_of(process)
        base_url = where.split()[5]
        port = int(base_url.split(":")[2].removesuffix("/v1"))
        assert how == (
            f'export OPENAI_BASE_URL={base_url} OPENAI_API_KEY="$RACELAB_API_KEY"\n'
        )
        assert call(port)[0] == 401
        assert call(port, authorization="Bearer sk-hidden")[0] == 200
        assert call(port, "/control/stats", x_control_secret="s3cret")[0] == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=PROCESS_TIMEOUT)
    assert process.returncode == 0
    assert err == ""
    assert out.splitlines()[0].split() == ["received", "0"]
    for secret in secrets.values():
        assert secret not in where + how + out


def test_child_prints_its_port_and_ends_with_its_input() -> None:
    settings = Settings(latency=0, api_key="right")
    with running("--child", RACELAB_CONTROL_SECRET="s3cret") as process:
        tell(process, json.dumps(settings.to_json()))
        port = json.loads(line_of(process))["port"]
        assert call(port, authorization="Bearer wrong")[0] == 401
        assert call(port, authorization="Bearer right")[0] == 200
        status, stats = call(port, "/control/stats", x_control_secret="s3cret")
        assert (status, stats["received"]) == (200, 0)
        out, err = process.communicate(timeout=PROCESS_TIMEOUT)  # closes its input
    assert (out, err, process.returncode) == ("", "", 0)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"rpm": 0}', "rpm=0: must be a number from 1 to 1e+12"),
        ("{", "Expecting property name"),
    ],
)
def test_child_with_bad_settings_prints_the_error(line: str, error: str) -> None:
    with running("--child") as process:
        out, err = process.communicate(line + "\n", timeout=PROCESS_TIMEOUT)
    assert process.returncode == 2
    assert json.loads(out)["error"].startswith(error)
    assert err == ""


@posix_only
def test_a_child_leaves_ctrl_c_to_its_parent() -> None:
    with running("--child") as process:
        tell(process, "{}")
        port = json.loads(line_of(process))["port"]
        process.send_signal(signal.SIGINT)
        assert call(port, authorization="Bearer any")[0] == 200
        process.communicate(timeout=PROCESS_TIMEOUT)
    assert process.returncode == 0


def test_a_child_is_gone_when_its_parent_was_killed() -> None:
    parent = textwrap.dedent(
        """
        import subprocess, sys, time
        child = subprocess.Popen(
            [sys.executable, "-m", "racelab.server", "--child"],
            stdin=subprocess.PIPE,
        )
        child.stdin.write(b"{}\\n")
        child.stdin.flush()
        time.sleep(60)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as process:
        port = json.loads(line_of(process))["port"]  # written by the child
        assert call(port, authorization="Bearer any")[0] == 200
        process.kill()
        assert process.stdout is not None
        assert process.stdout.read() == ""  # its end: the child is gone too
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_child_imports_no_heavy_package() -> None:
    heavy = ("openai", "pydantic", "httpx", "httpx2", "rich")
    code = (
        f"import racelab.server, sys; print([m for m in {heavy} if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "[]\n"


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 may not exist")
async def test_the_server_listens_on_one_loopback_address_only() -> None:
    async with serve() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.2", server.port)
