"""Tasks that outlive their run, vanish, cannot be stopped, or are left half way.

Each pair with the same check: with fakes where the lesson needs no server, else by what
one real server has counted.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import httpx2
import openai
import pytest

from racelab import LocalServer, Settings, Timeline
from racelab.fakes import fake_ask
from racelab.pytest.run_scripts import LoadScript

ORDERS = range(50)  # seeds of the fake model


# A task that is collected may leave its connection behind: Python then warns, or not,
# depending on which of the two it takes first. That belongs to the lesson.
LEAVES_ITS_CONNECTION = pytest.mark.filterwarnings(
    "ignore:unclosed <StreamWriter:ResourceWarning"
)
LOST = pytest.param("broken_fire_and_forget.py", 0, marks=LEAVES_ITS_CONNECTION)


def test_every_stream_goes_on_without_a_reader(
    load_script: LoadScript, model_server: LocalServer, repeats: int
) -> None:
    module = load_script("broken_half_stream.py")
    for _ in range(repeats):
        stats = leave_a_stream(module, model_server, chunk_delay=0.003)
        assert stats.chunks_sent == 28


def leave_a_stream(module: ModuleType, server: LocalServer, chunk_delay: float) -> Any:
    """The server's counts after one run, with chunks in a rhythm of our choice."""
    server.reset(Settings(latency=0, chunk_delay=chunk_delay))

    async def main() -> Any:
        url, key = server.base_url, server.api_key
        async with openai.AsyncOpenAI(base_url=url, api_key=key) as client:
            return await module.run(client, server, Timeline("reader", "server"))

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "answered", "abandoned"),
    [("broken_half_stream.py", 1, 0), ("fixed_half_stream.py", 0, 1)],
)
def test_the_server_knows_if_its_reader_has_left(
    name: str,
    answered: int,
    abandoned: int,
    load_script: LoadScript,
    model_server: LocalServer,
) -> None:
    stats = leave_a_stream(load_script(name), model_server, chunk_delay=0.03)
    assert (stats.answered, stats.abandoned) == (answered, abandoned)


def failing_ask(seed: int, answers: list[str]) -> Callable[[str], Awaitable[str]]:
    """A fake model that fails the scout at once, and lists what it answers."""
    model = fake_ask(seed)

    async def ask(question: str) -> str:
        if "scout" in question:
            raise api_error()
        await asyncio.sleep(0)  # the failure comes first
        answer = await model(question)
        answers.append(answer)
        return answer

    return ask


def api_error() -> openai.APIError:
    return openai.APIError("no", httpx2.Request("POST", "http://local"), body=None)


def kept_and_answered(module: ModuleType, seed: int) -> tuple[int, int]:
    answers: list[str] = []

    async def main() -> int:
        timeline = Timeline("boss", *module.AGENTS)
        kept = await module.run(failing_ask(seed, answers), timeline)
        await module.rest_of_the_program()
        return sum(map(len, kept))

    return asyncio.run(main()), len(answers)


@pytest.mark.parametrize(
    ("name", "both"),
    [
        ("broken_orphans.py", (0, 6)),
        ("fixed_orphans_all_or_nothing.py", (0, 0)),
        ("fixed_orphans_keep_partial.py", (6, 6)),
    ],
)
def test_answers_kept_and_given_in_every_order_tried(
    name: str, both: tuple[int, int], load_script: LoadScript
) -> None:
    module = load_script(name)
    assert {kept_and_answered(module, seed) for seed in ORDERS} == {both}


@pytest.mark.parametrize(
    "name", ["fixed_orphans_all_or_nothing.py", "fixed_orphans_keep_partial.py"]
)
def test_a_bug_is_never_taken_for_an_outcome(
    name: str, load_script: LoadScript
) -> None:
    module = load_script(name)

    async def has_a_bug(question: str) -> str:
        raise TypeError(question)

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(module.run(has_a_bug, Timeline("boss", *module.AGENTS)))
    assert raised.group_contains(TypeError)


@pytest.mark.parametrize(("name", "records"), [LOST, ("fixed_fire_and_forget.py", 3)])
def test_records_are_lost_or_kept_in_every_order_tried(
    name: str, records: int, load_script: LoadScript
) -> None:
    module = load_script(name)
    for seed in ORDERS[:5]:  # a collection takes its time in a process this large
        timeline = Timeline(*module.AGENTS, "log")
        assert len(asyncio.run(module.run(fake_ask(seed), timeline))) == records


async def test_a_task_that_sleeps_is_held_by_the_loop_one_that_waits_is_not() -> None:
    async def waits() -> None:
        await asyncio.Event().wait()

    asyncio.create_task(asyncio.sleep(3600), name="sleeps")  # noqa: RUF006 the point
    asyncio.create_task(waits(), name="waits")  # noqa: RUF006 the point
    await asyncio.sleep(0)
    gc.collect()
    alive = {task.get_name(): task for task in asyncio.all_tasks()}
    assert "sleeps" in alive
    assert "waits" not in alive
    alive["sleeps"].cancel()


class Hang:
    """A fake model: its call number `hangs` never ends, and its `failures` fail."""

    def __init__(self, hangs: int = 0, failures: tuple[int, ...] = ()) -> None:
        self.calls = 0
        self.hangs, self.failures = hangs, failures

    async def __call__(self, question: str) -> str:
        self.calls += 1
        if self.calls == self.hangs:
            await asyncio.Event().wait()
        if self.calls in self.failures:
            raise api_error()
        return f"On {question!r}: yes."


@pytest.mark.parametrize(
    ("name", "calls", "sees"),
    [
        ("broken_swallowed_cancel.py", 6, "sees no timeout"),
        ("fixed_swallowed_cancel.py", 2, "sees the timeout"),
    ],
)
def test_calls_when_the_deadline_is_over_at_once(
    name: str, calls: int, sees: str, load_script: LoadScript
) -> None:
    module, ask = load_script(name), Hang(hangs=2)
    vars(module)["DEADLINE"] = 0
    timeline = Timeline("scout", "boss")
    asyncio.run(module.run(ask, timeline))
    assert (ask.calls, timeline.of("boss")) == (calls, [sees])


async def test_the_fixed_loop_still_tries_again(load_script: LoadScript) -> None:
    module, ask = load_script("fixed_swallowed_cancel.py"), Hang(failures=(1, 2))
    assert "yes" in await module.insist("Well?", ask, Timeline("scout"))
    assert ask.calls == module.TRIES


async def test_the_last_failure_is_the_callers(load_script: LoadScript) -> None:
    module, ask = load_script("fixed_swallowed_cancel.py"), Hang(failures=(1, 2, 3))
    with pytest.raises(openai.APIError):
        await module.insist("Well?", ask, Timeline("scout"))
    assert ask.calls == module.TRIES


@pytest.mark.parametrize("seed", ORDERS)
def test_the_first_answer_stops_all_others(seed: int, load_script: LoadScript) -> None:
    module = load_script("solutions/first_answer.py")
    answers: list[str] = []

    async def main() -> tuple[int, int]:
        ask, timeline = listing_ask(seed, answers), Timeline(*module.AGENTS)
        kept = await module.run(ask, timeline)
        return len(kept), len(asyncio.all_tasks())

    kept, tasks = asyncio.run(main())
    assert kept == len(answers) >= 1  # several may come in the same turn of the loop
    assert tasks == 1  # ours


def listing_ask(seed: int, answers: list[str]) -> Callable[[str], Awaitable[str]]:
    model = fake_ask(seed)

    async def ask(question: str) -> str:
        answer = await model(question)
        answers.append(answer)
        return answer

    return ask
