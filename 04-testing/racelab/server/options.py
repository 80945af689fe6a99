"""The command line of the local model server, read into `Settings`."""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from racelab.settings import FAULTS, BadSetting, Settings

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
    add("--port", type=int, default=8000, help="0: any free one (default 8000)")
    add("--latency", type=float, help="mean seconds to an answer (default 0.1)")
    add("--spread", type=float, help="of the latency, from 0 to 1 (default 0.5)")
    add("--seed", type=int, help="other latencies, answers and faults (default 0)")
    add("--rpm", type=float, help="requests a minute for each key (default: any)")
    add("--tpm", type=float, help="tokens a minute for each key (default: any)")
    add("--request-burst", type=float, help="at once (default: rpm / 6)")
    add("--token-burst", type=float, help="at once (default: tpm / 6)")
    add("--no-count-refused", dest="count_refused", action="store_false", default=None)
    add("--chunk-delay", type=float, help="seconds between chunks (default 0.01)")
    add(
        "--models",
        type=lambda text: tuple(text.split(",")),
        metavar="A,B",
        help="the only ones (default: any)",
    )
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


def fault(text: str) -> dict[str, Any]:
    """Read a fault such as `503:probability=0.1:retry_after=2` or `hang:calls=3,5`."""
    rules, _, question = text.partition(":question=")
    kind, *conditions = rules.split(":")
    values: dict[str, Any] = {"kind": kind, "question": question}
    for condition in conditions:
        name, _, value = condition.partition("=")
        numbers = value.split(",")
        values[name] = tuple(map(int, numbers)) if name == "calls" else float(value)
    return values
