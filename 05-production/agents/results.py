"""Results: an answer, or a failure with its cause, for each question."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Remaining:
    """What the server still accepts right now, by its headers. None: no header."""

    requests: float | None = None
    tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    prompt_tokens: int | None = None  # None: unknown
    completion_tokens: int | None = None
    remaining: Remaining = Remaining()

    @property
    def tokens(self) -> int | None:
        if self.prompt_tokens is None and self.completion_tokens is None:
            return None
        return (self.prompt_tokens or 0) + (self.completion_tokens or 0)


# The seam: any async function can be an agent's model, and any agent another's.
# It makes one try, because the team adds slots, rate limits, timeouts and retries.
Ask = Callable[[str], Awaitable[Answer | str]]


def as_answer(answer: Answer | str) -> Answer:
    if not isinstance(answer, Answer | str):
        raise TypeError(f"{type(answer).__name__}: neither an Answer nor a str")
    return Answer(answer) if isinstance(answer, str) else answer


class StatusError(Exception):
    """A refusal by the server. `retry_after`: seconds to wait, None if not named."""

    def __init__(
        self,
        status: int,
        message: str = "",
        *,
        code: str | None = None,
        retry_after: float | None = None,
        remaining: Remaining = Remaining(),
    ) -> None:
        super().__init__(f"{status} {message}".strip())
        self.status, self.code = status, code
        self.retry_after, self.remaining = retry_after, remaining


class InvalidResponse(Exception):
    """An answer that cannot be read."""


class TooLarge(Exception):
    """A question that never fits the limits, no matter how long it waits."""


class NestingError(Exception):
    """Agents ask agents too deep, or a call to the model asks its own team."""


class FailureKind(StrEnum):
    """Why there is no answer."""

    REFUSED = "refused"  # by the server
    TIMED_OUT = "timed out"  # no answer within the time for one try
    UNREACHABLE = "unreachable"  # no connection, or it broke
    INVALID = "invalid"  # the answer cannot be read, or the question cannot be sent
    CRASHED = "crashed"  # the ask, or an agent, raised something else
    CANCELLED = "cancelled"  # the team was stopped
    DEADLINE = "deadline"  # the whole team's time is over


@dataclass(frozen=True, slots=True)
class Failure:
    kind: FailureKind
    message: str
    cause: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one question ended: with an `answer`, or with a `failure`."""

    question: str
    answer: Answer | None = None
    failure: Failure | None = None
    requests: int = 0  # requests sent, refused ones too. 0: from the journal
    waited: float = 0.0  # seconds for a slot, its turn and backoff
    in_flight: float = 0.0  # seconds
    tokens: int = 0  # of the answers that arrived

    @property
    def text(self) -> str:
        """Return the answer's text. Raise `QuestionFailed` if there is none."""
        if self.answer is None:
            raise QuestionFailed(self)
        return self.answer.text


class QuestionFailed(Exception):
    """Raised by `Outcome.text` if the outcome is a failure."""

    def __init__(self, outcome: Outcome) -> None:
        failure = outcome.failure
        assert failure is not None
        super().__init__(f"{failure.kind}: {failure.message}")
        self.outcome, self.failure = outcome, failure
