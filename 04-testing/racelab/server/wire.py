"""HTTP bodies and headers: what is read from a request and sent with every answer."""

import asyncio
import json
import os
from typing import Any

from aiohttp import web

from racelab.server.errors import Refusal, body_missing, body_too_large, not_json

LARGEST_BODY = 4 * 1024 * 1024  # bytes
BODY_TIMEOUT = 10.0  # seconds until a request's whole body must be there


def headers_of(
    seconds: float = 0.0, content_type: str = "application/json"
) -> dict[str, str]:
    """The headers of every answer, which took so many seconds."""
    return {
        "content-type": content_type,
        "openai-version": "2020-10-01",
        "openai-processing-ms": str(round(seconds * 1000)),
        "x-request-id": f"req_{os.urandom(16).hex()}",
    }


def refused(refusal: Refusal, headers: dict[str, str]) -> web.Response:
    body = json.dumps({"error": refusal.error}).encode()
    headers = {**headers, **refusal.headers}
    return web.Response(body=body, status=refusal.status, headers=headers)


async def whole_body(request: web.BaseRequest) -> bytes:
    if (request.content_length or 0) > LARGEST_BODY:
        raise body_too_large(LARGEST_BODY)
    try:
        if request.content.is_eof():  # all of it is here
            return await request.read()
        async with asyncio.timeout(BODY_TIMEOUT):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise body_too_large(LARGEST_BODY) from None
    except TimeoutError:
        raise body_missing(BODY_TIMEOUT) from None
    except web.RequestPayloadError:
        raise not_json() from None


def reply(value: dict[str, Any]) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), headers=headers_of())
