"""
The local model server as a process: by hand, or as the child of another.

Run:   python -m racelab.server --port 8000 --rpm 60
Then:  point any client at the address that it prints
Stop:  Ctrl-C, and it prints its counts
"""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

from racelab import guard
from racelab.server import serve
from racelab.server.options import parse
from racelab.settings import Settings, Stats

SECRET = os.environ.get("RACELAB_CONTROL_SECRET") or None


def main(arguments: Sequence[str]) -> int:
    guard.install_if_asked()
    if list(arguments) == ["--child"]:
        return asyncio.run(as_child())
    settings, port = parse(arguments)
    try:
        stats = asyncio.run(by_hand(settings, port))
    except (OSError, OverflowError) as error:  # the latter of a port
        print(f"racelab.server: {error}", file=sys.stderr)
        return 2
    print(summary(stats), flush=True)
    return 0


async def by_hand(settings: Settings, port: int) -> Stats:
    """Serve until Ctrl-C or SIGTERM, then return the counts."""
    async with serve(settings, port, SECRET) as server:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
        print(f"A local model listens at {server.base_url} (Ctrl-C to stop)")
        print(how_to_point_at(server.base_url, settings.api_key), flush=True)
        await stop.wait()
        return server.stats()


def how_to_point_at(base_url: str, key: str | None) -> str:
    """Return a line for the shell, without the key that only the environment has."""
    if sys.platform == "win32":
        key = "anything" if key is None else "$env:RACELAB_API_KEY"
        return f'$env:OPENAI_BASE_URL="{base_url}"; $env:OPENAI_API_KEY="{key}"'
    key = "anything" if key is None else '"$RACELAB_API_KEY"'
    return f"export OPENAI_BASE_URL={base_url} OPENAI_API_KEY={key}"


def summary(stats: Stats) -> str:
    counts = {
        "received": stats.received,
        "answered": stats.answered,
        "abandoned": stats.abandoned,
        **{f"refused {status}": count for status, count in stats.refused.items()},
        **{f"fault {kind}": count for kind, count in stats.faults.items()},
        "tokens billed": stats.tokens_billed,
    }
    return "\n".join(f"{name:<16}{count:>10,}" for name, count in counts.items())


async def as_child() -> int:
    """Read settings, print the port, and serve until the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        settings = Settings.from_json(json.loads(sys.stdin.buffer.readline()))
        async with serve(settings, 0, SECRET) as server:
            alone = asyncio.Event()
            watch_input(asyncio.get_running_loop(), alone)
            print(json.dumps({"port": server.port}), flush=True)
            await alone.wait()
            return 0
    except (ValueError, OSError) as error:  # a BadSetting is a ValueError
        print(json.dumps({"error": str(error)}), flush=True)
        return 2


def watch_input(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    """Set `ended` when the other end of the pipe is closed, for whatever reason.

    In a thread, because not every system can wait for a pipe in an event loop.
    """

    def read_to_the_end() -> None:
        with suppress(OSError):
            sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read_to_the_end, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
