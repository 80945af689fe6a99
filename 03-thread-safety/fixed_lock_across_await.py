"""
Agents take a threading lock after their `await`, and the loop never stands still.

Run:   python fixed_lock_across_await.py
Next:  python broken_lock_order.py
Real:  https://github.com/agent0ai/agent-zero/issues/1355
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
        self.lock = Lock()  # not asyncio's: the dashboard's thread takes it, too


async def research(agent: str, report: Report, ask: Ask, timeline: Timeline) -> None:
    answer = await ask(f"As the {agent}, name a risk.")
    # No await while it is held: whoever waits for this lock waits for plain lines.
    with report.lock:
        timeline.mark(agent, "holds the lock")
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
    print(timeline, *stuck, sep="\n")
    finished = sum("done" in timeline.of(agent) for agent in AGENTS)
    return verdict(not stuck, f"finished {finished} of {len(AGENTS)} calls")


if __name__ == "__main__":
    start(main)
