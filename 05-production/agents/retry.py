"""Which failures can pass, how long to wait for that, and when to stop trying."""

from random import Random

from .limits import Limits
from .results import FailureKind, InvalidResponse, QuestionFailed, StatusError, TooLarge


def kind_of(error: BaseException) -> FailureKind:
    match error:
        case QuestionFailed():
            return error.failure.kind
        case StatusError():
            return FailureKind.REFUSED
        case TimeoutError():  # an OSError, too, so it comes first
            return FailureKind.TIMED_OUT
        case OSError(filename=None):  # ConnectionError, but no error of a file
            return FailureKind.UNREACHABLE
        case InvalidResponse() | TooLarge():
            return FailureKind.INVALID
        case _:
            return FailureKind.CRASHED


def may_pass(error: Exception) -> bool:
    """Return whether another try can succeed."""
    if isinstance(error, StatusError):
        if error.code == "insufficient_quota":  # a 429 that no wait will cure
            return False
        return error.status in (408, 409, 429) or error.status >= 500
    return (
        isinstance(error, OSError | InvalidResponse)
        and kind_of(error) != FailureKind.CRASHED
    )


def backoff(tries: int, limits: Limits, rng: Random) -> float:
    """Return the seconds to wait after `tries` tries: exponential, with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    longest: float = limits.backoff * 2 ** min(tries - 1, 60)
    return rng.uniform(0, min(longest, limits.longest_backoff))


class RetryBudget:
    """A budget for the whole run, because retries make an outage worse."""

    def __init__(self, limits: Limits) -> None:
        self.left: float = limits.free_retries
        self._share = limits.retry_share

    def earn(self) -> None:
        """Add the share of one new question."""
        self.left += self._share

    def spend(self) -> bool:
        """Take one retry. Return False if there is none."""
        has_one = self.left >= 1
        self.left -= has_one
        return has_one
