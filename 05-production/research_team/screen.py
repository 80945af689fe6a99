"""What one sees while the team works: a live picture on a terminal, else lines."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from agents import Answer, Ask, Event, Limits, Summary

FRAME = 0.1  # seconds between two pictures
EVERY = 2.0  # seconds, at least, between two lines, unless something begins
ROWS = 12  # agents in the picture, at most


class Board(Summary):
    """Who does what right now. It is an observer, and whoever works notes it here."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self.phase = "lead"
        self.agents: dict[str, str] = {}  # question -> waits, asks, checks, done, ...
        self.in_flight = self.most_in_flight = 0
        self.known = 0  # answers that the journal had
        self.news = ""
        self.began = asyncio.get_running_loop().time()
        self.turned = asyncio.Event()  # something begins

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        self.known += event.kind == "answered" and event.requests == 0
        if event.kind in ("refused", "retried", "failed"):
            self.news = f"{event.kind}: {event.detail}".rstrip(": ")

    def begin(self, phase: str, questions: list[str] | None = None) -> None:
        self.phase = phase
        self.agents |= dict.fromkeys(questions or (), "waits")
        self.turned.set()

    def note(self, question: str, doing: str) -> None:
        self.agents[question] = doing

    def count(self, ask: Ask) -> Ask:
        """The same `ask`, but the board knows how many are in flight."""

        async def counted(question: str) -> Answer | str:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                return await ask(question)
            finally:
                self.in_flight -= 1

        return counted

    @property
    def seconds(self) -> float:
        return asyncio.get_running_loop().time() - self.began

    def __str__(self) -> str:
        return ", ".join(self.lines())

    def lines(self) -> tuple[str, str]:
        doing = list(self.agents.values())
        done = doing.count("done") + doing.count("missing")
        questions = f"{done} of {len(doing)} questions done, " if doing else ""
        at_work = doing.count("asks") + doing.count("checks")
        at_work += self.phase in ("lead", "editor")
        waiting = max(0, at_work - self.in_flight)  # for a slot, their turn, a new try
        left = max(0.0, self.limits.deadline - self.seconds)
        return (
            f"{self.phase}: {questions}{self.in_flight} in flight, {waiting} waiting",
            f"{self['refused']} refused, {self['retried']} retried, "
            f"{self.tokens:,} tokens, {left:.0f} s left",
        )

    def picture(self, width: int) -> Group:
        """A row for each agent, and how it goes."""
        rows = list(self.agents.items())
        if len(rows) > ROWS:
            rows.sort(key=lambda row: row[1] == "done")
            rows[ROWS:] = [(f"and {len(rows) - ROWS} more", "...")]
        agents = [f"  {doing:8}{question}" for question, doing in rows]
        cut = (plain(line)[: width - 1] for line in (*agents, *self.lines(), self.news))
        return Group(*map(Text, cut))  # no markup: a model's [red] is not a colour


def plain(text: str) -> str:
    """On one line, and without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


@asynccontextmanager
async def show(board: Board, file: TextIO | None = None) -> AsyncIterator[None]:
    """Show the board on stderr inside the `async with`. It never stops the work."""
    console = Console(file=file or sys.stderr)
    lively = console.is_terminal and not console.is_dumb_terminal
    task = asyncio.create_task((draw if lively else print_changes)(board, console))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def draw(board: Board, console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                live.update(board.picture(console.width), refresh=True)
                await asyncio.sleep(FRAME)
        finally:
            live.update(board.picture(console.width), refresh=True)


async def print_changes(board: Board, console: Console) -> None:
    while True:
        try:
            async with asyncio.timeout(EVERY):
                await board.turned.wait()
        except TimeoutError:
            pass
        board.turned.clear()
        print(board, file=console.file, flush=True)
