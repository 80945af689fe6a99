"""
Exercise 1: a lock keeps all findings, and lets the agents work only one at a time.

Run:   python solutions/agents_with_a_lock.py
Next:  exercise 2
Real:  https://github.com/google/adk-python/issues/5244
"""

import asyncio
from dataclasses import dataclass

from racelab import Ask, Timeline, open_model, start, verdict

AGENTS = ("scout", "critic", "lawyer", "tester", "seller")


@dataclass
class Report:
    lock: asyncio.Lock
    findings: tuple[str, ...] = ()


async def research(agent: str, report: Report, ask: Ask, timeline: Timeline) -> None:
    async with report.lock:
        findings = report.findings
        timeline.mark(agent, f"read {len(findings)}")
        answer = await ask(f"You are the {agent}. What could go wrong?")
        # Nobody else could write meanwhile, and nobody else could ask.
        report.findings = (*findings, answer)
        timeline.mark(agent, f"wrote {len(report.findings)}")


async def run(ask: Ask, timeline: Timeline) -> tuple[str, ...]:
    """Let all agents research at the same time, and give the findings in the report."""
    report = Report(asyncio.Lock())
    team = (research(agent, report, ask, timeline) for agent in AGENTS)
    await asyncio.gather(*team)
    return report.findings


async def main() -> int:
    timeline = Timeline(*AGENTS)
    async with open_model() as ask:
        findings = await run(ask, timeline)
    print(timeline)
    kept, wanted = len(findings), len(AGENTS)
    return verdict(kept == wanted, f"kept {kept} of {wanted} findings")


if __name__ == "__main__":
    start(main)
