"""A test that would leave this machine fails, even if it catches the error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from racelab.guard import is_loopback

FAR = "('192.0.2.1', 80)"  # an address for documentation: nobody has it (RFC 5737)
CHILD = (
    "import racelab, socket; "
    f"racelab.start(lambda: socket.create_connection({FAR}, timeout=1))"
)
TESTS = f"""
import contextlib, socket, subprocess, sys

def test_connection():
    with contextlib.suppress(Exception):
        socket.create_connection({FAR}, timeout=1)

def test_look_up():
    with contextlib.suppress(Exception):
        socket.getaddrinfo("example.org", 80)

def test_datagram():
    with contextlib.suppress(Exception), socket.socket(type=socket.SOCK_DGRAM) as s:
        s.sendto(b"", {FAR})

def test_sdk():
    import openai
    with contextlib.suppress(Exception), openai.OpenAI(api_key="x") as client:
        client.with_options(max_retries=0).models.list()

def test_child():
    assert not subprocess.run([sys.executable, "-c", {CHILD!r}]).returncode

def test_this_machine_is_fine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
"""


def test_tests_that_would_leave_this_machine_fail(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    plugin = ["-p", "racelab.pytest.plugin", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "OPENAI_API_KEY": "x"},
        capture_output=True,
        text=True,
    )
    assert "5 failed, 1 passed" in ran.stdout, ran.stdout
    assert ran.stdout.count("the test tried to reach") >= 4
    assert "LeftTheMachine: '192.0.2.1' is not on this machine" in ran.stdout


@pytest.mark.parametrize(
    "host", ["", "localhost", "127.0.0.1", "127.9.9.9", "::1", b""]
)
def test_this_machine_is_loopback(host: str | bytes) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.1", "192.168.0.1", "example.org", "8.8.8.8"])
def test_other_machines_are_not(host: str) -> None:
    assert not is_loopback(host)
