"""The errors that the server answers with, in OpenAI's words and statuses."""

import math
from dataclasses import dataclass, field

PAGES = "https://platform.openai.com/account"


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
        raise ApiError(
            401,
            "You didn't provide an API key. You need to provide your API key in an "
            "Authorization header using Bearer auth (i.e. Authorization: Bearer "
            f"YOUR_KEY). You can obtain an API key from {PAGES}/api-keys.",
        )
    if accepted is not None and key != accepted:
        masked = f"{key[:8]}{'*' * (len(key) - 12)}{key[-4:]}" if len(key) > 12 else key
        raise ApiError(
            401,
            f"Incorrect API key provided: {masked}. "
            f"You can find your API key at {PAGES}/api-keys.",
            code="invalid_api_key",
        )
    return key


def only_allow(allowed: str, method: str) -> None:
    """Raise the 405 unless the request's method is the one that is allowed."""
    if method != allowed:
        message = f"Only {allowed} requests are accepted."
        headers = {"allow": allowed}
        raise ApiError(405, message, code="method_not_supported", headers=headers)


def unknown_model(model: str) -> ApiError:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return ApiError(404, message, code="model_not_found")


def not_json() -> ApiError:
    return ApiError(
        400,
        "We could not parse the JSON body of your request. (HINT: This likely means "
        "you aren't using your HTTP library correctly. The OpenAI API expects a JSON "
        "payload, but what was sent was not valid JSON.)",
    )


def rate_limited(
    model: str, kind: str, limit: float, used: float, asked: float, wait: float
) -> ApiError:
    """Return the 429. `kind` is requests or tokens, `wait` is seconds."""
    short = {"requests": "RPM", "tokens": "TPM"}[kind]
    message = (
        f"Rate limit reached for {model} in organization org-racelab on {kind} per "
        f"min ({short}): Limit {limit:.0f}, Used {used:.0f}, Requested {asked:.0f}. "
        f"Please try again in {duration(wait)}. Visit {PAGES}/rate-limits to learn "
        "more."
    )
    return too_many(message, kind, retry_headers(wait))


def too_large(model: str, limit: float, asked: float) -> ApiError:
    """Return a 429 without `retry-after`, because waiting does not help."""
    message = (
        f"Request too large for {model} in organization org-racelab on tokens per min "
        f"(TPM): Limit {limit:.0f}, Requested {asked:.0f}. The input or output tokens "
        f"must be reduced in order to run successfully. Visit {PAGES}/rate-limits to "
        "learn more."
    )
    return too_many(message, "tokens", {})


def too_many(message: str, kind: str, headers: dict[str, str]) -> ApiError:
    return ApiError(429, message, None, "rate_limit_exceeded", kind, headers)


def overloaded(message: str, code: str | None, headers: dict[str, str]) -> ApiError:
    return ApiError(503, message, None, code, "service_unavailable_error", headers)


def server_error() -> ApiError:
    message = "The server had an error while processing your request. Sorry about that!"
    return ApiError(500, message, kind="server_error")


def injected_error(kind: str, retry_after: float) -> ApiError:
    """Return the answer of an injected fault of kind 500, 503 or 429."""
    headers = retry_headers(retry_after)
    if kind == "429":
        return too_many("Rate limit reached for requests", "requests", headers)
    if kind == "503":
        message = "Our servers are currently overloaded. Please try again later."
        return overloaded(message, "server_is_overloaded", headers)
    return server_error()


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
