"""Agents that ask a model at the same time: bounded, rate-limited, timed, retried once.

    limits = Limits(concurrency=20, rpm=500, tpm=200_000)
    async with AsyncOpenAI(http_client=DefaultAioHttpClient()) as client:
        async with Team(openai_ask(client, "gpt-5.4-mini", limits), limits) as team:
            async for outcome in team.run(questions):
                print(outcome.question, outcome.answer or outcome.failure)

Copy this folder into your project. It needs `openai` and nothing else.

Start reading at `limits`, the policy, and `team`, the front door. `dispatcher` takes
one question to its answer, with `rate_limiter` (on `token_bucket`) and `retry`.
`results` defines outcomes. `journal`, `observe` and `shutdown` are optional.
"""

from .journal import Journal, JournalError
from .limits import Limits
from .observe import Event, Observer, Summary, all_of, log_to
from .openai_ask import openai_ask
from .rate_limiter import RateLimiter
from .results import (
    Answer,
    Ask,
    Failure,
    FailureKind,
    InvalidResponse,
    NestingError,
    Outcome,
    QuestionFailed,
    Remaining,
    StatusError,
    TooLarge,
)
from .shutdown import Shutdown, stop_on_signals
from .team import Team

__all__ = [
    "Answer",
    "Ask",
    "Event",
    "Failure",
    "FailureKind",
    "InvalidResponse",
    "Journal",
    "JournalError",
    "Limits",
    "NestingError",
    "Observer",
    "Outcome",
    "QuestionFailed",
    "RateLimiter",
    "Remaining",
    "Shutdown",
    "StatusError",
    "Summary",
    "Team",
    "TooLarge",
    "all_of",
    "log_to",
    "openai_ask",
    "stop_on_signals",
]
