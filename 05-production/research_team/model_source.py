"""The model that `research.py` asks: the real API if there is a key, else a server."""

import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import openai

from agents import Ask, Limits, openai_ask
from racelab import LocalServer, ReaderError, ServerError, Stats, local_server
from racelab.model import DEFAULT_MODEL, Endpoint, real_endpoint
from research_team.command_line import FAULTS, ResearchOptions

LATENCY = 0.3  # seconds, of the local server


@dataclass(frozen=True)
class ModelSource:
    """A model to ask, its limits, and the local server if it is local."""

    client: openai.AsyncOpenAI
    endpoint: Endpoint
    limits: Limits
    server: LocalServer | None

    def ask(self, **options: Any) -> Ask:
        """`options` go to the API with every request."""
        return openai_ask(self.client, self.endpoint.model, self.limits, **options)

    def seen(self) -> Stats | None:
        """What the local server saw; None: it is another one, or gone."""
        with suppress(ServerError):
            return None if self.server is None else self.server.stats()
        return None


@asynccontextmanager
async def open_model_source(options: ResearchOptions) -> AsyncIterator[ModelSource]:
    """Raises `ReaderError`."""
    real = real_endpoint()
    if real is not None and options.faults is not None:
        raise ReaderError(
            f"--faults {options.faults}: only the local server can be told to fail, "
            "and OPENAI_API_KEY is set; RACELAB_LOCAL=1 leaves the key aside"
        )
    limits = limits_of(options, is_local=real is None)
    with ExitStack() as stack:
        server: LocalServer | None = None
        transport: dict[str, Any] = {}
        if real is None:
            server = stack.enter_context(local_server(**server_settings(options)))
            # No proxy from the environment, and no certificates.
            transport = {"trust_env": False, "verify": False}
            real = Endpoint(server.base_url, DEFAULT_MODEL, server.api_key, True)
        print(f"model: {described(real)}", file=sys.stderr, flush=True)
        client = openai.AsyncOpenAI(
            base_url=real.base_url,
            api_key=real.api_key,
            http_client=openai.DefaultAioHttpClient(**transport),
        )
        async with client:
            yield ModelSource(client, real, limits, server)


def described(endpoint: Endpoint) -> str:
    if endpoint.is_local:
        return "local server, no key needed; it answers in stock phrases"
    return f"{endpoint.model} at {endpoint.host}"


def limits_of(options: ResearchOptions, is_local: bool) -> Limits:
    timeout = options.timeout or (1.5 if is_local else 60)
    return Limits(
        concurrency=options.concurrency,
        rpm=options.rpm or (480 if is_local else 500),
        tpm=options.tpm or (60_000 if is_local else 200_000),
        answer_tokens=100 if is_local else 500,
        timeout=timeout,
        connect=min(5, timeout),
        deadline=options.deadline,
        tries=6,
    )


def server_settings(options: ResearchOptions) -> dict[str, Any]:
    """The same limits, and a server that refuses whoever is faster."""
    limits = limits_of(options, is_local=True)
    assert limits.rpm is not None
    return {
        "latency": LATENCY,
        "rpm": limits.rpm,
        "tpm": limits.tpm,
        "request_burst": max(1, limits.rpm / 60),  # what comes in a second
        "token_burst": limits.tpm,
        "faults": FAULTS[options.faults or "some"],
    }
