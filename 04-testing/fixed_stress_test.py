"""
The explorer tries one order of answers after another, and finds the lost finding.

Run:   python fixed_stress_test.py
Next:  python every_order.py
Real:  https://github.com/python-trio/trio/issues/239
"""

import asyncio
from dataclasses import dataclass, field

from racelab import Ask, Timeline, start, verdict
from racelab.explore import explore

AGENTS = ("editor", "scout", "critic")


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
    # Each order once, until one fails.
    report = explore(run, holds, agents=AGENTS)
    return not report.holds, report.runs, str(report)


def main() -> int:
    found, runs, seen = search()
    print(seen)
    return verdict(found, f"found {int(found)} of 1 bugs in {runs} runs")


if __name__ == "__main__":
    start(main)
