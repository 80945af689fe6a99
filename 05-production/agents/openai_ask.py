"""An `ask` for OpenAI, or for any server with the same API.

No other file imports `openai`.
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from .limits import Limits
from .results import Answer, Ask, InvalidResponse, Remaining, StatusError


def openai_ask(
    client: openai.AsyncOpenAI,
    model: str,
    limits: Limits,
    *,
    system: str = "",
    **options: Any,
) -> Ask:
    """Return an ask that makes one chat completion. `options` go to the API unchanged.

    Your client is shared and not closed. Its own retries are off here, because the team
    retries. The ask raises what `Team` understands: `StatusError`, `InvalidResponse`,
    TimeoutError, ConnectionError. None of them contains the key.
    """
    timeout = openai.Timeout(number(limits.timeout), connect=number(limits.connect))
    once = client.with_options(max_retries=0, timeout=timeout)
    create: Any = once.chat.completions.with_raw_response.create
    before = [{"role": "system", "content": system}] if system else []

    async def ask(question: str) -> Answer:
        messages = [*before, {"role": "user", "content": question}]
        try:
            # Raw, because reading three fields costs less than the SDK's types.
            raw = await create(model=model, messages=messages, **options)
        except Exception as error:
            failure = understood(error, once.api_key)
        else:
            return read(raw.content, raw.headers)
        raise failure  # out here, so that it does not carry the SDK's, with the key

    return ask


def read(body: bytes, headers: Mapping[str, str]) -> Answer:
    """Return the answer in a response. Raise `InvalidResponse` if there is none."""
    try:
        completion = json.loads(body)
        text = completion["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError("no text")
        text = text.encode(errors="replace").decode()  # JSON allows half a letter
        usage = completion.get("usage") or {}
        used = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        prompt, answer = (n if isinstance(n, int) else None for n in used)
        return Answer(text, prompt, answer, remaining(headers))
    except Exception as error:
        raise InvalidResponse(f"not a chat completion: {error}") from None


def understood(error: Exception, key: str) -> Exception:
    """Translate what the SDK or its transport raised into what a team understands."""
    if isinstance(error, openai.APIStatusError):
        return refused(error, key)
    if isinstance(error, TypeError):  # an option that the SDK does not know
        return error
    cause = error.__cause__ or error
    message = without(key, str(cause) or type(cause).__name__)
    if isinstance(error, ValueError):  # a key or a question that cannot be sent
        return ValueError(message)
    # The SDK's aiohttp transport says "timeout" when there is no connection, too.
    if isinstance(error, openai.APITimeoutError) and has_timed_out(error):
        return TimeoutError("no answer in time")
    return ConnectionError(message)


def has_timed_out(error: BaseException | None) -> bool:
    if error is None or isinstance(error, TimeoutError):
        return error is not None
    return has_timed_out(error.__cause__ or error.__context__)


def refused(error: openai.APIStatusError, key: str) -> StatusError:
    message = error.message.partition(" - ")[2]  # after "Error code: 400"
    if error.status_code == 401:  # it may repeat the end of the key, too
        message = "the key is refused"
    headers = error.response.headers
    return StatusError(
        error.status_code,
        without(key, f"{error.code or ''} {message}".strip()),
        code=error.code,
        retry_after=retry_after(headers),
        remaining=remaining(headers),
    )


def without(key: str, text: str) -> str:
    """Hide the key, because servers and libraries repeat it, or its beginning."""
    if len(key) < 7:  # "local", "EMPTY": no secret
        return text
    return re.sub(re.escape(key[:8]) + r"\S*", "[key]", text)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return seconds, of `retry-after-ms` or `retry-after` (RFC 9110: or a date)."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        seconds = number(headers.get(name))
        if seconds is not None:
            return max(0.0, seconds / unit)
    try:
        then = parsedate_to_datetime(headers["retry-after"])
        now = datetime.now(UTC)
        if "date" in headers:  # by the server's own clock
            now = parsedate_to_datetime(headers["date"])
        return max(0.0, (then - now).total_seconds())
    except (LookupError, ValueError, TypeError, OverflowError):
        return None


def remaining(headers: Mapping[str, str]) -> Remaining:
    return Remaining(
        number(headers.get("x-ratelimit-remaining-requests")),
        number(headers.get("x-ratelimit-remaining-tokens")),
    )


def number(value: str | float | None) -> float | None:
    """Return a finite number, or None."""
    try:
        found = float(value or "nan")
    except ValueError:
        return None
    return found if math.isfinite(found) else None
