"""What `research.py` prints at the end, as text or as JSON, and its exit status."""

import json
import signal
import sys
from dataclasses import dataclass, field
from typing import Any

from agents import Failure, FailureKind, Outcome, Shutdown, StatusError
from agents.retry import may_pass
from racelab import ReaderError, Stats, table, verdict
from research_team.command_line import ResearchOptions
from research_team.model_source import ModelSource
from research_team.screen import Board


@dataclass
class ResearchReport:
    """A report: the plan, each question's outcome, and the editor's text."""

    question: str
    wanted: int  # smaller questions
    plan: Outcome | None = None  # the lead's
    questions: list[str] = field(default_factory=list)  # as planned
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    merged: Outcome | None = None  # the editor's

    @property
    def findings(self) -> dict[str, str]:
        """Question -> answer, in the order of the plan."""
        ended = {asked: self.outcomes[asked] for asked in self.questions}
        return {asked: o.text for asked, o in ended.items() if o.failure is None}

    @property
    def missing(self) -> dict[str, str]:
        """Question -> why it has no answer."""
        ended = {asked: self.outcomes[asked].failure for asked in self.questions}
        return {asked: why(failure) for asked, failure in ended.items() if failure}

    @property
    def says(self) -> str:
        """The editor's words; without them, what it was to merge."""
        if self.merged is not None and self.merged.answer is not None:
            return self.merged.text
        return "\n".join(f"- {asked}: {text}" for asked, text in self.findings.items())

    @property
    def trouble(self) -> list[str]:
        """What went wrong with the lead and the editor."""
        named = {"lead": self.plan, "editor": self.merged}
        failed = {name: o.failure for name, o in named.items() if o and o.failure}
        return [f"The {name} failed: {why(f)}" for name, f in failed.items()]

    @property
    def holds(self) -> bool:
        return bool(self.findings) and not self.missing and not self.trouble

    @property
    def verdict(self) -> str:
        asked = len(self.questions) or self.wanted
        but = ", but the editor failed" if self.findings and self.trouble else ""
        return f"answered {len(self.findings)} of {asked} questions{but}"


def why(failure: Failure) -> str:
    kind, says = str(failure.kind), " ".join(failure.message.split())
    return says if says.startswith(f"{kind}: ") else f"{kind}: {says}"


@dataclass(frozen=True)
class ResearchRun:
    """A finished run: what was asked for, and what it took."""

    options: ResearchOptions
    model: ModelSource
    board: Board
    seconds: float
    seen: Stats | None  # by the local server
    stop: Shutdown

    @property
    def stopped(self) -> str | None:
        number = self.stop.signal
        return None if number is None else signal.Signals(number).name

    def allowed(self, per_minute: float | None) -> int:
        """What comes in a second may be sent at once, then as much each second."""
        return int((per_minute or 0) / 60 * (1 + self.seconds))


def finish(report: ResearchReport, run: ResearchRun) -> int:
    """Print everything; give the exit status."""
    for stream in (sys.stdout, sys.stderr):  # not every terminal can show all letters
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if run.stopped is not None:
        kept = f"{len(report.findings)} answers were kept"
        print(f"stopped by {run.stopped}: {kept}", file=sys.stderr)
    if run.options.json:
        print(json.dumps(as_json(report, run), indent=2))
        status = 0 if report.holds else 1
    else:
        print(as_text(report, run))
        status = verdict(report.holds, report.verdict)
    return run.stop.status or status


def as_text(report: ResearchReport, run: ResearchRun) -> str:
    parts = [report.question, *map(shown, report.trouble), shown(report.says)]
    if report.missing:
        lines = [f"- {asked}: {why}" for asked, why in report.missing.items()]
        parts.append(shown("\n".join(["Missing:", *lines])))
    parts.append("\n".join([limits_table(run), *counts(run)]))
    return "\n\n".join(part for part in parts if part)


def shown(text: str) -> str:
    """Without what a terminal would obey: a model may say anything."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def limits_table(run: ResearchRun) -> str:
    limits, board = run.model.limits, run.board
    head = ("", "a minute", f"in {run.seconds:.1f} s", "used")
    rows = [
        ("requests", limits.rpm, run.allowed(limits.rpm), board["sent"]),
        ("tokens", limits.tpm, run.allowed(limits.tpm), board.tokens),
    ]
    cells = [(name, *(f"{number:,}" for number in row)) for name, *row in rows]
    return table(
        head, *cells, ("at once", "", limits.concurrency, board.most_in_flight)
    )


def counts(run: ResearchRun) -> list[str]:
    board, options, seen = run.board, run.options, run.seen
    lines = [f"{board['refused']} refused, {board['retried']} retried"]
    if seen is not None:
        faults = [f"{kind} x{n}" for kind, n in sorted(seen.faults.items())]
        spoiled = f"; faults: {', '.join(faults)}" if faults else ""
        lines.append(
            f"server: received {seen.received}, answered {seen.answered}{spoiled}"
        )
    if options.journal is not None:
        asked = f"{board['sent']} requests sent" if board["sent"] else "nothing asked"
        lines.append(f"journal {options.journal}: had {board.known} answers; {asked}")
    return lines


def as_json(report: ResearchReport, run: ResearchRun) -> dict[str, Any]:
    return {
        "question": report.question,
        "verdict": ("OK: " if report.holds else "BROKEN: ") + report.verdict,
        "report": report.says,
        "trouble": report.trouble,
        "missing": report.missing,
        "outcomes": [outcome(report.outcomes[asked]) for asked in report.questions],
        "stopped": run.stopped,
        **counts_as_json(run),
    }


def outcome(ended: Outcome) -> dict[str, Any]:
    return {
        "question": ended.question,
        "answer": ended.answer and ended.answer.text,
        "failure": ended.failure and why(ended.failure),
    }


def counts_as_json(run: ResearchRun) -> dict[str, Any]:
    endpoint, limits, board = run.model.endpoint, run.model.limits, run.board
    seen = None if run.seen is None else run.seen.to_json()
    server = seen and {name: seen[name] for name in ("received", "answered", "faults")}
    return {
        "model": {"name": endpoint.model, "host": endpoint.host},
        "seconds": round(run.seconds, 3),
        "allowed": {
            "requests": run.allowed(limits.rpm),
            "tokens": run.allowed(limits.tpm),
            "in_flight": limits.concurrency,
        },
        "used": {
            "requests": board["sent"],
            "tokens": board.tokens,
            "in_flight": board.most_in_flight,
        },
        "refused": board["refused"],
        "retried": board["retried"],
        "from_journal": board.known,
        "server": server,
    }


def check_setup(report: ResearchReport, model: ModelSource) -> None:
    """Raises `ReaderError` if the lead had a wrong key, or nobody to ask."""
    failure = None if report.plan is None else report.plan.failure
    if failure is None:
        return
    cause = failure.cause
    is_refused = isinstance(cause, StatusError) and not may_pass(cause)
    if is_refused or failure.kind is FailureKind.UNREACHABLE:
        says, host = " ".join(failure.message.split()), model.endpoint.host
        hint = "check OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL"
        raise ReaderError(f"{host}: {shown(says)[:300]}: {hint}") from cause
