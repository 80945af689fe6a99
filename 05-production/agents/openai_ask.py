"""An `ask` that speaks to OpenAI, or to any server with the same API.

The only file that imports `openai`.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from .limits import Limits
from .results import Answer, Ask, Refused, Remaining, Unreadable


def openai_ask(
    client: openai.AsyncOpenAI, model: str, limits: Limits, **options: Any
) -> Ask:
    """One try at a chat completion; `options` go to the API as they are.

    The caller's client is shared and not closed. Its own retries are off here: they
    are the team's. Raises what `Team` understands: `Refused`, `Unreadable`,
    TimeoutError, ConnectionError. None of them, and no answer, contains the key.
    """
    timeout = openai.Timeout(limits.attempt, connect=limits.connect)
    once = client.with_options(max_retries=0, timeout=timeout)
    create: Any = once.chat.completions.with_raw_response.create

    async def ask(question: str) -> Answer:
        messages = [{"role": "user", "content": question}]
        try:
            # Raw: reading the three things that are needed costs less than the types.
            raw = await create(model=model, messages=messages, **options)
        except openai.APIStatusError as error:
            raise refusal(error) from None
        except openai.APITimeoutError as error:
            raise TimeoutError("no answer in time") from error
        except openai.APIConnectionError as error:
            raise ConnectionError(str(error.__cause__ or error)) from error
        return read(raw.content, raw.headers)

    return ask


def read(body: bytes, headers: Mapping[str, str]) -> Answer:
    """Raises `Unreadable`."""
    try:
        completion = json.loads(body)
        text = completion["choices"][0]["message"]["content"]
        usage = completion.get("usage") or {}
        prompt, answer = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(text, str):
            raise TypeError("no text")
        return Answer(text, prompt, answer, remaining(headers))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unreadable(f"not a chat completion: {error}") from None


def refusal(error: openai.APIStatusError) -> Refused:
    says = error.message
    if error.status_code in (401, 403):  # its words may repeat a part of the key
        says = "the key is refused"
    headers = error.response.headers
    return Refused(
        error.status_code,
        f"{error.code or ''} {says}".strip(),
        code=error.code,
        retry_after=retry_after(headers),
        remaining=remaining(headers),
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, of `retry-after-ms` or of `retry-after`, number or date (RFC 9110)."""
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
    except (LookupError, ValueError, TypeError):
        return None


def remaining(headers: Mapping[str, str]) -> Remaining:
    return Remaining(
        number(headers.get("x-ratelimit-remaining-requests")),
        number(headers.get("x-ratelimit-remaining-tokens")),
    )


def number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
