"""What comes back: each question ends as an answer, or as a failure with its cause."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Remaining:
    """What the server says may still be sent right now; None: it does not say."""

    requests: float | None = None
    tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    prompt_tokens: int | None = None  # None: the model does not say
    completion_tokens: int | None = None
    remaining: Remaining = Remaining()

    @property
    def tokens(self) -> int | None:
        if self.prompt_tokens is None and self.completion_tokens is None:
            return None
        return (self.prompt_tokens or 0) + (self.completion_tokens or 0)


# The seam: any async function can be an agent's model, and any agent another's.
# It makes one try; slots, pace, timeouts and retries are the team's.
Ask = Callable[[str], Awaitable[Answer | str]]


def as_answer(answer: Answer | str) -> Answer:
    if not isinstance(answer, Answer | str):
        raise TypeError(f"{type(answer).__name__}: neither an Answer nor a str")
    return Answer(answer) if isinstance(answer, str) else answer


class StatusError(Exception):
    """The server said no. `retry_after` is seconds, None if it names no time."""

    def __init__(
        self,
        status: int,
        says: str = "",
        *,
        code: str | None = None,
        retry_after: float | None = None,
        remaining: Remaining = Remaining(),
    ) -> None:
        super().__init__(f"{status} {says}".strip())
        self.status, self.code = status, code
        self.retry_after, self.remaining = retry_after, remaining


class InvalidResponse(Exception):
    """There was an answer, but it cannot be read."""


class TooLarge(Exception):
    """A question that never fits the limits, however long it waits."""


class NestingError(Exception):
    """Agents ask agents too deep, or a call to the model asks its own team."""


class FailureKind(StrEnum):
    """Why there is no answer."""

    REFUSED = "refused"  # the server said no
    TIMED_OUT = "timed out"  # no answer within the time for one try
    UNREACHABLE = "unreachable"  # no connection, or it broke
    INVALID = "invalid"  # the answer cannot be read, or the question cannot be sent
    CRASHED = "crashed"  # the ask, or an agent, raised something else
    CANCELLED = "cancelled"  # the team was stopped
    DEADLINE = "deadline"  # the whole team's time is over


@dataclass(frozen=True, slots=True)
class Failure:
    kind: FailureKind
    says: str
    cause: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one question ended. Either `answer` or `failure` is there."""

    question: str
    answer: Answer | None = None
    failure: Failure | None = None
    requests: int = 0  # requests sent, refused ones too; 0: the journal had it
    waited: float = 0.0  # seconds for a slot, its turn and backoff
    in_flight: float = 0.0  # seconds
    tokens: int = 0  # of the answers that arrived

    @property
    def text(self) -> str:
        """The answer's text. Raises `QuestionFailed`."""
        if self.answer is None:
            raise QuestionFailed(self)
        return self.answer.text


class QuestionFailed(Exception):
    """Somebody wanted the text of an outcome that is a failure."""

    def __init__(self, outcome: Outcome) -> None:
        failure = outcome.failure
        assert failure is not None
        super().__init__(f"{failure.kind}: {failure.says}")
        self.outcome, self.failure = outcome, failure
