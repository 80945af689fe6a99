"""
Five agents share one report, and every finding is kept.

Run:   python fixed_agents.py
Next:  python broken_double_spend.py
Real:  https://github.com/google/adk-python/issues/5244
"""

import asyncio
from dataclasses import dataclass

from racelab import Ask, Timeline, open_model, start, verdict

AGENTS = ("scout", "critic", "lawyer", "tester", "seller")


@dataclass
class Report:
    findings: tuple[str, ...] = ()


async def research(agent: str, report: Report, ask: Ask, timeline: Timeline) -> None:
    answer = await ask(f"You are the {agent}. What could go wrong?")
    # From here to the write there is no await: nobody else can run in between.
    findings = report.findings
    timeline.mark(agent, f"read {len(findings)}")
    report.findings = (*findings, answer)
    timeline.mark(agent, f"wrote {len(report.findings)}")


async def run(ask: Ask, timeline: Timeline) -> tuple[str, ...]:
    """Let all agents research at the same time, and give the findings in the report."""
    report = Report()
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
