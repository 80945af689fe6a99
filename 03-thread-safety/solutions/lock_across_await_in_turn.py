"""
Exercise 3: one call at a time, and still no thread waits for the model.

Run:   python solutions/lock_across_await_in_turn.py
Next:  exercise 4
"""

import asyncio
from threading import Lock

from racelab import (
    Ask,
    LocalServer,
    Timeline,
    Watchdog,
    local_server,
    open_model,
    start,
    verdict,
)

AGENTS = ("tester", "editor", "scout")


class Report:
    def __init__(self) -> None:
        self.findings: tuple[str, ...] = ()
        self.lock = Lock()  # for threads, and never over an await
        self.turn = asyncio.Lock()  # for tasks of one loop: who waits lets others run


async def research(agent: str, report: Report, ask: Ask, timeline: Timeline) -> None:
    async with report.turn:
        timeline.mark(agent, "has its turn")
        answer = await ask(f"As the {agent}, name a risk.")
        with report.lock:
            report.findings = (*report.findings, answer)
    timeline.mark(agent, "done")


def look(report: Report, timeline: Timeline) -> None:
    """The dashboard, in a thread of its own."""
    with report.lock:
        timeline.mark("dashboard", f"sees {len(report.findings)}")


async def run(ask: Ask, timeline: Timeline, watchdog: Watchdog) -> None:
    """Let all agents research at the same time, then look at their report."""
    report = Report()
    async with asyncio.TaskGroup() as team:
        for agent in AGENTS:
            work = research(agent, report, ask, timeline)
            watchdog.add(agent, team.create_task(work))
    await asyncio.to_thread(look, report, timeline)


async def on_a_loop(
    server: LocalServer, timeline: Timeline, watchdog: Watchdog
) -> None:
    async with open_model(server) as ask:
        await run(ask, timeline, watchdog)


def main() -> int:
    timeline = Timeline(*AGENTS, "dashboard")
    watchdog = Watchdog(lambda: str(timeline))
    # The local server answers long before the watchdog's patience ends.
    with local_server() as server:
        # A loop that stands still cannot watch itself: it runs in a thread.
        watchdog.start("loop", asyncio.run, on_a_loop(server, timeline, watchdog))
        stuck = watchdog.watch()
        at_once = server.stats().largest_in_flight
    print(timeline, *stuck, sep="\n")
    finished = sum("done" in timeline.of(agent) for agent in AGENTS)
    says = f"finished {finished} of {len(AGENTS)} calls, at most {at_once} at a time"
    return verdict(not stuck and at_once == 1, says)


if __name__ == "__main__":
    start(main)
