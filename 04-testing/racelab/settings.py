"""What a local model server is told (`Settings`, `Fault`) and has seen (`Stats`)."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from racelab.reader_error import ReaderError
from racelab.seeds import fraction_of

FAULTS = ("500", "503", "429", "reset", "hang", "slow", "cut", "malformed")


class BadSetting(ReaderError, ValueError):
    """A value that the server cannot work with; the message names what is allowed."""


@dataclass(frozen=True)
class Fault:
    """One kind of trouble, and the calls that meet it.

    `500`, `503`, `429` answer with that status; `reset` resets the connection at once,
    `hang` never answers, `slow` answers (or streams) ten times slower, `cut` breaks off
    in the middle of the body, `malformed` answers 200 with broken JSON. Only `slow`,
    `cut` and `malformed` calls are billed, and only `slow` ones are answered.

    A rule applies to a call when its number is in `calls` (the first call since the
    last reset is 1, and refused ones count), or its question contains `question`, or
    with `probability`, drawn from the seed and the call's number. A rule without any of
    the three applies to no call. Of several rules that fit, the first applies.
    """

    kind: str
    probability: float = 0.0
    calls: tuple[int, ...] = ()
    question: str = ""
    retry_after: float = 1.0  # seconds, sent with 429 and 503

    def __post_init__(self) -> None:
        object.__setattr__(self, "calls", tuple(self.calls))
        if self.kind not in FAULTS:
            raise BadSetting(f"fault {self.kind!r}: must be one of {', '.join(FAULTS)}")
        _check_number("probability", self.probability, low=0, high=1)
        _check_number("retry_after", self.retry_after, low=0, high=3600)
        if not all(isinstance(call, int) and call >= 1 for call in self.calls):
            raise BadSetting(f"calls={self.calls!r}: must be whole numbers from 1")
        if not isinstance(self.question, str):
            raise BadSetting(f"question={self.question!r}: must be text")


@dataclass(frozen=True)
class Settings:
    """How a local model server behaves. Times are seconds, rates are per minute."""

    latency: float = 0.1  # mean time until an answer, or the first chunk of a stream
    spread: float = 0.5  # from latency * (1 - spread) to latency * (1 + spread)
    seed: int = 0
    rpm: float | None = None  # requests per minute and key; None: no limit
    tpm: float | None = None  # tokens per minute and key; None: no limit
    request_burst: float | None = None  # size of the bucket; None: ten seconds' worth
    token_burst: float | None = None
    count_refused: bool = (
        True  # a refused request counts against the limit, as at OpenAI
    )
    chunk_delay: float = 0.01  # between two chunks of a stream
    api_key: str | None = field(
        default=None, repr=False
    )  # the only key accepted; None: any
    models: tuple[str, ...] = ()  # the only models served; empty: any name
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        faults = (f if isinstance(f, Fault) else _build(Fault, f) for f in self.faults)
        object.__setattr__(self, "faults", tuple(faults))
        if isinstance(self.models, str):
            raise BadSetting(f"models={self.models!r}: must be a list of names")
        object.__setattr__(self, "models", tuple(self.models))
        _check_number("latency", self.latency, low=0, high=600)
        _check_number("spread", self.spread, low=0, high=1)
        _check_number("chunk_delay", self.chunk_delay, low=0, high=60)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise BadSetting(f"seed={self.seed!r}: must be a whole number")
        for name in ("rpm", "tpm", "request_burst", "token_burst"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), low=1, high=1e12)

    def fault_for(self, call: int, question: str) -> Fault | None:
        """The first rule that strikes this call."""
        for index, fault in enumerate(self.faults):
            by_number = call in fault.calls
            by_question = bool(fault.question) and fault.question in question
            if by_number or by_question:
                return fault
            if fault.probability > fraction_of(self.seed, "fault", index, call):
                return fault
        return None

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Raises `BadSetting` for an unknown name or a value that is not allowed."""
        built: Self = _build(cls, values)
        return built

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Stats:
    """What the server has seen since its start or the last reset. Times are seconds.

    Each request received ends in one place: answered, abandoned, refused, or spoiled by
    a fault of kind reset, hang, cut or malformed.
    """

    received: int = 0  # requests to /v1/chat/completions, refused ones included
    answered: int = 0  # with status 200 and a whole body sent, or a stream to its end
    abandoned: int = 0  # the client left before the end; billed: all of a plain answer,
    # and of a stream what had been generated by then
    refused: Mapping[str, int] = field(default_factory=dict)  # status -> how often
    faults: Mapping[str, int] = field(default_factory=dict)  # kind -> how often
    connections_opened: int = 0  # of clients, each from its first request on
    connections_open: int = 0  # right now
    in_flight: int = 0  # right now
    largest_in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    chunks_sent: int = 0  # server-sent events that carry a choice
    # the first 2,000 characters of a question -> how often
    answers: Mapping[str, int] = field(default_factory=dict)
    arrivals: tuple[float, ...] = ()  # since the reset, one per request received
    cpu_seconds: float = 0.0  # used by the server's process since the reset

    @property
    def tokens_billed(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(**{**values, "arrivals": tuple(values["arrivals"])})

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _build(kind: Any, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise BadSetting(
            f"{values!r}: must be an object with the fields of {kind.__name__}"
        )
    known = [f.name for f in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            raise BadSetting(f"{name!r}: must be one of {', '.join(known)}")
    try:
        return kind(**values)
    except (
        TypeError
    ) as error:  # a missing field, or a value of a type that cannot be compared
        raise BadSetting(f"{kind.__name__}: {error}") from None


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        raise BadSetting(f"{name}={value!r}: must be a number from {low:g} to {high:g}")
