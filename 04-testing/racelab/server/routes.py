"""The HTTP side: connections, and which route answers a request."""

import asyncio
import hmac
import json
from typing import Any

from aiohttp import web

from racelab.server.calls import Call
from racelab.server.errors import (
    Refusal,
    bad_request,
    forbidden,
    key_of,
    not_http,
    server_error,
    unknown_model,
    unknown_route,
    wrong_method,
)
from racelab.server.metrics import Ledger, Run
from racelab.server.wire import headers_of, refused, reply, whole_body
from racelab.settings import Settings, Stats

LINGER = 1.0  # seconds in which the rest of a refused body is read and dropped
DEFAULT_MODELS = ("racelab-local",)  # listed when any model name is served


class Connection(web.RequestHandler):
    """One client's connection. What is not even HTTP gets a JSON error too."""

    __slots__ = ("ledger", "routes")

    def __init__(self, routes: "Routes", **options: Any) -> None:
        super().__init__(routes, **options)
        self.routes = routes
        self.ledger: Ledger | None = None  # in which this connection is counted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.routes.open_connections.add(self)
        self.ledger = self.routes.run.ledger
        self.ledger.connections_opened += 1
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.routes.open_connections.discard(self)
        super().connection_lost(exc)

    def do_not_count(self) -> None:
        """It belongs to whoever reads the counts, not to a client of the model."""
        if self.ledger is not None:
            self.ledger.connections_opened -= 1
            self.ledger = None

    async def start(self) -> None:
        """Serves the requests of this connection one after another."""
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
        """aiohttp calls this for a request that it cannot read, and for our bugs."""
        if status == 500:
            self.logger.error("a bug in the local model server", exc_info=exc)
        refusal = server_error() if status == 500 else not_http(status, message)
        response = refused(refusal, headers_of())
        response.force_close()
        return response

    def log_exception(self, *args: Any, exc_info: Any = None, **more: Any) -> None:
        """aiohttp reports a body that cannot be decoded a second time: once is enough,
        and the client knows."""
        if not isinstance(exc_info, web.RequestPayloadError):
            super().log_exception(*args, exc_info=exc_info, **more)


class Routes(web.Server):
    """Serves one `Run` after another; aiohttp calls it for each new connection."""

    def __init__(self, settings: Settings, control_secret: str | None) -> None:
        # A handler is cancelled when its client goes away.
        super().__init__(self.handle, handler_cancellation=True)
        self.control_secret = control_secret
        self.open_connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.run = Run(settings)

    def __call__(self) -> Connection:
        loop = asyncio.get_running_loop()
        return Connection(self, loop=loop, access_log=None, lingering_time=LINGER)

    def stats(self) -> Stats:
        clients = sum(c.ledger is not None for c in self.open_connections)
        return self.run.ledger.stats(clients)

    def reset(self, settings: Settings | None = None) -> None:
        over = self.run.over
        self.run = Run(settings or self.run.settings)
        over.set()

    async def close(self) -> None:
        """Ends every connection and every task, whatever they are waiting for."""
        while self.open_connections or self.tasks:
            for connection in list(self.open_connections):
                if connection.transport is not None:
                    connection.transport.abort()
            for task in list(self.tasks):
                task.cancel()
            await asyncio.sleep(0)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self.route(request, request.path)
        except Refusal as refusal:
            return refused(refusal, headers_of())

    async def route(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if path == "/v1/chat/completions":
            return await Call(request, self.run).respond()
        if path == "/v1/models" or path.startswith("/v1/models/"):
            return self.models(request, path)
        if path.startswith("/control/") and self.control_secret is not None:
            return await self.control(request, path)
        raise unknown_route(request.method, path)

    def models(self, request: web.BaseRequest, path: str) -> web.Response:
        settings = self.run.settings
        key_of(request.headers.get("authorization"), settings.api_key)
        only_allow("GET", request)
        name = path.removeprefix("/v1/models").removeprefix("/")
        if not name:
            served = settings.models or DEFAULT_MODELS
            return reply({"object": "list", "data": [model(name) for name in served]})
        if settings.models and name not in settings.models:
            raise unknown_model(name)
        return reply(model(name))

    async def control(self, request: web.BaseRequest, path: str) -> web.Response:
        """For whoever started the server; nobody else knows the secret."""
        given = request.headers.get("x-control-secret", "")
        secret = self.control_secret or ""
        if not hmac.compare_digest(given.encode(errors="replace"), secret.encode()):
            raise forbidden()
        if isinstance(request.protocol, Connection):
            request.protocol.do_not_count()
        if path == "/control/stats":
            only_allow("GET", request)
            return reply(self.stats().to_json())
        if path == "/control/reset":
            only_allow("POST", request)
            raw = await whole_body(request)
            try:
                self.reset(Settings.from_json(json.loads(raw)) if raw else None)
            except (ValueError, RecursionError) as error:  # BadSetting is one
                raise bad_request(f"Bad settings: {error}") from None
            return reply({})
        raise unknown_route(request.method, path)


def only_allow(method: str, request: web.BaseRequest) -> None:
    if request.method != method:
        raise wrong_method(method)


def model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1735689600, "owned_by": "racelab"}
