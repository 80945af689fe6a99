"""
Five agents share one lock to write one report, and every finding is kept.

Run:   python fixed_fake_lock.py
Next:  python broken_lock_across_await.py
Real:  https://github.com/openai/openai-agents-python/pull/1954
"""

from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Barrier, Lock

from racelab import SyncAsk, Timeline, open_model_sync, start, verdict

AGENTS = ("scout", "writer", "lawyer", "tester", "seller")


class Report:
    def __init__(self) -> None:
        self.findings: tuple[str, ...] = ()
        self._lock = Lock()  # made once, before any agent runs

    def lock(self) -> Lock:
        """Hold it while you change the report."""
        return self._lock


def research(
    agent: str, report: Report, meet: Barrier, ask: SyncAsk, timeline: Timeline
) -> None:
    finding = ask(f"As the {agent}, what did you find?")
    with report.lock():
        findings = report.findings
        timeline.mark(agent, f"read {len(findings)}")
        meet.wait()  # for all that can be in here: the worst moment, on every run
        report.findings = (*findings, finding)


def run(ask: SyncAsk, timeline: Timeline) -> tuple[str, ...]:
    """Let all agents research in threads, and give the findings in the report."""
    report = Report()
    # As many agents can hold a lock at the same time as there are different locks.
    locks = {report.lock() for _ in AGENTS}
    meet = Barrier(len(locks))
    with ThreadPoolExecutor(len(AGENTS)) as pool:
        agents = [(agent, report, meet, ask, timeline) for agent in AGENTS]
        team = [pool.submit(research, *agent) for agent in agents]
        try:
            for done in as_completed(team):
                done.result()
        finally:
            meet.abort()  # nobody waits for an agent that has failed
    return report.findings


def main() -> int:
    timeline = Timeline(*AGENTS)
    with open_model_sync() as ask:
        findings = run(ask, timeline)
    print(timeline)
    kept, wanted = len(findings), len(AGENTS)
    return verdict(kept == wanted, f"kept {kept} of {wanted} findings")


if __name__ == "__main__":
    start(main)
