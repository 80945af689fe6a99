"""The HTTP side: connections, and which route answers a request."""

import asyncio
import hmac
import json
from typing import Any

from aiohttp import web

from racelab.server import errors
from racelab.server.chat_calls import ChatCall
from racelab.server.errors import ApiError
from racelab.server.http_body import error_response, headers_of, reply, whole_body
from racelab.server.metrics import Epoch, Metrics
from racelab.settings import Settings, Stats

LINGER = 1.0  # seconds in which the rest of a refused body is read and dropped


class Connection(web.RequestHandler):
    """One client's connection. Bytes that are not HTTP get a JSON error."""

    __slots__ = ("metrics", "routes")

    def __init__(self, routes: "Routes", **options: Any) -> None:
        super().__init__(routes, **options)
        self.routes = routes
        self.metrics: Metrics | None = None  # in which this connection is counted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.routes.open_connections.add(self)
        self.metrics = self.routes.epoch.metrics
        self.metrics.connections_opened += 1
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.routes.open_connections.discard(self)
        super().connection_lost(exc)

    def do_not_count(self) -> None:
        """Leave out a connection that only reads the counts."""
        if self.metrics is not None:
            self.metrics.connections_opened -= 1
            self.metrics = None

    async def start(self) -> None:
        """Serve the requests of this connection one after another."""
        task = asyncio.current_task()
        assert task is not None
        self.routes.tasks.add(task)
        task.add_done_callback(self.routes.tasks.discard)
        await super().start()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that aiohttp cannot read, or that met a bug of ours."""
        why = " ".join((message or "").split())[:200]
        error = ApiError(status, f"This is not HTTP: {why}")
        if status == 500:
            self.logger.error("a bug in the local model server", exc_info=exc)
            error = errors.server_error()
        response = error_response(error, headers_of())
        response.force_close()
        return response

    def log_exception(self, *args: Any, exc_info: Any = None, **more: Any) -> None:
        """Log nothing about a body that cannot be decoded: the client was told."""
        if not isinstance(exc_info, web.RequestPayloadError):
            super().log_exception(*args, exc_info=exc_info, **more)


class Routes(web.Server):
    """The routes of one `Epoch` after another. aiohttp calls it for each connection."""

    def __init__(self, settings: Settings, control_secret: str | None) -> None:
        # A handler is cancelled when its client goes away.
        super().__init__(self.handle, handler_cancellation=True)
        self.control_secret = control_secret
        self.open_connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.epoch = Epoch(settings)

    def __call__(self) -> Connection:
        loop = asyncio.get_running_loop()
        return Connection(self, loop=loop, access_log=None, lingering_time=LINGER)

    def stats(self) -> Stats:
        clients = sum(c.metrics is not None for c in self.open_connections)
        return self.epoch.metrics.stats(clients)

    def reset(self, settings: Settings | None = None) -> None:
        over = self.epoch.over
        self.epoch = Epoch(settings or self.epoch.settings)
        over.set()

    async def close(self) -> None:
        """End every connection and every task, whatever they are waiting for."""
        while self.open_connections or self.tasks:
            for connection in list(self.open_connections):
                if connection.transport is not None:
                    connection.transport.abort()
            for task in list(self.tasks):
                task.cancel()
            await asyncio.sleep(0)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        try:
            if path == "/v1/chat/completions":
                return await ChatCall(request, self.epoch).respond()
            if path == "/v1/models" or path.startswith("/v1/models/"):
                return self.models(request, path)
            if path.startswith("/control/") and self.control_secret is not None:
                return await self.control(request, path)
            raise ApiError(404, f"Invalid URL ({request.method} {path})")
        except ApiError as error:
            return error_response(error, headers_of())

    def models(self, request: web.BaseRequest, path: str) -> web.Response:
        settings = self.epoch.settings
        errors.key_of(request.headers.get("authorization"), settings.api_key)
        errors.only_allow("GET", request.method)
        name = path.removeprefix("/v1/models").removeprefix("/")
        if not name:
            served = settings.models or ("racelab-local",)
            return reply({"object": "list", "data": [model(name) for name in served]})
        if settings.models and name not in settings.models:
            raise errors.unknown_model(name)
        return reply(model(name))

    async def control(self, request: web.BaseRequest, path: str) -> web.Response:
        """Answer the process that started the server, which alone knows the secret."""
        given = request.headers.get("x-control-secret", "")
        secret = self.control_secret or ""
        if not hmac.compare_digest(given.encode(errors="replace"), secret.encode()):
            raise ApiError(403, "The x-control-secret header is missing or wrong.")
        if isinstance(request.protocol, Connection):
            request.protocol.do_not_count()
        if path == "/control/stats":
            errors.only_allow("GET", request.method)
            return reply(self.stats().to_json())
        if path == "/control/reset":
            errors.only_allow("POST", request.method)
            raw = await whole_body(request)
            try:
                self.reset(Settings.from_json(json.loads(raw)) if raw else None)
            except (ValueError, RecursionError) as error:  # BadSetting is one
                raise ApiError(400, f"Bad settings: {error}") from None
            return reply({})
        raise ApiError(404, f"Invalid URL ({request.method} {path})")


def model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1735689600, "owned_by": "racelab"}
