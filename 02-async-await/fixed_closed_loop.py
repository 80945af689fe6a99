"""
One client in five runs of one loop: all five answers that are paid for arrive.

Run:   python fixed_closed_loop.py
Next:  python broken_orphans.py
Real:  https://github.com/LearningCircuit/local-deep-research/issues/6293
"""

import asyncio

from openai import AsyncOpenAI

from racelab import local_server, start, table, verdict

TOPICS = ("price", "date", "name", "rivals", "risks")


async def ask(topic: str, client: AsyncOpenAI) -> str:
    completion = await client.chat.completions.create(
        model="gpt-5.4-mini",
        messages=[{"role": "user", "content": f"What about the {topic}?"}],
    )
    return completion.choices[0].message.content or ""


def run(client: AsyncOpenAI) -> tuple[dict[str, str], dict[str, str]]:
    """Ask from code that is not async; give the answers, and why others are lost."""
    answers, lost = {}, {}
    with asyncio.Runner() as runner:
        for topic in TOPICS:
            try:
                # One loop for all questions: the connection goes on with it.
                answers[topic] = runner.run(ask(topic, client))
            except (RuntimeError, AttributeError) as error:  # the latter on Windows
                lost[topic] = str(error)
        runner.run(client.close())
    return answers, lost


def main() -> int:
    with local_server(spread=0) as server:
        url, key = server.base_url, server.api_key
        client = AsyncOpenAI(base_url=url, api_key=key, max_retries=0)
        answers, lost = run(client)
        stats = server.stats()
    came_back = dict.fromkeys(answers, "an answer") | lost
    rows = ((topic, came_back[topic]) for topic in TOPICS)
    print(table(("question", "what came back"), *rows))
    got, paid = len(answers), stats.answered + stats.abandoned
    return verdict(got == paid == len(TOPICS), f"got {got} of {paid} answers paid for")


if __name__ == "__main__":
    start(main)
