"""Wait in a test until a server in the same loop has counted what the test wants."""

import asyncio
from typing import TYPE_CHECKING

from racelab.settings import Stats

if TYPE_CHECKING:
    from racelab.server import Server

COUNT_TIMEOUT = 600.0  # seconds until a count that never comes fails the test


async def until(server: "Server", **wanted: int) -> Stats:
    """Return the first counts of an in-loop server that agree with `wanted`.

    Waits turns of the loop, not seconds. Raises `TimeoutError` after COUNT_TIMEOUT.
    """

    def there() -> bool:
        stats = server.stats()
        return all(getattr(stats, name) == value for name, value in wanted.items())

    async with asyncio.timeout(COUNT_TIMEOUT):
        while not there():  # noqa: ASYNC110 - a count has no event
            await asyncio.sleep(0)
    return server.stats()
