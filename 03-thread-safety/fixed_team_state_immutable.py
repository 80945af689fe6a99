"""
Four agents in threads replace one frozen record: all is kept, and whole.

Run:   python fixed_team_state_immutable.py
Next:  python fixed_team_state_queue.py
Real:  https://github.com/dgtlmoon/changedetection.io/issues/4275
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from racelab import SyncAsk, Timeline, ask_together, open_model_sync, start, verdict

AGENTS = ("critic", "lawyer", "tester", "editor")
Notes = tuple[tuple[str, str], ...]  # agent, text


@dataclass(frozen=True)
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

    def plus(self, agent: str, finding: str, check: str) -> "Record":
        """The reducer: the next record. This one stays as it is."""
        findings = (*self.findings, (agent, finding))
        checks = (*self.checks, (agent, check))
        words = self.words + len(f"{finding} {check}".split())
        return Record(findings, checks, words)


class Team:
    def __init__(self) -> None:
        self.record = Record()
        self.lock = Lock()  # for writers

    def look(self) -> Record:
        """What a reader sees now: one reference, to a whole record."""
        return self.record


def research(agent: str, team: Team, ask: SyncAsk, timeline: Timeline) -> None:
    finding = ask(f"As the {agent}, name a risk.")
    check = ask(f"Check this: {finding}")
    # One writer at a time goes on from the latest record, and no model is asked.
    with team.lock:
        timeline.mark(agent, f"read {len(team.record.findings)}")
        team.record = team.record.plus(agent, finding, check)
        timeline.mark(agent, f"wrote {len(team.record.findings)}")


def run(ask: SyncAsk, timeline: Timeline) -> list[Record]:
    """Let all agents research in threads; give what the dashboard saw, the end last."""
    team, seen = Team(), []

    def dashboard() -> None:
        seen.append(team.look())
        timeline.mark("dashboard", f"{len(seen[-1].findings)}, {seen[-1].status}")

    ask = ask_together(ask, len(AGENTS), watch=dashboard)
    with ThreadPoolExecutor(len(AGENTS)) as pool:
        list(pool.map(lambda agent: research(agent, team, ask, timeline), AGENTS))
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
