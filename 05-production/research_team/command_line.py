"""The command line of `research.py`, and the faults that it can switch on."""

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from racelab import Fault
from racelab.server.options import OneLineParser

QUESTION = "Why do AI agents race?"
LONGEST = 2000  # letters of a question

# Which calls the local server spoils: by their number, or with a probability.
FAULTS = {
    "none": (),
    "some": (
        Fault("500", probability=0.03, calls=(3,)),
        Fault("hang", calls=(6,)),
        Fault("malformed", calls=(9,)),
        Fault("429", calls=(12,), retry_after=0.5),
        Fault("503", probability=0.02, calls=(15,), retry_after=0.2),
        Fault("reset", probability=0.02, calls=(18,)),
    ),
    "many": (
        Fault("500", probability=0.1),
        Fault("hang", probability=0.03),
        Fault("malformed", probability=0.03),
        Fault("429", probability=0.02, retry_after=0.5),
        Fault("503", probability=0.05, retry_after=0.2),
        Fault("reset", probability=0.05),
    ),
    "outage": (Fault("503", calls=tuple(range(12, 3000)), retry_after=0.2),),
}
EPILOG = """\
faults of the local server:
  none    every call is answered
  some    a call that hangs, a broken answer, a refusal (429), and in about one of
          fourteen calls an error 500 or 503 or a reset connection: nothing is lost
  many    about one call in four fails in one of these ways
  outage  from the 12th call on, every call is answered with an error 503: some
          questions stay open, and the report names them

The model: with OPENAI_API_KEY set, in the environment or in a .env file, the real API;
without, a local server that needs no key and answers in stock phrases.

The exit status: 0 if every question was answered, 1 if some were not or the editor
failed, 2 if it could not begin (a wrong value, a wrong key) or its journal broke, 130
after Ctrl-C, 143 after SIGTERM.

examples:
  python research.py
  python research.py "What makes batteries age?" --agents 5 --journal batteries.db
  python research.py --faults outage
  python research.py --json > report.json
"""


@dataclass(frozen=True)
class ResearchOptions:
    """A parsed command line. `None` stands for the default of the chosen model."""

    question: str
    agents: int
    concurrency: int
    rpm: int | None
    tpm: int | None
    timeout: float | None
    deadline: float
    journal: str | None
    faults: str | None
    json: bool


def parse(arguments: Sequence[str]) -> ResearchOptions:
    """Ends the program with status 2 and one line if a value is not allowed."""
    parser = OneLineParser(
        prog="research.py",
        description=textwrap.dedent("""\
            A team of AI agents researches a question. A lead splits it into smaller
            ones, workers answer and check these at the same time, an editor merges
            what arrived. Prints the report, what the limits allowed and what was
            used; progress goes to stderr."""),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser)
    add_limits(parser)
    return ResearchOptions(**vars(parser.parse_args(arguments)))


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    says = "what to research (default: %(default)s)"
    add(
        "question",
        nargs="?",
        type=question,
        default=QUESTION,
        metavar="QUESTION",
        help=says,
    )
    says = "a file that keeps every answer: a second start asks only what is missing"
    add("--journal", type=file, metavar="FILE", help=says)
    says = "of the local server: none, some, many or outage, see below (default some)"
    add("--faults", type=faults, metavar="PROFILE", help=says)
    add("--json", action="store_true", help="print one JSON object instead of text")


def add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("limits").add_argument
    says = "how many smaller questions, each for one agent (default %(default)s)"
    add("--agents", type=partial(whole, 1, 1000), default=8, metavar="N", help=says)
    says = "calls of the model at the same time, at most (default %(default)s)"
    add(
        "--concurrency", type=partial(whole, 1, 1000), default=4, metavar="N", help=says
    )
    says = "requests a minute, your account's limit (default 500; local server: 480)"
    add("--rpm", type=partial(whole, 1, 1_000_000), metavar="N", help=says)
    says = "tokens a minute, the same (default 200000; local server: 60000)"
    add("--tpm", type=partial(whole, 1, 1_000_000_000), metavar="N", help=says)
    says = "seconds for one call, then it is tried again (default 60; local: 1.5)"
    add("--timeout", type=seconds, metavar="S", help=says)
    says = "seconds for all, the last fifth to merge what arrived (default %(default)g)"
    add("--deadline", type=seconds, default=300.0, metavar="S", help=says)


def question(text: str) -> str:
    """On one line, and text that can be sent (an argument may be any bytes)."""
    words = " ".join(text.encode(errors="replace").decode().split())
    if not 1 <= len(words) <= LONGEST:
        shown = repr(textwrap.shorten(words, 40, placeholder="..."))
        raise argparse.ArgumentTypeError(f"{shown}: must have 1 to {LONGEST} letters")
    return words


def whole(low: int, high: int, text: str) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) < 20
    if not is_number or not low <= int(text) <= high:
        says = f"{text!r}: must be a whole number from {low} to {high}"
        raise argparse.ArgumentTypeError(says)
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 86400:
        says = f"{text!r}: must be a number from 0.01 to 86400"
        raise argparse.ArgumentTypeError(says)
    return value


def file(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: must be the name of a file")
    return text


def faults(text: str) -> str:
    if text not in FAULTS:
        says = f"{text!r}: must be one of {', '.join(FAULTS)}"
        raise argparse.ArgumentTypeError(says)
    return text
