"""For test_killed.py: imports once, and forks a run for each line that it reads.

A line is: journal, how many questions, and when the run is killed: after it has sent so
many requests, and so many seconds more. Answers with the run's exit status: -9 if it
was killed, 0 if all questions have an answer.
"""

import asyncio
import os
import signal
import sys
import time

from openai import AsyncOpenAI, DefaultAioHttpClient

from agents import Event, Journal, Limits, Team, openai_ask

LIMITS = Limits(concurrency=8, tries=1)


async def run(base_url: str, journal_file: str, count: int, pipe: int) -> bool:
    """Each request is a byte in the pipe."""

    def notify(event: Event) -> None:
        if event.kind == "sent":
            os.write(pipe, b".")

    http = DefaultAioHttpClient(verify=False, trust_env=False)
    with Journal(journal_file) as journal:
        async with (
            AsyncOpenAI(base_url=base_url, api_key="any", http_client=http) as client,
            Team(
                openai_ask(client, "any", LIMITS),
                LIMITS,
                journal=journal,
                observer=notify,
            ) as team,
        ):
            questions = (f"{journal_file}: question {n}?" for n in range(count))
            return all([outcome.answer async for outcome in team.run(questions)])


def live(base_url: str, journal_file: str, count: int, after: int, more: float) -> int:
    reading, pipe = os.pipe()
    child = os.fork()
    if not child:
        try:
            os._exit(not asyncio.run(run(base_url, journal_file, count, pipe)))
        finally:
            os._exit(1)  # not reached, or it has raised something
    os.close(pipe)
    while after and os.read(reading, 1):
        after -= 1
    if not after:
        time.sleep(more)  # only to be somewhere else each time
        os.kill(child, signal.SIGKILL)  # a zombie at worst: nobody has waited for it
    _, status = os.waitpid(child, 0)
    os.close(reading)
    return os.waitstatus_to_exitcode(status)


def main(base_url: str, warm_up: str) -> None:
    asyncio.run(run(base_url, warm_up, 1, os.open(os.devnull, os.O_WRONLY)))
    print("ready", flush=True)  # all is imported
    for line in sys.stdin:
        journal_file, count, after, more = line.split()
        status = live(base_url, journal_file, int(count), int(after), float(more))
        print(status, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
