"""What a client may be shared by: each pair both ways, with the same assertion."""

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator

import pytest
from openai import AsyncOpenAI, Timeout

from racelab import Ask, LocalServer
from racelab.fakes import fake_ask
from racelab.pytest.plugin import LoadScript, RunScript

PAIRS = {
    "blocking_client": ["blocking_client", "blocking_client_to_thread"],
    "client_per_call": ["client_per_call"],
    "closed_loop": ["closed_loop"],
    "unbounded_fanout": ["unbounded_fanout"],
}
RUNS = 5  # of each script here; `--script-runs 20` runs them as a reader does
# How to play a pair: its answers take 40 ms, long beside the 20 ms for a connection.
FASTER = {"unbounded_fanout": {"speed": 5.0, "CALLS": 20, "CONNECTIONS": 5}}


@pytest.fixture
def collect() -> Iterator[None]:
    yield
    gc.collect()  # what is left open is found now, not within another test


def leaves_sockets_open(test: Callable[..., None]) -> Callable[..., None]:
    """For tests of code whose lesson it is that nobody closes its sockets."""
    ignore = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
    return pytest.mark.usefixtures("collect")(ignore(test))


def new_client(server: LocalServer, max_retries: int = 0) -> AsyncOpenAI:
    url, key = server.base_url, server.api_key
    return AsyncOpenAI(base_url=url, api_key=key, max_retries=max_retries)


async def ask(client: AsyncOpenAI, question: str) -> str:
    completion = await client.chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
    )
    return completion.choices[0].message.content or ""


def opened(server: LocalServer) -> int:
    return server.stats().connections_opened


@pytest.mark.parametrize("pair", PAIRS)
def test_a_reader_sees_it_break_and_the_fixes_hold(
    pair: str, script: RunScript, pytestconfig: pytest.Config
) -> None:
    for _ in range(pytestconfig.getoption("--script-runs")):
        broken = script(f"broken_{pair}.py")
        assert (broken.status, broken.word) == (1, "BROKEN"), broken
        for name in PAIRS[pair]:
            fixed = script(f"fixed_{name}.py")
            assert (fixed.status, fixed.word) == (0, "OK"), fixed
            assert broken.err == fixed.err == ""


@leaves_sockets_open
@pytest.mark.parametrize("pair", PAIRS)
def test_every_run_breaks(pair: str, run_inprocess: RunScript) -> None:
    runs = [
        run_inprocess(f"broken_{pair}.py", **FASTER.get(pair, {})) for _ in range(RUNS)
    ]
    assert [run.status for run in runs] == [1] * RUNS, runs


@pytest.mark.parametrize("pair", PAIRS)
def test_every_run_of_a_fix_holds(pair: str, run_inprocess: RunScript) -> None:
    for name in PAIRS[pair]:
        runs = [
            run_inprocess(f"fixed_{name}.py", **FASTER.get(pair, {}))
            for _ in range(RUNS)
        ]
        assert [run.status for run in runs] == [0] * RUNS, runs


@pytest.mark.parametrize(
    ("script", "together"),
    [
        ("broken_blocking_client.py", False),
        ("fixed_blocking_client.py", True),
        ("fixed_blocking_client_to_thread.py", True),
    ],
)
def test_the_sync_client_never_has_two_calls_in_flight_the_fixes_have(
    script: str, together: bool, run_inprocess: RunScript, session_server: LocalServer
) -> None:
    run_inprocess(script, speed=1.0)
    assert (session_server.stats().largest_in_flight > 1) == together


@leaves_sockets_open
def test_a_client_per_call_opens_a_connection_per_call(
    run_inprocess: RunScript,
) -> None:
    assert run_inprocess("broken_client_per_call.py").numbers == (20, 4)
    opened, at_once = run_inprocess("fixed_client_per_call.py").numbers
    assert 1 <= opened <= at_once == 4


@leaves_sockets_open
def test_a_client_per_call_that_is_closed_still_opens_a_connection_per_call(
    model_server: LocalServer,
) -> None:
    """The tempting worse fix: with `async with` nothing leaks, and nothing is saved."""

    async def calls() -> None:
        for topic in range(5):
            async with new_client(model_server) as client:
                await ask(client, f"{topic}")

    asyncio.run(calls())
    assert opened(model_server) == 5


@leaves_sockets_open
@pytest.mark.skipif(sys.platform == "win32", reason="its loop fails before it sends")
@pytest.mark.parametrize("max_retries", [0, 2])
def test_a_client_from_a_closed_loop_loses_every_second_answer(
    max_retries: int, load_script: LoadScript, model_server: LocalServer
) -> None:
    """Also with the SDK's retries, which are for errors of the transport only."""
    module = load_script("broken_closed_loop.py")
    answers, lost = module.run(new_client(model_server, max_retries))
    assert (list(answers), lost) == (
        ["price", "name", "risks"],
        {"date": "Event loop is closed", "rivals": "Event loop is closed"},
    )
    assert model_server.stats().received == 5  # the lost ones were sent, too


def test_one_loop_for_all_runs_gets_every_answer_on_one_connection(
    load_script: LoadScript, model_server: LocalServer
) -> None:
    module = load_script("fixed_closed_loop.py")
    answers, lost = module.run(new_client(model_server))
    assert (list(answers), lost) == (list(module.TOPICS), {})
    assert opened(model_server) == 1


def test_an_unbounded_fanout_says_timeout_for_calls_that_were_never_sent(
    run_inprocess: RunScript,
) -> None:
    ran = run_inprocess("broken_unbounded_fanout.py", speed=1.0)
    assert ran.numbers == (10, 40)
    assert "Request timed out. (PoolTimeout)     30" in ran.out


def test_a_plain_timeout_is_also_the_wait_for_a_connection() -> None:
    assert Timeout(20).pool == 20
    assert AsyncOpenAI(api_key="none").timeout == Timeout(600, connect=5)


def test_the_exercise_is_solved_with_workers(run_inprocess: RunScript) -> None:
    solved = run_inprocess("solutions/fanout_workers.py", speed=5.0)
    assert (solved.status, solved.numbers) == (0, (40, 40)), solved


Run = Callable[[Ask], Awaitable[object]]


async def most_at_once(run: Run) -> int:
    """The largest number of questions that wait for their answer at one time."""
    answer, waiting, most = fake_ask(0), 0, 0

    async def counted(question: str) -> str:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        try:
            return await answer(question)
        finally:
            waiting -= 1

    await run(counted)
    return most


async def test_myth_async_def_makes_it_parallel() -> None:
    """Three calls inside `async def`, one at a time; together only if you say so."""

    async def in_turn(ask: Ask) -> list[str]:
        return [await ask(question) for question in "abc"]

    async def together(ask: Ask) -> list[str]:
        return await asyncio.gather(*[ask(question) for question in "abc"])

    assert (await most_at_once(in_turn), await most_at_once(together)) == (1, 3)


@leaves_sockets_open
def test_myth_a_client_per_call_is_safer(model_server: LocalServer) -> None:
    """Twenty calls at once on one client, and each gets the answer to its question."""
    questions = [f"Question {n:02}" for n in range(20)]

    async def shared() -> list[str]:
        async with new_client(model_server) as client:
            return await asyncio.gather(*[ask(client, q) for q in questions])

    async def one_per_call() -> list[str]:
        return await asyncio.gather(
            *[ask(new_client(model_server), q) for q in questions]
        )

    answers = asyncio.run(shared())
    assert all(q in a for q, a in zip(questions, answers, strict=True))
    assert asyncio.run(one_per_call()) == answers
