"""HTTP bodies, and the headers of every answer."""

import asyncio
import json
import os
from typing import Any

from aiohttp import web

from racelab.server.errors import ApiError

BODY_TIMEOUT = 10.0  # seconds until a request's whole body must be there


def headers_of(content_type: str = "application/json") -> dict[str, str]:
    """Return the headers that every answer has."""
    return {"content-type": content_type, "x-request-id": f"req_{os.urandom(16).hex()}"}


def error_response(error: ApiError, headers: dict[str, str]) -> web.Response:
    body = json.dumps({"error": error.error}).encode()
    headers = {**headers, **error.headers}
    return web.Response(body=body, status=error.status, headers=headers)


async def whole_body(request: web.BaseRequest) -> bytes:
    """Return the body, of which aiohttp reads 1 MiB at most."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise ApiError(413, f"The request body is too large: {error.text}") from None
    except TimeoutError:
        raise ApiError(408, "The request body did not arrive in time.") from None
    except web.RequestPayloadError:
        raise ApiError(400, "The request body cannot be decoded.") from None


def reply(value: dict[str, Any]) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), headers=headers_of())
