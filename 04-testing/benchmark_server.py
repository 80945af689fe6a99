"""
The local model server answers thousands of questions a second on one core.

Run:   python benchmark_server.py
Next:  README.md

Beside it, in the same run, a bare aiohttp handler that sends a body of the same size,
and neither reads the question nor checks or counts anything. The difference is the
price of all that. Each server has its own process; this one only makes the load.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from aiohttp import web

from racelab import result, start, table

CONNECTIONS = 32  # each sends its next request when it has its answer
ROUNDS = 5
SECONDS = 0.8  # per round and server
SECRET = "benchmark"
CHAT, STATS = "/v1/chat/completions", "/control/stats"


def request(method: str, path: str, value: object = None) -> bytes:
    body = b"" if value is None else json.dumps(value).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer key\r\n"
        f"x-control-secret: {SECRET}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def ask(question: str) -> bytes:
    message = {"role": "user", "content": question}
    return request("POST", CHAT, {"model": "any", "messages": [message]})


QUESTIONS = [ask(f"What do the papers say about topic {n}?") for n in range(100)]


class Client(asyncio.Protocol):
    """Asks one question after another: far cheaper than a real client."""

    def __init__(self, requests: list[bytes], until: float) -> None:
        self.requests, self.until = requests, until
        self.received, self.body = b"", b""
        self.answers = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.requests[0])

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, blank_line, self.body = self.received.partition(b"\r\n\r\n")
        if not blank_line:
            return
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
        if len(self.body) < int(length):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self.received.decode()))
        self.received = b""
        self.answers += 1
        if time.perf_counter() < self.until:
            self.transport.write(self.requests[self.answers % len(self.requests)])
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def drive(port: int, requests: list[bytes], until: float = 0.0) -> Client:
    """One connection, from its first request until the answer after `until`."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(
        lambda: Client(requests, until), "127.0.0.1", port
    )
    await client.done
    return client


async def cpu_seconds(port: int) -> float:
    client = await drive(port, [request("GET", STATS)])
    return float(json.loads(client.body)["cpu_seconds"])


async def measure(port: int) -> tuple[float, float]:
    """Answers per second, and per second of the server's CPU time."""
    cpu, begin = await cpu_seconds(port), time.perf_counter()
    clients = await asyncio.gather(
        *(drive(port, QUESTIONS[n:], begin + SECONDS) for n in range(CONNECTIONS))
    )
    wall = time.perf_counter() - begin
    answers = sum(client.answers for client in clients)
    return answers / wall, answers / (await cpu_seconds(port) - cpu)


async def serve_bare(size: int) -> None:
    """The other side of the comparison; `size` is that of its answers, in bytes."""
    body = b"{" + b" " * (size - 2) + b"}"

    async def chat(request: web.Request) -> web.Response:
        await asyncio.sleep(0)
        return web.Response(body=body, content_type="application/json")

    async def stats(request: web.Request) -> web.Response:
        return web.json_response({"cpu_seconds": time.process_time()})

    app = web.Application()
    app.add_routes([web.post(CHAT, chat), web.get(STATS, stats)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until the parent is gone
    await runner.cleanup()


@contextmanager
def child(*arguments: str) -> Iterator[int]:
    """A server in a process of its own; gives its port."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "RACELAB_CONTROL_SECRET": SECRET},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"latency": 0}\n')
        process.stdin.flush()
        yield json.loads(process.stdout.readline())["port"]


async def main() -> int:
    with child("-m", "racelab.server", "--child") as ours:
        size = len((await drive(ours, QUESTIONS)).body)
        with child(__file__, "--bare", str(size)) as bare:
            ports = {"racelab": ours, "bare aiohttp": bare}
            runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ports}
            for warm_up in (True, *[False] * ROUNDS):
                for name, port in ports.items():
                    speed = await measure(port)
                    if not warm_up:
                        runs[name].append(speed)
    rows = [("server", "per second", "per second of its CPU")]
    for name, speeds in runs.items():
        wall, cpu = (median(column) for column in zip(*speeds, strict=True))
        rows.append((name, f"{wall:,.0f} answers/s", f"{cpu:,.0f} answers/s"))
    print(table(*rows))
    fast, floor = (median(cpu for _, cpu in runs[name]) for name in ports)
    share = f"{fast / floor:.0%} of a bare aiohttp handler"
    return result(f"{fast:,.0f} answers/s on one core, {share}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        asyncio.run(serve_bare(int(sys.argv[2])))
    else:
        start(main)
