"""Tasks that outlive their run, vanish, cannot be stopped, or are left half way.

Each pair with the same check, with fakes where the lesson needs no server.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from types import ModuleType

import httpx2
import openai
import pytest

from racelab import Timeline
from racelab.fakes import fake_ask
from racelab.pytest.run_scripts import LoadScript

ORDERS = range(50)  # seeds of the fake model


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


async def test_loop_holds_a_sleeping_task_only() -> None:
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


class Fails:
    """A fake model whose calls of these numbers fail."""

    def __init__(self, *failures: int) -> None:
        self.calls, self.failures = 0, failures

    async def __call__(self, question: str) -> str:
        self.calls += 1
        if self.calls in self.failures:
            raise api_error()
        return f"On {question!r}: yes."


async def test_the_fixed_loop_still_tries_again(load_script: LoadScript) -> None:
    module, ask = load_script("fixed_swallowed_cancel.py"), Fails(1, 2)
    assert "yes" in await module.insist("Well?", ask, Timeline("scout"))
    assert ask.calls == module.TRIES


async def test_the_last_failure_is_the_callers(load_script: LoadScript) -> None:
    module, ask = load_script("fixed_swallowed_cancel.py"), Fails(1, 2, 3)
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
