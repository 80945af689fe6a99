"""
A team of agents researches a question under a rate limit; faults lose it nothing.

A lead plans, workers ask and check at the same time, an editor merges what arrived.

Run:   python research.py "Why do AI agents race?"
Next:  python research.py --help
"""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack, aclosing
from functools import partial
from typing import NamedTuple

from agents import (
    Ask,
    Failure,
    FailureKind,
    Journal,
    JournalError,
    Outcome,
    Team,
    stop_on_signals,
)
from racelab import ReaderError, start
from research_team.command_line import ResearchOptions, parse
from research_team.final_report import ResearchReport, ResearchRun, check_setup, finish
from research_team.forms import check_form, is_sound, plan_form, questions_in, readable
from research_team.model_source import ModelSource, open_model_source
from research_team.screen import Board, show

PLAN = """\
Split this question into {number} smaller ones, for as many researchers who work at \
the same time. Each is one line, and can be understood without the others.
{question}"""
RESEARCH = "In three sentences: {question}"
CHECK = """\
Is this answer right, as far as you know?
Question: {question}
Answer: {answer}"""
MERGE = """\
Merge these findings into one report of at most 300 words. Say what they leave open.
Question: {question}
{findings}
Missing: {missing}"""
EDITORS_SHARE = 0.2  # of the deadline: whatever happens, what arrived is merged


class Asks(NamedTuple):
    """Three ways to ask the model: for words, for a plan, for a check."""

    words: Ask
    plan: Ask
    check: Ask


async def run(
    question: str, agents: int, team: Team, asks: Asks, board: Board
) -> ResearchReport:
    """Plan, research, merge. Whatever fails is named in the report."""
    loop, limit = asyncio.get_running_loop(), team.limits.deadline
    until = loop.time() + (1 - EDITORS_SHARE) * limit
    report = ResearchReport(question, agents)
    report.plan = await plan(question, agents, team, asks)
    if report.plan.answer is not None:
        questions = questions_in(report.plan.text)[:agents]
        report.questions = questions
        board.begin("workers", questions)
        worker = partial(research, team=team, asks=asks, until=until, board=board)
        async with aclosing(team.run(questions, agent=worker)) as outcomes:
            async for outcome in outcomes:  # as they finish
                report.outcomes[outcome.question] = outcome
                board.note(outcome.question, "done" if outcome.answer else "missing")
    if report.findings:
        board.begin("editor")
        report.merged = await merge(report, team)
    board.begin("end")
    return report


async def plan(question: str, agents: int, team: Team, asks: Asks) -> Outcome:
    """The lead: which smaller questions answer the question?"""
    prompt = PLAN.format(number=agents, question=question)
    return await team.ask(prompt, readable(asks.plan, questions_in))


async def research(
    question: str, *, team: Team, asks: Asks, until: float, board: Board
) -> str:
    """A worker: ask, then let the model check the answer. It is kept either way."""
    board.note(question, "asks")
    asked = await ask_until(until, team, RESEARCH.format(question=question))
    answer = asked.text  # raises if there is none: then this outcome says why
    board.note(question, "checks")
    prompt = CHECK.format(question=question, answer=answer)
    ask = readable(asks.check, is_sound)
    checked = await ask_until(until, team, prompt, ask)
    if checked.answer is None:
        return f"{answer} [not checked]"
    return f"{answer} [{'checked' if is_sound(checked.text) else 'doubtful'}]"


async def ask_until(
    until: float, team: Team, prompt: str, ask: Ask | None = None
) -> Outcome:
    """Ask while there is time, by the loop's clock."""
    try:
        async with asyncio.timeout_at(until):
            return await team.ask(prompt, ask)
    except TimeoutError:
        why = "what time is left is the editor's"
        return Outcome(prompt, failure=Failure(FailureKind.DEADLINE, why))


async def merge(report: ResearchReport, team: Team) -> Outcome:
    """The editor: one report from what arrived, that names what did not."""
    found = [f"- {asked}: {text}" for asked, text in report.findings.items()]
    missing = "; ".join(f"{asked} ({why})" for asked, why in report.missing.items())
    prompt = MERGE.format(
        question=report.question,
        findings="\n".join(found),
        missing=missing or "nothing",
    )
    return await team.ask(prompt)


def asks_of(model: ModelSource, agents: int, board: Board) -> Asks:
    planned = model.ask(response_format=plan_form(agents))
    checked = model.ask(response_format=check_form())
    return Asks(*map(board.count, (model.ask(), planned, checked)))


async def conduct(options: ResearchOptions) -> int:
    with ExitStack() as stack:
        journal = None
        if options.journal is not None:
            journal = stack.enter_context(Journal(options.journal))
        async with open_model_source(options) as model:
            board = Board(model.limits)
            asks = asks_of(model, options.agents, board)
            team = Team(asks.words, model.limits, journal=journal, observer=board)
            async with team, show(board):
                stop = stack.enter_context(stop_on_signals(team))
                report = await run(options.question, options.agents, team, asks, board)
            ended = ResearchRun(
                options, model, board, board.seconds, model.seen(), stop
            )
            check_setup(report, model)
            return finish(report, ended)


async def main(arguments: Sequence[str] = ()) -> int:
    options = parse(arguments)
    try:
        return await conduct(options)
    except JournalError as error:
        raise ReaderError(str(error)) from error


if __name__ == "__main__":
    start(partial(main, sys.argv[1:]))
