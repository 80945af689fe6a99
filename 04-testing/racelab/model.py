"""`open_model()`: the real API if there is a key, else the local model server."""

import json
import os
import sys
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from racelab.process import LocalServer, local_server
from racelab.reader_error import ReaderError

if TYPE_CHECKING:  # importing the SDK takes a second: the server starts meanwhile
    from openai import AsyncOpenAI, OpenAI

# Any async function from a question to its answer can be an agent's model.
Ask = Callable[[str], Awaitable[str]]
# The same for threads.
SyncAsk = Callable[[str], str]
# A message of a chat as the API has it: {"role": "user", "content": "..."}.
Message = dict[str, Any]
# Any async function from a chat to its next message.
Chat = Callable[..., Awaitable[Message]]

DEFAULT_MODEL = "gpt-5.4-mini"
DEFAULT_URL = "https://api.openai.com/v1"
TIMEOUT = 60.0  # seconds for one try; the SDK's own default is 600


class ModelError(ReaderError):
    """The model gave no answer."""


class Refused(ModelError):
    """The API refused a request. `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Endpoint:
    """Where the answers come from."""

    base_url: str
    model: str
    api_key: str = field(repr=False)
    is_local: bool = False

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).hostname or self.base_url


class Model:
    """An agent's model: `await model("a question")` gives its answer.

    Raises `ModelError` when there is no answer, `Refused` when the API said no.
    """

    def __init__(self, client: "AsyncOpenAI", endpoint: Endpoint) -> None:
        self.client = client
        self._endpoint = endpoint

    async def __call__(self, question: str) -> str:
        reply = await self.chat([{"role": "user", "content": question}])
        return reply.get("content") or ""

    async def chat(self, messages: Sequence[Message], **options: Any) -> Message:
        """The model's next message. `options` go to the API as they are."""
        with _in_one_line(self._endpoint):
            completion = await self.client.chat.completions.create(
                model=self._endpoint.model,
                messages=cast(Any, list(messages)),
                **options,
            )
            message = completion.choices[0].message
            return cast(Message, message.model_dump(exclude_none=True))


class SyncModel:
    """The same for code in threads: `model("a question")` blocks until the answer."""

    def __init__(self, client: "OpenAI", endpoint: Endpoint) -> None:
        self.client = client
        self._endpoint = endpoint

    def __call__(self, question: str) -> str:
        with _in_one_line(self._endpoint):
            completion = self.client.chat.completions.create(
                model=self._endpoint.model,
                messages=[{"role": "user", "content": question}],
            )
            return completion.choices[0].message.content or ""


@asynccontextmanager
async def open_model(server: LocalServer | None = None) -> AsyncIterator[Model]:
    """Give a model to ask: on `server`, else on the real API, else on a local server.

    The real API is used when OPENAI_API_KEY is set, in the environment or in a `.env`
    file. One line on stderr says which it is.
    """
    with _endpoint(server) as endpoint:
        import openai

        http_client = openai.DefaultAsyncHttpxClient(**_transport(endpoint))
        client = openai.AsyncOpenAI(http_client=http_client, **_options(endpoint))
        async with client:
            _ = client.chat.completions  # imported now, not within the first question
            yield Model(client, endpoint)


@contextmanager
def open_model_sync(server: LocalServer | None = None) -> Iterator[SyncModel]:
    """`open_model()` for threads: the model may be shared by all of them."""
    with _endpoint(server) as endpoint:
        import openai

        http_client = openai.DefaultHttpxClient(**_transport(endpoint))
        client = openai.OpenAI(http_client=http_client, **_options(endpoint))
        with client:
            _ = client.chat.completions  # imported now, not within the first question
            yield SyncModel(client, endpoint)


def _options(endpoint: Endpoint) -> dict[str, Any]:
    """On the local server without retries: what is sent is what is counted."""
    options = {"base_url": endpoint.base_url, "api_key": endpoint.api_key}
    retries = {"max_retries": 0} if endpoint.is_local else {}
    return {**options, **retries, "timeout": TIMEOUT}


def _transport(endpoint: Endpoint) -> dict[str, Any]:
    """For the local server no proxy from the environment, and no certificates."""
    return {"trust_env": False, "verify": False} if endpoint.is_local else {}


@contextmanager
def _endpoint(server: LocalServer | None) -> Iterator[Endpoint]:
    with ExitStack() as stack:
        real = None if server else real_endpoint()
        if real is not None:
            print(f"model: {real.model} at {real.host}", file=sys.stderr)
            yield real
            return
        if server is None:
            server = stack.enter_context(local_server())
        print("model: local server, no key needed", file=sys.stderr)
        import openai  # noqa: F401  # while the server starts

        yield Endpoint(server.base_url, DEFAULT_MODEL, server.api_key, is_local=True)


def real_endpoint() -> Endpoint | None:
    """The real API from OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL; None: no key.

    An empty value counts as unset. What is set in the environment goes before `.env`.
    With RACELAB_LOCAL set, there is never a key. Raises `ModelError`.
    """
    if os.environ.get("RACELAB_LOCAL"):
        return None
    values = {**_dotenv(), **{name: v for name, v in os.environ.items() if v.strip()}}
    key = values.get("OPENAI_API_KEY", "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ModelError(
            "OPENAI_API_KEY contains a space, a line break or a letter that no key "
            "has: paste it again"
        )
    base_url = values.get("OPENAI_BASE_URL", "").strip() or DEFAULT_URL
    model = values.get("OPENAI_MODEL", "").strip() or DEFAULT_MODEL
    return Endpoint(_checked_url(base_url), model, key)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises ValueError when it is not a number from 0 to 65535
    except ValueError:
        is_url = False
    if not is_url:
        shown = "***" if "sk-" in url or "@" in url else url  # a key or a password
        raise ModelError(
            f"OPENAI_BASE_URL={shown!r} is not a URL: it must look like "
            "http://127.0.0.1:11434/v1"
        )
    return url


def _dotenv() -> Mapping[str, str]:
    """The first `.env` above the running script, else above the current folder."""
    from dotenv import dotenv_values

    main = getattr(sys.modules["__main__"], "__file__", None)
    starts = [Path(main).resolve().parent] if main else []
    for start in [*starts, Path.cwd()]:
        for folder in (start, *start.parents):
            file = folder / ".env"
            if file.is_file():
                try:
                    values = dotenv_values(file, encoding="utf-8")
                except (OSError, UnicodeDecodeError) as error:
                    raise ModelError(f"{file} cannot be read: {error}") from None
                return {name: value for name, value in values.items() if value}
    return {}


@contextmanager
def _in_one_line(endpoint: Endpoint) -> Iterator[None]:
    """Turn what the SDK raises into one line that says what to do, without the key."""
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        says = _explain(error, endpoint)
        raise Refused(_without(endpoint.api_key, says), error.status_code) from error
    except openai.APITimeoutError as error:
        raise ModelError(f"{endpoint.host}: no answer in {TIMEOUT:g} s") from error
    except openai.APIConnectionError as error:
        cause = _without(endpoint.api_key, str(error.__cause__ or error))
        raise ModelError(
            f"{endpoint.host} cannot be reached ({cause}): check OPENAI_BASE_URL and "
            "the network"
        ) from error
    except (openai.APIError, json.JSONDecodeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{endpoint.host} did not answer with a chat completion: "
            "check OPENAI_BASE_URL"
        ) from error


def _explain(error: Any, endpoint: Endpoint) -> str:
    host, status = endpoint.host, error.status_code
    if status in (401, 403):
        return f"{host} refused the key ({status}): check OPENAI_API_KEY"
    if status == 404:
        return (
            f"{host} knows no model {endpoint.model!r}, or no such path (404): "
            "check OPENAI_MODEL and OPENAI_BASE_URL"
        )
    if status == 429:
        return (
            f"{host} refused the request (429, {error.code}): a rate limit or an empty "
            "account; wait, or let fewer agents run at a time"
        )
    body = error.body if isinstance(error.body, dict) else {}
    message = str(body.get("message") or error.message)
    return f"{host} answered {status}: {message[:300]}"


def _without(key: str, text: str) -> str:
    return " ".join(text.replace(key, "***").split())
