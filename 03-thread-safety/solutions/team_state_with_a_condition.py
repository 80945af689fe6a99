"""
Variant: a dashboard that sleeps until the record has changed, and sees it whole.

Run:   python solutions/team_state_with_a_condition.py
Next:  broken_counter.py
Real:  https://github.com/dgtlmoon/changedetection.io/issues/4275
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Condition, Thread

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
        self.changed = Condition()  # an RLock, and who waits for news of it

    def look(self) -> Record:
        """What a reader sees now: a copy, field by field."""
        with self.changed:
            return replace(self.record)


def research(agent: str, team: Team, ask: SyncAsk, timeline: Timeline) -> None:
    finding = ask(f"As the {agent}, name a risk.")
    check = ask(f"Check this: {finding}")
    # Nobody waits for a model in here, and nobody else is in here, or looks.
    with team.changed:
        old = team.look()
        timeline.mark(agent, f"read {len(old.findings)}")
        team.record.findings = (*old.findings, (agent, finding))
        team.record.checks = (*old.checks, (agent, check))
        team.record.words = old.words + len(f"{finding} {check}".split())
        timeline.mark(agent, f"wrote {len(team.record.findings)}")
        team.changed.notify_all()


def watch(team: Team, news: SimpleQueue[Record | None], timeline: Timeline) -> None:
    """The dashboard: sleep until there is something new, and send what there is."""
    known = 0
    while known < len(AGENTS):
        with team.changed:
            while len(team.record.findings) == known:
                # `wait` gives the lock back, and has it again afterwards.
                team.changed.wait()
            record = team.look()
        known = len(record.findings)
        timeline.mark("dashboard", f"{known}, {record.status}")
        news.put(record)
    news.put(None)


def run(ask: SyncAsk, timeline: Timeline) -> list[Record]:
    """Let all agents research in threads; give what the dashboard saw, the end last."""
    team, news = Team(), SimpleQueue[Record | None]()
    Thread(target=watch, args=[team, news, timeline], daemon=True).start()
    ask = ask_together(ask, len(AGENTS))
    with ThreadPoolExecutor(len(AGENTS)) as pool:
        list(pool.map(lambda agent: research(agent, team, ask, timeline), AGENTS))
    return list(iter(news.get, None))


def main() -> int:
    timeline = Timeline(*AGENTS, "dashboard")
    with open_model_sync() as ask:
        seen = run(ask, timeline)
    print(timeline)
    kept = len(seen[-1].findings)
    torn = sum(record.status == "torn" for record in seen)
    says = f"kept {kept} of {len(AGENTS)} findings, {torn} looks torn"
    return verdict(kept == len(AGENTS) and not torn, says)


if __name__ == "__main__":
    start(main)
