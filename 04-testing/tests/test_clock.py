"""Virtual time: exact to the float, the same on every run, and it never waits."""

import asyncio
import contextvars
import math
import random
import threading
from collections.abc import AsyncIterator

import pytest

from racelab.explore import clock
from racelab.explore.clock import CannotControl, Stuck, VirtualLoop

pytestmark = pytest.mark.virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_time_is_exact_to_the_float() -> None:
    loop, rang = asyncio.get_running_loop(), []
    numbers = random.Random(1)
    whens = [0.1 + 0.2, 0.3, 1e-9, 1e9 + 0.1, 2e15]
    whens += [10 ** numbers.uniform(-6, 6) for _ in range(200)]
    for when in whens:
        loop.call_at(when, lambda when=when: rang.append((when, now())))
    await asyncio.sleep(3e15)
    assert rang == [(when, when) for when in sorted(whens)]
    assert now() == 3e15


async def test_timers_of_the_same_moment_keep_their_order() -> None:
    loop, rang = asyncio.get_running_loop(), list[int]()
    for number in range(100):
        loop.call_at(5, rang.append, number)
    await asyncio.sleep(5)
    assert rang == list(range(100))


async def test_time_stands_still_while_anybody_can_run() -> None:
    late = asyncio.get_running_loop().call_later(0.001, lambda: None)
    for _ in range(500):
        await asyncio.sleep(0)
    assert now() == 0
    late.cancel()


async def test_a_cancelled_timer_does_not_move_time() -> None:
    asyncio.get_running_loop().call_later(50, lambda: None).cancel()
    await asyncio.sleep(100)
    assert now() == 100


async def test_a_timer_can_cancel_the_next_one() -> None:
    loop, rang = asyncio.get_running_loop(), list[str]()
    timers = list[asyncio.TimerHandle]()
    loop.call_at(1, lambda: timers[0].cancel())
    timers.append(loop.call_at(1, rang.append, "rang"))
    await asyncio.sleep(2)
    assert rang == []


async def test_work_in_a_thread_takes_no_virtual_time() -> None:
    go = threading.Event()
    asyncio.get_running_loop().call_later(60, lambda: None)

    async with asyncio.timeout(1):
        work = asyncio.create_task(asyncio.to_thread(go.wait))
        await asyncio.sleep(0)
        go.set()
        assert await work
    assert now() == 0
    await asyncio.sleep(5)  # and then time passes again
    assert now() == 5


async def test_time_passes_after_threads_have_ended() -> None:
    await asyncio.to_thread(int)
    await asyncio.get_running_loop().shutdown_default_executor()
    await asyncio.sleep(5)
    assert now() == 5


async def test_many_turns_at_several_moments_are_fine() -> None:
    for _ in range(3):
        for _ in range(clock.MAX_TURNS - 100):
            await asyncio.sleep(0)
        await asyncio.sleep(1)
    assert now() == 3


async def test_context_variables_reach_a_timer() -> None:
    seen, run_id = list[str](), contextvars.ContextVar("run_id", default="none")
    context = contextvars.copy_context()
    context.run(run_id.set, "run 7")
    loop = asyncio.get_running_loop()
    loop.call_later(1, lambda: seen.append(run_id.get()), context=context)
    await asyncio.sleep(1)
    assert seen == ["run 7"]


@pytest.fixture(params=["a", "b"])
def letter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestInAClass:
    @pytest.mark.parametrize("seconds", [1, 2])
    async def test_fixtures_and_parameters_work(
        self, seconds: int, letter: str
    ) -> None:
        await asyncio.sleep(seconds)
        assert now() == seconds
        assert letter in "ab"


@pytest.fixture
def failure(request: pytest.FixtureRequest) -> str:
    """What a coroutine function raises in virtual time, run outside of any loop."""
    stopped.clear()
    with pytest.raises((Stuck, CannotControl)) as raised:
        clock.run(request.param())
    assert stopped == ["polling"] * (request.param is polls_the_clock)
    return str(raised.value)


stopped: list[str] = []


async def waits_for_ever() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    async with asyncio.TaskGroup() as team:
        team.create_task(lock.acquire(), name="scout")


async def sleeps_for_ever() -> None:
    await asyncio.sleep(float("inf"))


async def polls_the_clock() -> None:
    try:
        while now() < 1:  # noqa: ASYNC110 - the point
            await asyncio.sleep(0)
    except asyncio.CancelledError:
        await asyncio.sleep(0)
        stopped.append("polling")
        raise


async def connects() -> None:
    await asyncio.open_connection("127.0.0.1", 9)


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (waits_for_ever, "waits for ever: Task-"),
        (sleeps_for_ever, "await asyncio.sleep(float"),
        (polls_the_clock, "busy for 1,000 turns at 0 s"),
        (connects, "a socket or pipe is out of control here: inject a fake"),
    ],
    indirect=["failure"],
)
async def test_code_that_would_hang_is_reported(failure: str, says: str) -> None:
    assert says in failure


@pytest.fixture(autouse=True)
def fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "MAX_TURNS", 1_000)


@pytest.fixture
async def fixture_of_pytest_asyncio() -> AsyncIterator[str]:
    await asyncio.sleep(0)
    yield "ready"
    await asyncio.sleep(0)


async def test_async_fixtures_still_work(fixture_of_pytest_asyncio: str) -> None:
    await asyncio.sleep(1000)
    assert fixture_of_pytest_asyncio == "ready"


async def test_the_loop_is_a_stock_one() -> None:
    assert type(asyncio.get_running_loop()) is VirtualLoop
    assert isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)


async def test_timers_without_a_wait_do_not_move_time() -> None:
    for seconds in range(1, 5):
        await asyncio.sleep(1)
        for _ in range(clock.MAX_TIMERS_AT_ONCE - 2):
            asyncio.get_running_loop().call_later(0, int)
        assert now() == seconds


async def test_a_wait_below_float_precision_comes_to_an_end() -> None:
    """As rate limiters do, when the rest that they wait for is a rounding error."""
    loop = asyncio.get_running_loop()
    began, timers = loop.time(), 0
    while loop.time() == began:
        rung = loop.create_future()
        loop.call_at(loop.time(), rung.set_result, None)
        await rung
        timers += 1
    assert timers == clock.MAX_TIMERS_AT_ONCE + 1
    assert loop.time() == math.nextafter(began, math.inf)
