"""
Four agents in threads send to the one owner of a record: all is kept, and whole.

Run:   python fixed_team_state_queue.py
Next:  python benchmark_team_state.py
Real:  https://github.com/dgtlmoon/changedetection.io/issues/4275
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import Queue
from threading import Thread

from racelab import SyncAsk, Timeline, ask_together, open_model_sync, start, verdict

AGENTS = ("critic", "lawyer", "tester", "editor")
Notes = tuple[tuple[str, str], ...]  # agent, text


@dataclass
class Record:
    findings: Notes = ()
    checks: Notes = ()  # one of each finding
    words: int = 0  # in all of them

    @property
    def status(self) -> str:
        """Whole: each finding has its check, and the total agrees with the parts."""
        pairs = dict(self.findings).keys() == dict(self.checks).keys()
        words = sum(len(text.split()) for _, text in self.findings + self.checks)
        return "whole" if pairs and words == self.words else "torn"


class Team:
    def __init__(self) -> None:
        self.record = Record()  # only the owner changes it
        self.inbox: Queue[tuple[str, str, str] | None] = Queue(maxsize=2)

    def own(self, timeline: Timeline) -> None:
        """The owner's thread: take one message after another, until None."""
        for agent, finding, check in iter(self.inbox.get, None):
            old = self.record
            timeline.mark(agent, f"read {len(old.findings)}")
            findings = (*old.findings, (agent, finding))
            checks = (*old.checks, (agent, check))
            words = old.words + len(f"{finding} {check}".split())
            self.record = Record(findings, checks, words)  # all at once
            timeline.mark(agent, f"wrote {len(findings)}")

    def look(self) -> Record:
        """What a reader sees now: a copy of the last whole record."""
        return replace(self.record)


def research(agent: str, team: Team, ask: SyncAsk, timeline: Timeline) -> None:
    finding = ask(f"As the {agent}, name a risk.")
    check = ask(f"Check this: {finding}")
    # A bounded queue: while it is full, who sends waits (backpressure).
    team.inbox.put((agent, finding, check))


def run(ask: SyncAsk, timeline: Timeline) -> list[Record]:
    """Let all agents research in threads; give what the dashboard saw, the end last."""
    team, seen = Team(), []

    def dashboard() -> None:
        seen.append(team.look())
        timeline.mark("dashboard", f"{len(seen[-1].findings)}, {seen[-1].status}")

    ask = ask_together(ask, len(AGENTS), watch=dashboard)
    owner = Thread(target=team.own, args=[timeline])
    owner.start()
    try:
        with ThreadPoolExecutor(len(AGENTS)) as pool:
            list(pool.map(lambda agent: research(agent, team, ask, timeline), AGENTS))
    finally:
        team.inbox.put(None)
        owner.join()
    dashboard()
    return seen


def main() -> int:
    timeline = Timeline(*AGENTS, "dashboard")
    with open_model_sync() as ask:
        seen = run(ask, timeline)
    print(timeline)
    kept = len(seen[-1].findings)
    torn = sum(record.status == "torn" for record in seen)
    says = f"kept {kept} of {len(AGENTS)} findings, {torn} of {len(seen)} looks torn"
    return verdict(kept == len(AGENTS) and not torn, says)


if __name__ == "__main__":
    start(main)
