"""The command line of the local model server, read into `Settings`."""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from racelab.settings import FAULTS, BadSetting, Fault, Settings

EPILOG = f"""\
faults:
  --fault KIND:WHEN[:WHEN...], as often as you like. The first that fits applies.
  KIND  {", ".join(FAULTS)}
  WHEN  probability=0.1    one call in ten, the same ones on every run
        calls=3,5          the third and the fifth call
        retry_after=2      seconds that 429 and 503 tell the client to wait
        question=Paris     calls whose question contains this; goes last

environment:
  RACELAB_API_KEY          the only API key accepted; unset: any
  RACELAB_CONTROL_SECRET   switches on /control/stats and /control/reset, for requests
                           that carry it as x-control-secret

example:
  python -m racelab.server --rpm 60 --fault 503:probability=0.1 --fault hang:calls=3
"""


class OneLineParser(argparse.ArgumentParser):
    """A parser that prints an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parse(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> tuple[Settings, int]:
    """Return the settings and the port. Exit with status 2 if one is wrong."""
    parser = OneLineParser(
        prog="racelab.server",
        description="A local model server that speaks OpenAI's chat API.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--port", type=port, default=8000, help="0: any free one (default 8000)")
    add("--latency", type=float, help="mean seconds to an answer (default 0.1)")
    add("--spread", type=float, help="of the latency, from 0 to 1 (default 0.5)")
    add("--seed", type=int, help="other latencies, answers and faults (default 0)")
    add("--rpm", type=float, help="requests a minute for each key (default: any)")
    add("--tpm", type=float, help="tokens a minute for each key (default: any)")
    add("--request-burst", type=float, help="at once (default: rpm / 6)")
    add("--token-burst", type=float, help="at once (default: tpm / 6)")
    add("--no-count-refused", dest="count_refused", action="store_false", default=None)
    add("--chunk-delay", type=float, help="seconds between chunks (default 0.01)")
    add("--models", type=names, metavar="A,B", help="the only ones (default: any)")
    add("--fault", dest="faults", type=fault, action="append", metavar="KIND:WHEN")
    given = vars(parser.parse_args(arguments))
    chosen = given.pop("port")
    values = {name: value for name, value in given.items() if value is not None}
    try:
        settings = Settings(
            api_key=environment.get("RACELAB_API_KEY") or None, **values
        )
    except BadSetting as error:
        parser.error(str(error))
    return settings, chosen


def port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: must be from 0 to 65535")
    return int(text)


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def fault(text: str) -> Fault:
    """Read a fault such as `503:probability=0.1:retry_after=2` or `hang:calls=3,5`."""
    kind, _, rest = text.partition(":")
    values: dict[str, Any] = {}
    try:
        while rest:
            name, _, value = rest.partition("=")
            if name == "question":
                values[name], rest = value, ""
                continue
            value, _, rest = value.partition(":")
            if name == "calls":
                values[name] = tuple(int(call) for call in value.split(","))
            elif name in ("probability", "retry_after"):
                values[name] = float(value)
            else:
                allowed = "probability=, calls=, retry_after= or question="
                raise ValueError(f"{name!r}: must be {allowed}")
        return Fault(kind, **values)
    except ValueError as error:  # a BadSetting is one
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
