"""
Agents in threads put findings into an asyncio.Queue, and the loop sleeps on.

Run:   python broken_wrong_loop.py
Next:  python fixed_wrong_loop.py
Real:  https://github.com/griptape-ai/griptape-nodes-engine/pull/5466
"""

import asyncio

from racelab import (
    SyncAsk,
    Timeline,
    Watchdog,
    local_server,
    open_model_sync,
    start,
    verdict,
)

AGENTS = ("scout", "critic", "writer")


class Inbox:
    """What threads send, and a task of `loop` receives."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.queue: asyncio.Queue[str] = asyncio.Queue()

    def send(self, finding: str) -> None:
        # A thread does this to the loop of another one: nothing wakes that loop.
        self.queue.put_nowait(finding)


def research(agent: str, inbox: Inbox, ask: SyncAsk, timeline: Timeline) -> None:
    finding = ask(f"What would the {agent} change?")
    timeline.mark(agent, "sends")
    inbox.send(finding)


async def collect(inbox: Inbox, findings: list[str], timeline: Timeline) -> None:
    while len(findings) < len(AGENTS):
        findings.append(await inbox.queue.get())
        timeline.mark("boss", f"has {len(findings)}")


def run(ask: SyncAsk, timeline: Timeline) -> tuple[int, list[str]]:
    """Give how many findings were received, and who stands where when nobody moves."""
    findings: list[str] = []
    watchdog, loop = Watchdog(lambda: str(timeline)), asyncio.new_event_loop()
    inbox = Inbox(loop)
    boss = loop.create_task(collect(inbox, findings, timeline))
    watchdog.add("boss", boss)
    watchdog.start("loop", loop.run_until_complete, boss)
    for agent in AGENTS:
        watchdog.start(agent, research, agent, inbox, ask, timeline)
    stuck = watchdog.watch()
    received = len(findings)
    loop.call_soon_threadsafe(lambda: None)  # whatever wakes the loop delivers all
    watchdog.watch()
    loop.close()
    return received, stuck


def main() -> int:
    timeline = Timeline(*AGENTS, "boss")
    # The local server answers long before the watchdog's patience ends.
    with local_server() as server, open_model_sync(server) as ask:
        received, stuck = run(ask, timeline)
    print(timeline, *stuck, sep="\n")
    wanted = len(AGENTS)
    return verdict(
        received == wanted, f"received {received} of {wanted} findings in time"
    )


if __name__ == "__main__":
    start(main)
