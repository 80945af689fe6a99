"""
Four agents in threads share one record: three findings vanish, and the rest is torn.

Run:   python broken_team_state.py
Next:  python fixed_team_state_lock.py
Real:  https://github.com/dgtlmoon/changedetection.io/issues/4275
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

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
        self.record = Record()

    def look(self) -> Record:
        """What a reader sees now: a copy, field by field."""
        return replace(self.record)


def research(agent: str, team: Team, ask: SyncAsk, timeline: Timeline) -> None:
    old = team.look()
    timeline.mark(agent, f"read {len(old.findings)}")
    finding = ask(f"As the {agent}, name a risk.")
    # All agents have read by now: each writes "what I read, and mine".
    team.record.findings = (*old.findings, (agent, finding))
    timeline.mark(agent, f"wrote {len(team.record.findings)}")
    check = ask(f"Check this: {finding}")
    # Until now, readers saw a finding without its check.
    team.record.checks = (*old.checks, (agent, check))
    team.record.words = old.words + len(f"{finding} {check}".split())
    timeline.mark(agent, "checked")


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
