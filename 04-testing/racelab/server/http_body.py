"""HTTP bodies, and the headers of every answer."""

import asyncio
import json
import os
from typing import Any

from aiohttp import web

from racelab.server.errors import ApiError, not_json

LARGEST_BODY = 4 * 1024 * 1024  # bytes
BODY_TIMEOUT = 10.0  # seconds until a request's whole body must be there


def headers_of(
    seconds: float = 0.0, content_type: str = "application/json"
) -> dict[str, str]:
    """Return the headers of an answer that took `seconds`."""
    return {
        "content-type": content_type,
        "openai-version": "2020-10-01",
        "openai-processing-ms": str(round(seconds * 1000)),
        "x-request-id": f"req_{os.urandom(16).hex()}",
    }


def error_response(error: ApiError, headers: dict[str, str]) -> web.Response:
    body = json.dumps({"error": error.error}).encode()
    headers = {**headers, **error.headers}
    return web.Response(body=body, status=error.status, headers=headers)


async def whole_body(request: web.BaseRequest) -> bytes:
    large = f"Request body too large: at most {LARGEST_BODY} bytes are accepted."
    if (request.content_length or 0) > LARGEST_BODY:
        raise ApiError(413, large)
    try:
        if request.content.is_eof():  # all of it is here
            return await request.read()
        async with asyncio.timeout(BODY_TIMEOUT):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise ApiError(413, large) from None
    except TimeoutError:
        late = f"The body was not there after {BODY_TIMEOUT:g} seconds."
        raise ApiError(408, late) from None
    except web.RequestPayloadError:
        raise not_json() from None


def reply(value: dict[str, Any]) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), headers=headers_of())
