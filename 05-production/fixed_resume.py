"""
A run that records each answer at once is killed, and pays for none of them again.

Run:   python fixed_resume.py
Next:  python broken_stampede.py
Real:  https://github.com/langchain-ai/langgraph/issues/7780
"""

import asyncio
import os
import subprocess
import sys
from functools import partial
from tempfile import TemporaryDirectory

from openai import AsyncOpenAI

from agents import Answer, Journal
from racelab import Ask, local_server, start, table, verdict

AGENTS = ("scout", "critic", "lawyer", "tester", "seller")


async def run(ask: Ask, journal: Journal) -> None:
    """Let all agents ask at the same time, and then the editor."""

    async def answer(question: str) -> str:
        if known := journal.lookup(question):
            return known.text  # an earlier run has paid for it
        number = journal.start(question)
        text = await ask(question)
        # Recorded before anybody uses it, whatever happens to this run.
        journal.finish(question, number, "answered", Answer(text))
        return text

    questions = [f"As the {agent}, name a risk." for agent in AGENTS]
    findings = await asyncio.gather(*map(answer, questions))
    await answer(f"Editor, sum up: {findings}")


async def worker(url: str, file: str, fate: str) -> int:
    """What runs in a process of its own. Who dies does so before the editor asks."""
    async with AsyncOpenAI(base_url=url, api_key="local", max_retries=0) as client:

        async def ask(question: str) -> str:
            if fate == "dies" and question.startswith("Editor"):
                os._exit(9)  # as after kill -9: no `finally`, no farewell
            reply = await client.chat.completions.create(
                model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
            )
            return reply.choices[0].message.content or ""

        with Journal(file) as journal:
            await run(ask, journal)
    return 0


def main() -> int:
    rows: list[tuple[object, ...]] = [("worker", "exit status", "answers paid so far")]
    with TemporaryDirectory() as folder, local_server() as server:
        work = [sys.executable, __file__, server.base_url, f"{folder}/run.db"]
        for fate, status in (("dies", 9), ("lives", 0)):
            if subprocess.call([*work, fate]) != status:
                raise ChildProcessError(f"a worker did not end with {status}")
            rows.append((fate, status, server.stats().answered))
        answers = server.stats().answers
    print(table(*rows))
    twice = sum(times > 1 for times in answers.values())
    return verdict(twice == 0, f"paid twice for {twice} of {len(answers)} answers")


if __name__ == "__main__":
    start(partial(worker, *sys.argv[1:]) if sys.argv[1:] else main)
