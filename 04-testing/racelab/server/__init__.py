"""A local server that speaks OpenAI's chat API, counts requests, and fails on demand.

`serve()` runs it in this event loop, `python -m racelab.server` as a process. To read
it, follow a request from `routes` to `chat_calls`. `chat_requests` and `tool_order`
check it, `answers`, `schema_samples` and `completions` make its answer, `buckets` limit
it, and `metrics` counts it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from racelab.server.routes import Routes
from racelab.settings import Settings, Stats

__all__ = ["Server", "serve"]

HOST = "127.0.0.1"  # never reachable from another machine
DEFAULTS = Settings()


class Server:
    """A server in this event loop."""

    def __init__(self, routes: Routes, port: int) -> None:
        self.port = port
        self.base_url = f"http://{HOST}:{port}/v1"
        self._routes = routes

    def stats(self) -> Stats:
        return self._routes.stats()

    def reset(self, settings: Settings | None = None) -> None:
        """Count from zero, with full buckets, and with new settings if given.

        Calls in flight end as they would have, and hanging ones end now.
        """
        self._routes.reset(settings)


@asynccontextmanager
async def serve(
    settings: Settings = DEFAULTS, port: int = 0, control_secret: str | None = None
) -> AsyncIterator[Server]:
    """Run a server on `port`, or on any free one, that leaves nothing behind."""
    routes = Routes(settings, control_secret)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(routes, HOST, port, backlog=4096)
    try:
        yield Server(routes, listener.sockets[0].getsockname()[1])
    finally:
        # asyncio takes a few turns to set up a connection that it has accepted, and
        # fails on one that appears after `close()`.
        with suppress(NotImplementedError):  # Windows, which sets it up in one turn
            loop.remove_reader(listener.sockets[0])
        for _ in range(5):
            await asyncio.sleep(0)
        listener.close()
        await routes.close()
        await listener.wait_closed()
