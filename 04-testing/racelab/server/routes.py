"""The HTTP side: connections, and which route answers a request."""

import asyncio
import hmac
import json
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from racelab.server import errors
from racelab.server.chat_calls import ChatCall
from racelab.server.errors import ApiError
from racelab.server.http_body import error_response, headers_of, reply, whole_body
from racelab.server.metrics import Epoch
from racelab.settings import Settings, Stats

LINGER = 1.0  # seconds in which the rest of a refused body is read and dropped


class Connection(web.RequestHandler):
    """One connection, which logs only bugs of ours."""

    is_counted = False  # as a client's, from its first request on

    def log_exception(self, *args: Any, exc_info: Any = None, **more: Any) -> None:
        """Log nothing about what cannot be read as HTTP, because the client is told."""
        if not isinstance(exc_info, web.RequestPayloadError | HttpProcessingError):
            super().log_exception(*args, exc_info=exc_info, **more)


class Routes(web.Server):
    """The routes of one `Epoch` after another. aiohttp calls it for each connection."""

    def __init__(self, settings: Settings, control_secret: str | None) -> None:
        # A handler is cancelled when its client goes away.
        super().__init__(self.handle, handler_cancellation=True)
        self.control_secret = control_secret
        self.epoch = Epoch(settings)

    def __call__(self) -> Connection:
        options: Any = {"access_log": None, "lingering_time": LINGER}
        return Connection(self, loop=asyncio.get_running_loop(), **options)

    def stats(self) -> Stats:
        open_now = [c for c in self.connections if getattr(c, "is_counted", False)]
        return self.epoch.metrics.stats(len(open_now))

    def reset(self, settings: Settings | None = None) -> None:
        over = self.epoch.over
        self.epoch = Epoch(settings or self.epoch.settings)
        over.set()

    async def close(self) -> None:
        """Break every connection, which cancels whatever its task is waiting for."""
        while self.connections:
            for connection in self.connections:
                if connection.transport is not None:
                    connection.transport.abort()
            await asyncio.sleep(0)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        place = f"{request.method} {request.path}"
        try:
            if request.path.startswith("/control/") and self.control_secret is not None:
                return await self.control(request, place)
            connection = request.protocol
            if isinstance(connection, Connection) and not connection.is_counted:
                connection.is_counted = True
                self.epoch.metrics.connections_opened += 1
            if place == "POST /v1/chat/completions":
                return await ChatCall(request, self.epoch).respond()
            if place == "GET /v1/models":
                return self.models(request)
            raise errors.unknown_url(place)
        except ApiError as error:
            return error_response(error, headers_of())

    def models(self, request: web.BaseRequest) -> web.Response:
        settings = self.epoch.settings
        errors.key_of(request.headers.get("authorization"), settings.api_key)
        about = {"object": "model", "created": 1735689600, "owned_by": "racelab"}
        served = settings.models or ("racelab-local",)
        return reply({"object": "list", "data": [{"id": m, **about} for m in served]})

    async def control(self, request: web.BaseRequest, place: str) -> web.Response:
        """Answer the process that started the server, which alone knows the secret."""
        given = request.headers.get("x-control-secret", "").encode(errors="replace")
        if not hmac.compare_digest(given, (self.control_secret or "").encode()):
            raise ApiError(403, "The x-control-secret header is missing or wrong.")
        if place == "GET /control/stats":
            return reply(self.stats().to_json())
        if place != "POST /control/reset":
            raise errors.unknown_url(place)
        raw = await whole_body(request)
        try:
            self.reset(Settings.from_json(json.loads(raw)) if raw else None)
        except (ValueError, RecursionError) as error:  # BadSetting is one
            raise ApiError(400, f"Bad settings: {error}") from None
        return reply({})
