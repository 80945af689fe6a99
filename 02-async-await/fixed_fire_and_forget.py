"""
Three agents send their answers to the audit log, and every record is written.

Run:   python fixed_fire_and_forget.py
Next:  python broken_swallowed_cancel.py
Real:  https://github.com/BerriAI/litellm/issues/5559
"""

import asyncio
import gc
from asyncio import StreamReader, StreamWriter
from contextlib import closing, suppress
from functools import partial

from racelab import Ask, Timeline, local_server, open_model, start, verdict

AGENTS = ("writer", "lawyer", "seller")
BACKGROUND: set[asyncio.Task[None]] = set()  # tasks that nobody waits for


async def keep_log(
    log: list[str],
    meet: asyncio.Barrier,
    timeline: Timeline,
    reader: StreamReader,
    writer: StreamWriter,
) -> None:
    """Serve one client: it says hello, waits for the go-ahead, and sends a record."""
    with closing(writer), suppress(ConnectionError):  # the client may be gone
        await reader.readline()
        await meet.wait()  # all clients have said hello
        await meet.wait()  # `run` has collected the garbage
        writer.write(b"go ahead\n")
        async for record in reader:
            log.append(record.decode())
            timeline.mark("log", f"has {len(log)}")


async def audit(agent: str, answer: str, port: int, timeline: Timeline) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with closing(writer):
        writer.write(b"hello\n")
        timeline.mark(agent, "audit waits")
        # Who holds this task now? `BACKGROUND`, until it is done.
        await reader.readline()
        writer.write(f"{agent}: {answer}\n".encode())


async def work(agent: str, ask: Ask, port: int, timeline: Timeline) -> None:
    answer = await ask(f"As the {agent}, find a risk of our launch.")
    task = asyncio.create_task(audit(agent, answer, port, timeline))
    BACKGROUND.add(task)
    task.add_done_callback(BACKGROUND.discard)


async def run(ask: Ask, timeline: Timeline) -> list[str]:
    """Let all agents work at the same time; give the records in the audit log."""
    log: list[str] = []
    meet = asyncio.Barrier(len(AGENTS) + 1)  # one client for each agent, and `run`
    serve = partial(keep_log, log, meet, timeline)
    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(*(work(agent, ask, port, timeline) for agent in AGENTS))
        await meet.wait()
        gc.collect()  # Python also does this by itself, and you do not choose when
        await meet.wait()
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
    return log


async def main() -> int:
    timeline = Timeline(*AGENTS, "log")
    with local_server(latency=0.3) as server:
        async with open_model(server) as ask:
            records = await run(ask, timeline)
    print(timeline)
    wrote, wanted = len(records), len(AGENTS)
    return verdict(wrote == wanted, f"wrote {wrote} of {wanted} records")


if __name__ == "__main__":
    start(main)
