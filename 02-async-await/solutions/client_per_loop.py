"""
Exercise 3: each loop has a client of its own, and no paid answer is lost.

Run:   python solutions/client_per_loop.py
Next:  benchmark_sync_vs_async.py
"""

import asyncio

from openai import AsyncOpenAI

from racelab import LocalServer, local_server, start, table, verdict

TOPICS = ("price", "date", "name", "rivals", "risks")


async def ask(topic: str, server: LocalServer) -> str:
    url, key = server.base_url, server.api_key
    # Made in this loop, and closed before the loop is.
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        completion = await client.chat.completions.create(
            model="gpt-5.4-mini",
            messages=[{"role": "user", "content": f"What about the {topic}?"}],
        )
    return completion.choices[0].message.content or ""


def run(server: LocalServer) -> tuple[dict[str, str], dict[str, str]]:
    """Ask from code that is not async; give the answers, and why others are lost."""
    answers, lost = {}, {}
    for topic in TOPICS:
        try:
            answers[topic] = asyncio.run(ask(topic, server))
        except RuntimeError as error:
            lost[topic] = str(error)
    return answers, lost


def main() -> int:
    with local_server(spread=0) as server:
        answers, lost = run(server)
        stats = server.stats()
    came_back = dict.fromkeys(answers, "an answer") | lost
    rows = ((topic, came_back[topic]) for topic in TOPICS)
    print(table(("question", "what came back"), *rows))
    got, paid = len(answers), stats.answered + stats.abandoned
    return verdict(got == paid == len(TOPICS), f"got {got} of {paid} answers paid for")


if __name__ == "__main__":
    start(main)
