"""
A thousand stress runs pass over a lost finding that needs one order in 340.

Run:   python broken_stress_test.py
Next:  python fixed_stress_test.py
Real:  https://github.com/python-trio/trio/issues/239
"""

import asyncio
from dataclasses import dataclass, field

from racelab import Ask, Timeline, start, verdict
from racelab.fakes import fake_ask

AGENTS = ("editor", "scout", "critic")
RUNS = 1000


@dataclass
class Report:
    findings: tuple[str, ...] = ()
    busy: set[str] = field(default_factory=set)


async def research(agent: str, report: Report, ask: Ask, timeline: Timeline) -> None:
    await ask(f"You are the {agent}. What do you need?")
    report.busy.add(agent)
    timeline.mark(agent, "begins")
    for step in ("Search.", "Read."):
        await ask(f"You are the {agent}. {step}")
    finding = await ask(f"You are the {agent}. What could go wrong?")
    report.findings = (*report.findings, finding)
    report.busy.remove(agent)
    timeline.mark(agent, f"saves #{len(report.findings)}")


async def edit(report: Report, ask: Ask, timeline: Timeline) -> None:
    """Sort the findings, unless somebody is busy with them."""
    for step in ("Choose a title.", "Choose a style.", "Choose a layout."):
        await ask(f"You are the editor. {step}")
    findings, quiet = report.findings, not report.busy
    timeline.mark("editor", f"reads {len(findings)}")
    await ask("You are the editor. How do we sort?")
    if quiet and not report.busy:  # the bug: somebody may have come and gone
        report.findings = tuple(sorted(findings))
        timeline.mark("editor", f"writes {len(findings)}")


async def run(ask: Ask, timeline: Timeline) -> tuple[str, ...]:
    report = Report()
    team = (research(agent, report, ask, timeline) for agent in AGENTS[1:])
    await asyncio.gather(edit(report, ask, timeline), *team)
    return report.findings


def holds(findings: tuple[str, ...]) -> bool:
    return len(findings) == len(AGENTS[1:])


def search() -> tuple[bool, int, str]:
    """The test: has it found the bug, after how many runs, and what has it seen?"""
    for seed in range(RUNS):
        timeline = Timeline(*AGENTS)
        # Each answer comes after a random time: much the same orders, over and over.
        if not holds(asyncio.run(run(fake_ask(seed), timeline))):
            return True, seed + 1, str(timeline)
    return False, RUNS, f"no run fails; this is the last:\n{timeline}"


def main() -> int:
    found, runs, seen = search()
    print(seen)
    return verdict(found, f"found {int(found)} of 1 bugs in {runs} runs")


if __name__ == "__main__":
    start(main)
