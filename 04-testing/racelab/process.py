"""The local model server as a child process: started, asked for counts, and gone."""

import atexit
import json
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Self

from racelab.reader_error import ReaderError
from racelab.settings import Settings, Stats

CONTROL_TIMEOUT = 60.0  # seconds until a server that does not say its counts is gone

# Never through a proxy from the environment: the server is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(ReaderError):
    """The local model server could not be started, or is gone."""


class LocalServer:
    """A running local model server.

    It ends with `close()`, and also when this process ends in any way, because it
    notices that the pipe to its standard input was closed.
    """

    api_key = "local"  # any key will do

    def __init__(self, settings: Settings) -> None:
        """Start the process. `wait()` returns when it is ready."""
        _reach_directly("127.0.0.1")
        self._secret = secrets.token_urlsafe(16)
        self._port: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "racelab.server", "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "RACELAB_CONTROL_SECRET": self._secret},
        )
        atexit.register(self.close)
        self._send_settings(settings)

    def _send_settings(self, settings: Settings) -> None:
        line = json.dumps(settings.to_json()) + "\n"
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()

    def wait(self) -> Self:
        """Return when the server is ready to answer."""
        if self._port is None:
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
            ready = json.loads(line) if line else {}
            if "port" not in ready:
                self.close()
                why = ready.get("error", "it ended before it was ready")
                raise ServerError(f"the local model server did not start: {why}")
            self._port = ready["port"]
        return self

    @property
    def base_url(self) -> str:
        self.wait()
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def pid(self) -> int:
        return self._process.pid

    def stats(self) -> Stats:
        """What the server has seen since its start or the last `reset`."""
        return Stats.from_json(self._control("GET", "stats"))

    def reset(self, settings: Settings | None = None) -> None:
        """Forget all counts and refill the buckets; with new settings, if given."""
        body = None if settings is None else json.dumps(settings.to_json()).encode()
        self._control("POST", "reset", body)

    def _control(self, method: str, name: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(
            self.base_url.removesuffix("/v1") + f"/control/{name}",
            data=body,
            method=method,
            headers={"x-control-secret": self._secret},
        )
        try:
            with _opener.open(request, timeout=CONTROL_TIMEOUT) as response:
                return json.load(response)
        except OSError as error:
            raise ServerError(f"the local model server is gone: {error}") from error

    def close(self) -> None:
        """End the server. A second call does nothing."""
        atexit.unregister(self.close)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()  # end of its standard input: the server ends
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _reach_directly(host: str) -> None:
    """Let no proxy from the environment stand between any client and `host`."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [part for part in os.environ.get(name, "").split(",") if part]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, host]))


_shared: ContextVar[tuple[LocalServer, float] | None] = ContextVar(
    "racelab_shared_server", default=None
)


@contextmanager
def local_server(**settings: Any) -> Iterator[LocalServer]:
    """Start a local model server, with the fields of `Settings` as arguments.

    It is starting when the body of the `with` begins; the first use waits for it.
    Raises `BadSetting` for a value that is not allowed.
    """
    chosen = Settings(**settings)
    shared = _shared.get()
    if shared is not None:
        server, speed = shared
        server.reset(replace(chosen, latency=chosen.latency / speed))
        yield server
        return
    server = LocalServer(chosen)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def reuse_server(server: LocalServer, speed: float = 1.0) -> Iterator[None]:
    """Let `local_server()` reset and return `server` instead of starting another.

    For tests: a script's own `main()` can run hundreds of times on one server, whose
    latencies are divided by `speed`.
    """
    token = _shared.set((server, speed))
    try:
        yield
    finally:
        _shared.reset(token)
