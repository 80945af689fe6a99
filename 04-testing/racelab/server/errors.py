"""The errors that the server answers with, in OpenAI's statuses and error bodies."""

import math
from dataclasses import dataclass, field


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is not 200. `headers` are sent beside the usual ones."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    kind: str = "invalid_request_error"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def error(self) -> dict[str, str | None]:
        words = {"message": self.message, "type": self.kind}
        return {**words, "param": self.param, "code": self.code}


def key_of(authorization: str | None, accepted: str | None) -> str:
    """Return the API key of a request. `accepted` is the only right one, if not None.

    Raises the 401 if it is missing or wrong.
    """
    scheme, _, key = (authorization or "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        message = "You didn't provide an API key (Authorization: Bearer YOUR_KEY)."
        raise ApiError(401, message)
    if accepted is not None and key != accepted:
        raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
    return key


def unknown_url(place: str) -> ApiError:
    return ApiError(404, f"Invalid URL ({place})")


def unknown_model(model: str) -> ApiError:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return ApiError(404, message, code="model_not_found")


def rate_limited(model: str, kind: str, limit: float, wait: float) -> ApiError:
    """Return the 429. `kind` is requests or tokens, `wait` is seconds."""
    message = f"Rate limit reached for {model} on {kind} per min: Limit {limit:.0f}. "
    message += f"Please try again in {duration(wait)}."
    return too_many(message, kind, wait)


def too_many(message: str, kind: str, wait: float | None = None) -> ApiError:
    headers = {} if wait is None else retry_headers(wait)
    return ApiError(429, message, None, "rate_limit_exceeded", kind, headers)


def injected_error(kind: str, retry_after: float) -> ApiError:
    """Return the answer of an injected fault of kind 500, 503 or 429."""
    if kind == "429":
        return too_many("Rate limit reached for requests", "requests", retry_after)
    if kind == "503":
        message = "Our servers are currently overloaded. Please try again later."
        code, headers = "server_is_overloaded", retry_headers(retry_after)
        return ApiError(503, message, None, code, "service_unavailable_error", headers)
    message = "The server had an error while processing your request."
    return ApiError(500, message, kind="server_error")


def retry_headers(wait: float) -> dict[str, str]:
    """Return `wait`, in seconds, rounded up to whole seconds and to milliseconds."""
    milliseconds = str(math.ceil(wait * 1000))
    return {"retry-after": f"{max(1, math.ceil(wait))}", "retry-after-ms": milliseconds}


def duration(seconds: float) -> str:
    """Return the time as OpenAI writes it: `0s`, `17ms`, `1.5s`, `6m0s`."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
