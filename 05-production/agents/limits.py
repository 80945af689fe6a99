"""The policy: a frozen dataclass of numbers, which the mechanism only reads."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much at once, how fast, how long, how often. Raises ValueError.

    Times are in seconds. Every one has a default. Pass `math.inf` to switch one off.
    """

    # At once
    concurrency: int = 10  # calls in flight
    depth: int = 5  # agents that ask agents that ask agents ...

    # How fast: the account's limits, requests and tokens per minute. None: unknown
    rpm: float | None = None
    tpm: float | None = None
    # What the server lets through at once after a rest. None: one second's worth
    request_burst: float | None = None
    token_burst: float | None = None
    answer_tokens: int = 500  # expected of an answer, before it is there

    # How long
    connect: float = 5.0  # until there is a connection
    timeout: float = 60.0  # until one request is answered
    deadline: float = 3600.0  # until the whole team is done

    # How often
    tries: int = 4  # for a question; a refusal that names a wait is not a failed one
    refusals: int = 100  # with a wait, in one try, before that one has failed, too
    backoff: float = 0.5  # longest wait before the second try; it doubles each time
    longest_backoff: float = 30.0
    free_retries: int = 10  # the retry budget of the whole run: these,
    retry_share: float = 0.2  # and this share of a retry for each question
    hedge: float | None = None  # in flight this long: ask again, first answer counts

    def __post_init__(self) -> None:
        for name in ("concurrency", "depth", "tries"):
            self._check(name, whole=True, low=1)
        for name in ("answer_tokens", "refusals", "free_retries"):
            self._check(name, whole=True, low=0)
        for name in ("rpm", "tpm", "request_burst", "token_burst"):
            if getattr(self, name) is not None:
                self._check(name, low=1)
        for name in ("connect", "timeout", "deadline", "hedge"):
            if name != "hedge" or self.hedge is not None:
                self._check(name, low=0.001, most=math.inf)
        for name in ("backoff", "longest_backoff", "retry_share"):
            self._check(name, low=0)

    def _check(
        self, name: str, *, low: float, most: float = 1e12, whole: bool = False
    ) -> None:
        value: Any = getattr(self, name)
        kinds = int if whole else int | float
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        if not fits or not low <= value <= most:
            what = "a whole number" if whole else "a number"
            raise ValueError(f"{name}={value!r}: must be {what} from {low:g}")
