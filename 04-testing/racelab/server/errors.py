"""The errors that the server answers with, in OpenAI's words and statuses."""

import math
from collections.abc import Mapping

LIMITS_PAGE = "https://platform.openai.com/account/rate-limits"
KEYS_PAGE = "https://platform.openai.com/account/api-keys"


class Refusal(Exception):
    """An answer that is not 200. `headers` are sent beside the usual ones."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": kind, "param": param, "code": code}
        self.headers = dict(headers or {})


def bad_request(
    message: str, param: str | None = None, code: str | None = None
) -> Refusal:
    return Refusal(400, message, param=param, code=code)


def key_of(authorization: str | None, accepted: str | None) -> str:
    """The API key of a request; any will do unless one is the only key accepted."""
    scheme, _, key = (authorization or "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise Refusal(
            401,
            "You didn't provide an API key. You need to provide your API key in an "
            "Authorization header using Bearer auth (i.e. Authorization: Bearer "
            "YOUR_KEY), or as the password field (with blank username) if you're "
            "accessing the API from your browser and are prompted for a username and "
            f"password. You can obtain an API key from {KEYS_PAGE}.",
        )
    if accepted is not None and key != accepted:
        raise Refusal(
            401,
            f"Incorrect API key provided: {masked(key)}. "
            f"You can find your API key at {KEYS_PAGE}.",
            code="invalid_api_key",
        )
    return key


def masked(key: str) -> str:
    """The first eight and the last four characters; a short key is shown whole."""
    return key if len(key) <= 12 else f"{key[:8]}{'*' * (len(key) - 12)}{key[-4:]}"


def forbidden() -> Refusal:
    return Refusal(403, "The x-control-secret header is missing or wrong.")


def not_http(status: int, why: str | None) -> Refusal:
    return Refusal(status, f"This is not HTTP: {' '.join((why or '').split())[:200]}")


def unknown_route(method: str, path: str) -> Refusal:
    return Refusal(404, f"Invalid URL ({method} {path})")


def wrong_method(allowed: str) -> Refusal:
    message = f"Only {allowed} requests are accepted."
    headers = {"allow": allowed}
    return Refusal(405, message, code="method_not_supported", headers=headers)


def unknown_model(model: str) -> Refusal:
    return Refusal(
        404,
        f"The model `{model}` does not exist or you do not have access to it.",
        code="model_not_found",
    )


def not_json() -> Refusal:
    return Refusal(
        400,
        "We could not parse the JSON body of your request. (HINT: This likely means "
        "you aren't using your HTTP library correctly. The OpenAI API expects a JSON "
        "payload, but what was sent was not valid JSON. If you have trouble figuring "
        "out how to fix this, please contact us through our help center at "
        "help.openai.com.)",
    )


def body_too_large(limit: int) -> Refusal:
    return Refusal(413, f"Request body too large: at most {limit} bytes are accepted.")


def body_missing(seconds: float) -> Refusal:
    return Refusal(408, f"The body was not there after {seconds:g} seconds.")


def rate_limited(
    model: str, kind: str, limit: float, used: float, asked: float, wait: float
) -> Refusal:
    """`kind` is requests or tokens; `wait` is seconds."""
    short = {"requests": "RPM", "tokens": "TPM"}[kind]
    return Refusal(
        429,
        f"Rate limit reached for {model} in organization org-racelab on {kind} per "
        f"min ({short}): Limit {limit:.0f}, Used {used:.0f}, Requested {asked:.0f}. "
        f"Please try again in {duration(wait)}. Visit {LIMITS_PAGE} to learn more.",
        kind=kind,
        code="rate_limit_exceeded",
        headers=retry_headers(wait),
    )


def too_large(model: str, limit: float, asked: float) -> Refusal:
    """No `retry-after`: waiting does not help."""
    return Refusal(
        429,
        f"Request too large for {model} in organization org-racelab on tokens per min "
        f"(TPM): Limit {limit:.0f}, Requested {asked:.0f}. The input or output tokens "
        f"must be reduced in order to run successfully. Visit {LIMITS_PAGE} to learn "
        "more.",
        kind="tokens",
        code="rate_limit_exceeded",
    )


def retry_headers(wait: float) -> dict[str, str]:
    """`wait` is seconds; rounded up to whole seconds, and to milliseconds."""
    return {
        "retry-after": str(max(1, math.ceil(wait))),
        "retry-after-ms": str(math.ceil(wait * 1000)),
    }


def struck(kind: str, retry_after: float) -> Refusal:
    """The answer of an injected fault of kind 500, 503 or 429."""
    if kind == "429":
        return Refusal(
            429,
            "Rate limit reached for requests",
            kind="requests",
            code="rate_limit_exceeded",
            headers=retry_headers(retry_after),
        )
    if kind == "503":
        return Refusal(
            503,
            "Our servers are currently overloaded. Please try again later.",
            kind="service_unavailable_error",
            code="server_is_overloaded",
            headers=retry_headers(retry_after),
        )
    return server_error()


def server_error() -> Refusal:
    return Refusal(
        500,
        "The server had an error while processing your request. Sorry about that!",
        kind="server_error",
    )


def let_go() -> Refusal:
    """For a call that hung until the server was reset: too late to try again."""
    message = "The local server was reset while this request was hanging."
    headers = {"x-should-retry": "false"}
    return Refusal(503, message, kind="service_unavailable_error", headers=headers)


def duration(seconds: float) -> str:
    """As OpenAI writes it: `0s`, `17ms`, `1.5s`, `6m0s`."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
