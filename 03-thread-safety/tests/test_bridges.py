"""From the loop to a thread and back: context, the first use, time-outs, loops.

Each pair with the same check, with fakes that are exact.
"""

import asyncio
import contextvars
import functools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest

from racelab import LocalServer, Timeline
from racelab.fakes import fake_ask
from racelab.pytest.run_scripts import LoadScript, RunScript

ORDERS = range(50)  # seeds of the fake model


# lost_context


def saved_right(module: ModuleType, seed: int) -> int:
    timeline = Timeline(*module.AGENTS)
    log = asyncio.run(module.run(fake_ask(seed), timeline))
    assert sorted(agent for agent, _ in log) == sorted(module.AGENTS)
    for agent in module.AGENTS:  # the task itself has always known its run
        assert timeline.of(agent)[0] == f"is in {agent}-1"
    return sum(run == f"{agent}-1" for agent, run in log)


@pytest.mark.usefixtures("switch_intervals")
@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("broken_lost_context.py", 0),
        ("fixed_lost_context.py", 4),
        ("solutions/lost_context_by_hand.py", 4),
    ],
)
def test_saved_under_the_right_run_in_every_order_tried(
    name: str, right: int, load_script: LoadScript
) -> None:
    module = load_script(name)
    assert {saved_right(module, seed) for seed in ORDERS} == {right}


RUN: contextvars.ContextVar[str] = contextvars.ContextVar("run", default="no run")


def in_a_run(run: str, function: Callable[[], Any]) -> Any:
    """What `function` gives, called where RUN is `run`."""

    def call() -> Any:
        RUN.set(run)
        return function()

    return contextvars.Context().run(call)


def test_pool_thread_never_has_the_submitters_context() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(str).result()  # the thread starts here, in no run
        seen = [in_a_run(run, lambda: pool.submit(RUN.get).result()) for run in "ab"]
    assert seen == ["no run", "no run"]


@pytest.mark.skipif(
    not getattr(sys.flags, "thread_inherit_context", 0),
    reason="threads start with an empty context on this Python",
)
def test_inherited_context_is_the_first_run() -> None:
    with ThreadPoolExecutor(1) as pool:
        seen = [in_a_run(run, lambda: pool.submit(RUN.get).result()) for run in "ab"]
    assert seen == ["a", "a"]


@pytest.mark.skipif(
    bool(getattr(sys.flags, "thread_inherit_context", 0)),
    reason="threads start with a copy of the context on this Python",
)
def test_without_inheritance_the_context_is_empty() -> None:
    with ThreadPoolExecutor(1) as pool:
        seen = [in_a_run(run, lambda: pool.submit(RUN.get).result()) for run in "ab"]
    assert seen == ["no run", "no run"]


def test_two_threads_need_two_copies_of_a_context() -> None:
    context = in_a_run("a", contextvars.copy_context)
    inside, leave = threading.Event(), threading.Event()

    def stay() -> str:
        inside.set()
        assert leave.wait(600)
        return RUN.get()

    with ThreadPoolExecutor(1) as pool:
        stays = pool.submit(context.run, stay)
        try:
            assert inside.wait(600)
            with pytest.raises(RuntimeError, match="cannot enter context"):
                context.run(RUN.get)
            assert context.copy().run(RUN.get) == "a"
        finally:
            leave.set()
        assert stays.result() == "a"


# lazy_init


@pytest.mark.parametrize("seed", ORDERS)
def test_a_stored_task_opens_once_in_every_order_tried(
    seed: int, load_script: LoadScript
) -> None:
    module = load_script("solutions/lazy_init_with_a_task.py")
    history, opened = asyncio.run(module.run(fake_ask(seed), Timeline(*module.AGENTS)))
    assert (len(history) - 1, opened) == (5, 1)


class FailsOnce:
    """A fake model: the first briefing fails."""

    def __init__(self) -> None:
        self.briefings = 0

    async def __call__(self, question: str) -> str:
        await asyncio.sleep(0)
        if "Brief" in question:
            self.briefings += 1
            if self.briefings == 1:
                raise ConnectionError(question)
        return question


@pytest.mark.parametrize(
    ("name", "failures", "briefings"),
    [
        ("fixed_lazy_init.py", 1, 2),  # the next in line tries again
        ("solutions/lazy_init_with_a_task.py", 5, 1),  # all wait for the one task
    ],
)
async def test_how_many_a_failed_opening_fails(
    name: str, failures: int, briefings: int, load_script: LoadScript
) -> None:
    module, ask = load_script(name), FailsOnce()
    session, timeline = module.Session(), Timeline(*module.AGENTS)
    team = (session.open(agent, ask, timeline) for agent in module.AGENTS)
    opened = await asyncio.gather(*team, return_exceptions=True)
    assert sum(isinstance(result, ConnectionError) for result in opened) == failures
    assert ask.briefings == briefings
    await session.open(module.AGENTS[0], ask, timeline)  # and a later one succeeds
    assert (session.opened, ask.briefings) == (1, 2)


@pytest.mark.parametrize(
    ("name", "briefings"),
    [("fixed_lazy_init.py", 2), ("solutions/lazy_init_with_a_task.py", 1)],
)
async def test_who_is_cancelled_while_it_opens_stops_nobody_else(
    name: str, briefings: int, load_script: LoadScript
) -> None:
    module, asked, answer = load_script(name), [], asyncio.Event()

    async def ask(question: str) -> str:
        asked.append(question)
        await answer.wait()
        return question

    session, timeline = module.Session(), Timeline(*module.AGENTS)
    first, *others = [
        asyncio.create_task(session.open(agent, ask, timeline))
        for agent in module.AGENTS
    ]
    await asyncio.sleep(0)  # all of them have begun,
    await asyncio.sleep(0)  # and the briefing is asked for
    assert len(asked) == 1
    first.cancel()
    answer.set()
    histories = await asyncio.gather(*others)
    assert first.cancelled()
    assert all(history is histories[0] for history in histories)
    assert (session.opened, len(asked)) == (1, briefings)


async def test_functools_cache_breaks_an_async_function() -> None:
    @functools.cache
    def brief() -> Any:
        return asyncio.sleep(0, "briefing")

    assert await brief() == "briefing"
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        await brief()


# tool_timeout


class TimesOut(Timeline):
    """The first try times out as soon as its thread runs, however long that takes."""

    def __init__(self, *agents: str) -> None:
        super().__init__(*agents)
        self.loop = asyncio.get_running_loop()
        self.timeouts: list[asyncio.Timeout] = []

    def timeout(self, _: float) -> asyncio.Timeout:
        self.timeouts.append(asyncio.Timeout(None))
        return self.timeouts[-1]

    def mark(self, agent: str, what: str) -> None:
        super().mark(agent, what)
        if (agent, what) == ("try 1", "sends"):
            self.loop.call_soon_threadsafe(self.timeouts[0].reschedule, 0)


async def charged(module: ModuleType, patch: pytest.MonkeyPatch) -> int:
    timeline = TimesOut("buyer", "try 1", "try 2")
    patch.setattr(asyncio, "timeout", timeline.timeout)
    charges = await module.run(timeline)
    assert timeline.of("buyer") == ["gives up try 1", "is done"]
    last = 2 if module.__name__.endswith("broken_tool_timeout") else 1
    assert timeline.of("try 1") == ["sends", f"has receipt {last}"]
    assert timeline.of("try 2") == ["sends", "has receipt 1"]
    return len(charges)


@pytest.mark.parametrize(
    ("name", "charges"), [("broken_tool_timeout.py", 2), ("fixed_tool_timeout.py", 1)]
)
def test_charges_for_one_order_in_every_run(
    name: str,
    charges: int,
    load_script: LoadScript,
    monkeypatch: pytest.MonkeyPatch,
    switch_intervals: range,
) -> None:
    module = load_script(name)
    with monkeypatch.context() as patch:
        made = [asyncio.run(charged(module, patch)) for _ in switch_intervals]
    assert made == [charges] * len(switch_intervals)
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("asyncio_") for name in names)  # all have ended


def test_one_key_is_charged_once_by_eight_threads(load_script: LoadScript) -> None:
    bank, meet = load_script("fixed_tool_timeout.py").Bank(), threading.Barrier(8)

    def charge(_: int) -> str:
        meet.wait()
        return bank.charge("order-17")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(charge, range(8))) == {"receipt 1"}
    assert bank.charges == ["order-17"]
    assert bank.charge("order-18") == "receipt 2"  # another order is another charge


def test_what_a_thread_has_begun_cannot_be_cancelled() -> None:
    begun, end = threading.Event(), threading.Event()

    def tool() -> bool:
        begun.set()
        return end.wait(600)

    with ThreadPoolExecutor(1) as pool:
        running, waiting = pool.submit(tool), pool.submit(tool)
        assert begun.wait(600)
        assert not running.cancel()
        assert waiting.cancel()  # no thread has taken it yet
        end.set()
        assert running.result()


# bridge


class OneLoop:
    """A fake model that belongs, as a client does, to the loop where it is first used.

    It notices at once. A real one notices when it has to wait: the request is sent.
    """

    def __init__(self, seed: int) -> None:
        self._model = fake_ask(seed)
        self._home: asyncio.AbstractEventLoop | None = None

    async def __call__(self, question: str) -> str:
        loop = asyncio.get_running_loop()
        self._home = self._home or loop
        if loop is not self._home:
            raise RuntimeError(f"{self!r} is bound to a different event loop")
        return await self._model(question)


def answers(module: ModuleType, seed: int) -> int:
    timeline = Timeline(*module.AGENTS, "expert")
    outcomes = asyncio.run(module.run(OneLoop(seed), timeline))
    assert len(timeline.of("expert")) == len(outcomes) == len(module.AGENTS)
    return sum(has_advice for _, has_advice, _ in outcomes)


@pytest.mark.usefixtures("switch_intervals")
@pytest.mark.parametrize(
    ("name", "got"), [("broken_bridge.py", 0), ("fixed_bridge.py", 3)]
)
def test_answers_that_cross_the_bridge_in_every_order_tried(
    name: str, got: int, load_script: LoadScript
) -> None:
    module = load_script(name)
    assert {answers(module, seed) for seed in ORDERS} == {got}


@pytest.mark.parametrize(
    ("name", "got"), [("broken_bridge.py", 0), ("fixed_bridge.py", 3)]
)
def test_question_is_sent_even_if_the_answer_is_lost(
    name: str, got: int, run_inprocess: RunScript, session_server: LocalServer
) -> None:
    assert run_inprocess(name, speed=3).numbers == (got, 3)
    stats = session_server.stats()
    # Three answers for the agents themselves, and then those of the expert.
    assert (stats.received, stats.answered) == (6, 3 + got)


async def test_result_on_the_loops_thread_waits_for_itself() -> None:
    loop = asyncio.get_running_loop()
    future: Future[str] = asyncio.run_coroutine_threadsafe(
        asyncio.sleep(0, "advice"), loop
    )
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)  # without a timeout: for ever
    assert await asyncio.wrap_future(future) == "advice"


async def test_result_timeout_does_not_stop_the_agent() -> None:
    loop, ends = asyncio.get_running_loop(), asyncio.Event()
    futures: list[Future[bool]] = []

    def tool() -> bool:
        futures.append(asyncio.run_coroutine_threadsafe(ends.wait(), loop))
        with pytest.raises(TimeoutError):
            futures[0].result(timeout=0)
        return futures[0].running() or futures[0].done()

    assert not await asyncio.to_thread(tool)  # nobody has told it to stop
    ends.set()
    assert await asyncio.wrap_future(futures[0])


async def test_the_way_back_keeps_the_context() -> None:
    RUN.set("scout-1")
    loop = asyncio.get_running_loop()

    async def agent() -> str:
        return RUN.get()

    def tool() -> str:
        return asyncio.run_coroutine_threadsafe(agent(), loop).result(timeout=600)

    assert await asyncio.to_thread(tool) == "scout-1"
