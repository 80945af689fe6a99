"""What each way of waiting promises: the two tables and the myths of the README.

Every cell is observed. There is no server and no clock: the children of these tests
wait for events, and they stop only when the test lets them.
"""

import ast
import asyncio
import gc
import inspect
import subprocess
import sys
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"
TURNS = 50  # of the event loop: more than any of these ways takes to react


class SiblingFailure(Exception):
    """How a child fails."""


class Child:
    """A child of which the test decides when it ends, and how."""

    def __init__(self) -> None:
        self.end = asyncio.Event()  # then it returns, or fails
        self.stop = asyncio.Event()  # once it is cancelled: then it has cleaned up
        self.fails = False
        self.told_to_stop = False
        self.task: asyncio.Task[Any] | None = None

    async def work(self) -> str:
        self.task = asyncio.current_task()
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.told_to_stop = True
            await self.stop.wait()
            raise
        if self.fails:
            raise SiblingFailure
        return "answer"

    @property
    def has_ended(self) -> bool:
        return self.task is not None and self.task.done()


Children = list[Child]
Wait = Callable[[Children], Awaitable[Any]]


def tasks_of(children: Children) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(child.work()) for child in children]


async def gather(children: Children) -> Any:
    return await asyncio.gather(*tasks_of(children))


async def gather_exceptions(children: Children) -> Any:
    return await asyncio.gather(*tasks_of(children), return_exceptions=True)


async def task_group(children: Children) -> Any:
    async with asyncio.TaskGroup() as group:
        for child in children:
            group.create_task(child.work())


async def as_completed(children: Children, seconds: float | None = None) -> Any:
    for finished in asyncio.as_completed(tasks_of(children), timeout=seconds):
        await finished


async def wait_all(children: Children, seconds: float | None = None) -> Any:
    return await asyncio.wait(tasks_of(children), timeout=seconds)


async def wait_first(children: Children) -> Any:
    return await asyncio.wait(tasks_of(children), return_when=asyncio.FIRST_COMPLETED)


async def wait_exception(children: Children) -> Any:
    return await asyncio.wait(tasks_of(children), return_when=asyncio.FIRST_EXCEPTION)


async def in_timeout(children: Children, seconds: float | None = None) -> Any:
    [task] = tasks_of(children)
    await asyncio.sleep(0)  # it starts
    async with asyncio.timeout(seconds):
        return await task


async def wait_for(children: Children, seconds: float | None = None) -> Any:
    [task] = tasks_of(children)
    await asyncio.sleep(0)  # it starts
    return await asyncio.wait_for(task, seconds)


# A child fails: what the caller gets, what its siblings do, when the caller runs again.
# The caller is cancelled: what its children do, when the caller runs again.
PROMISES = """\
| `gather` | the failure | go on | at once | are cancelled | when the first has ended |
| `gather(return_exceptions=True)` | a list with the failure in it | go on | when all have ended | are cancelled | when all have ended |
| `TaskGroup` | an `ExceptionGroup` | are cancelled | when all have ended | are cancelled | when all have ended |
| `as_completed` | the failure | go on | at once | go on | at once |
| `wait`, `ALL_COMPLETED` | two sets of tasks | go on | when all have ended | go on | at once |
| `wait`, `FIRST_EXCEPTION` | two sets of tasks | go on | at once | go on | at once |
| `wait`, `FIRST_COMPLETED` | two sets of tasks | go on | at once | go on | at once |
| `async with timeout` | the failure | (one child) | at once | are cancelled | when all have ended |
| `wait_for` | the failure | (one child) | at once | are cancelled | when all have ended |
"""  # noqa: E501 as it is in the README

# A time limit is over: what the caller gets, what its child does, when the caller runs.
LIMITS = """\
| `async with timeout(s)` | `TimeoutError` | is cancelled | when it has ended |
| `wait_for(..., s)` | `TimeoutError` | is cancelled | when it has ended |
| `as_completed(..., timeout=s)` | `TimeoutError` | goes on | at once |
| `wait(..., timeout=s)` | two sets of tasks | goes on | at once |
"""

WAITS: dict[str, Wait] = {
    "`gather`": gather,
    "`gather(return_exceptions=True)`": gather_exceptions,
    "`TaskGroup`": task_group,
    "`as_completed`": as_completed,
    "`wait`, `ALL_COMPLETED`": wait_all,
    "`wait`, `FIRST_EXCEPTION`": wait_exception,
    "`wait`, `FIRST_COMPLETED`": wait_first,
    "`async with timeout`": in_timeout,
    "`wait_for`": wait_for,
    "`async with timeout(s)`": lambda children: in_timeout(children, 0),
    "`wait_for(..., s)`": lambda children: wait_for(children, 0),
    "`as_completed(..., timeout=s)`": lambda children: as_completed(children, 0),
    "`wait(..., timeout=s)`": lambda children: wait_all(children, 0),
}


def rows(table: str) -> list[tuple[str, ...]]:
    return [tuple(line.strip("| ").split(" | ")) for line in table.splitlines()]


async def some_turns() -> None:
    """Let everybody run who can run."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


def what_it_gets(caller: asyncio.Task[Any]) -> str:
    if caller.cancelled():
        return "`CancelledError`"
    if error := caller.exception():
        names = {SiblingFailure: "the failure", ExceptionGroup: "an `ExceptionGroup`"}
        return names.get(type(error), f"`{type(error).__name__}`")
    match caller.result():
        case [SiblingFailure(), *_]:
            return "a list with the failure in it"
        case (set(), set()):
            return "two sets of tasks"
        case other:
            return repr(other)


class Scene:
    """A caller that waits for children in some way, until the test is over."""

    def __init__(self, way: Wait, team: int) -> None:
        self.children = [Child() for _ in range(team)]
        self.caller = asyncio.create_task(self._call(way))

    async def _call(self, way: Wait) -> Any:
        return await way(self.children)

    async def __aenter__(self) -> "Scene":
        await some_turns()
        assert all(child.task is not None for child in self.children)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is left behind, and every exception has been looked at."""
        for child in self.children:
            child.end.set()
            child.stop.set()
        tasks = [child.task for child in self.children if child.task is not None]
        await asyncio.gather(self.caller, *tasks, return_exceptions=True)

    def fate(self, child: Child, many: bool = True) -> str:
        if child.told_to_stop:
            return "are cancelled" if many else "is cancelled"
        return "go on" if many else "goes on"

    async def end_one_by_one(self) -> str:
        """When the caller runs again, while one child after the other comes to rest."""
        if self.caller.done():
            return "at once"
        for ended, child in enumerate(self.children, start=1):
            child.stop.set()
            child.end.set()
            await some_turns()
            assert child.has_ended
            if self.caller.done():
                last = ended == len(self.children)
                return "when all have ended" if last else "when the first has ended"
        return "never"


@pytest.mark.parametrize("row", rows(PROMISES), ids=lambda row: row[0])
async def test_when_a_child_fails(row: tuple[str, ...]) -> None:
    name, gets, siblings_do, goes_on, *_ = row
    async with Scene(WAITS[name], 1 if siblings_do == "(one child)" else 2) as scene:
        failing, *siblings = scene.children
        failing.fails = True
        failing.end.set()
        await some_turns()
        fates = {scene.fate(child) for child in siblings} or {"(one child)"}
        assert await scene.end_one_by_one() == goes_on
        assert what_it_gets(scene.caller) == gets
        assert fates == {siblings_do}


@pytest.mark.parametrize("row", rows(PROMISES), ids=lambda row: row[0])
async def test_when_the_caller_is_cancelled(row: tuple[str, ...]) -> None:
    name, _, siblings_do, _, children_do, goes_on = row
    async with Scene(WAITS[name], 1 if siblings_do == "(one child)" else 2) as scene:
        scene.caller.cancel()
        await some_turns()
        fates = {scene.fate(child) for child in scene.children}
        assert await scene.end_one_by_one() == goes_on
        assert what_it_gets(scene.caller) == "`CancelledError`"
        assert fates == {children_do}


@pytest.mark.parametrize("row", rows(LIMITS), ids=lambda row: row[0])
async def test_when_time_is_up(row: tuple[str, ...]) -> None:
    name, gets, child_does, goes_on = row
    async with Scene(WAITS[name], 1) as scene:
        fate = scene.fate(scene.children[0], many=False)
        went_on = await scene.end_one_by_one()
        assert went_on.replace("all have", "it has") == goes_on
        assert what_it_gets(scene.caller) == gets
        assert fate == child_does


@pytest.mark.parametrize(
    ("way", "goes_on"),
    [
        (wait_first, "at once"),
        (wait_exception, "when all have ended"),
        (wait_all, "when all have ended"),
    ],
)
async def test_when_a_child_succeeds_only_first_completed_returns(
    way: Wait, goes_on: str
) -> None:
    async with Scene(way, 2) as scene:
        scene.children[0].end.set()
        await some_turns()
        assert await scene.end_one_by_one() == goes_on


async def test_children_that_go_on_reach_their_end() -> None:
    async with Scene(gather, 2) as scene:
        failing, sibling = scene.children
        failing.fails = True
        failing.end.set()
        await asyncio.wait([scene.caller])
        assert not sibling.has_ended
        sibling.end.set()
        assert sibling.task is not None
        assert await sibling.task == "answer"  # and `gather` gives it to nobody


@pytest.mark.parametrize(
    ("way", "seen"), [(gather, 1), (task_group, 2)], ids=["gather", "TaskGroup"]
)
async def test_of_two_failures_gather_shows_one(way: Wait, seen: int) -> None:
    async with Scene(way, 2) as scene:
        for child in scene.children:
            child.fails = True
            child.end.set()
        await asyncio.wait([scene.caller])
        error = scene.caller.exception()
        group = error if isinstance(error, ExceptionGroup) else None
        assert (len(group.exceptions) if group else 1) == seen


async def test_after_a_failure_as_completed_can_go_on() -> None:
    async def fails() -> str:
        raise SiblingFailure

    async def answers() -> str:
        return "answer"

    got = []
    for finished in asyncio.as_completed([fails(), answers()]):
        try:
            got.append(await finished)
        except SiblingFailure:
            got.append("failure")
    assert sorted(got) == ["answer", "failure"]


async def fails() -> None:
    raise SiblingFailure


# A myth of the README, and the line that proves it wrong.
MYTHS = {
    "`except Exception` eats cancel":
        "assert not issubclass(asyncio.CancelledError, Exception)",
    "`gather` cancels its siblings":
        "sibling = asyncio.Future(); "
        "await asyncio.wait([asyncio.gather(fails(), sibling)]); "
        "assert not sibling.done()",
    "`create_task` keeps the task alive":
        "async def lost(): asyncio.create_task(asyncio.Event().wait()); "
        "await asyncio.sleep(0); gc.collect(); return len(asyncio.all_tasks())"
        "\n\nassert await lost() == 1",
}  # fmt: skip


def run_line(line: str, **names: Any) -> None:
    """Run a line with `await` in it, as `python -m asyncio` does."""
    code = compile(line, "<myth>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def main() -> None:
        outcome = types.FunctionType(code, {"asyncio": asyncio, "gc": gc, **names})()
        if inspect.isawaitable(outcome):
            await outcome

    asyncio.run(main())


@pytest.mark.parametrize("myth", MYTHS)
def test_the_proof_of_a_myth_holds(myth: str) -> None:
    run_line(MYTHS[myth], fails=fails)


def test_the_proofs_would_notice_if_the_myths_were_true() -> None:
    async def group(*awaitables: Any) -> None:
        _, sibling = awaitables
        sibling.cancel()

    cancelling = types.SimpleNamespace(
        **{**vars(asyncio), "gather": lambda *a: asyncio.ensure_future(group(*a))}
    )
    line = MYTHS["`gather` cancels its siblings"]
    with pytest.raises(AssertionError):
        run_line(line, asyncio=cancelling, fails=lambda: None)
    kept = set()
    holding = types.SimpleNamespace(
        **{**vars(asyncio), "create_task": lambda c: kept.add(asyncio.create_task(c))}
    )
    with pytest.raises(AssertionError):
        run_line(MYTHS["`create_task` keeps the task alive"], asyncio=holding)


def test_the_proofs_can_be_pasted_into_python_m_asyncio() -> None:
    setup = "import asyncio, gc\nasync def fails(): raise ValueError\n"
    typed = "\n".join([setup, *MYTHS.values(), "print('the end')\n"])
    ran = subprocess.run(
        [sys.executable, "-m", "asyncio"], input=typed, capture_output=True, text=True
    )
    assert "the end" in ran.stdout
    assert "AssertionError" not in ran.stderr
    assert "SyntaxError" not in ran.stderr


async def test_except_exception_lets_a_cancel_pass() -> None:
    async def tries_again() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except Exception:
                continue

    task = asyncio.create_task(tries_again())
    await some_turns()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def test_the_readme_has_the_tables_and_the_proofs() -> None:
    readme = README.read_text(encoding="utf-8")
    myths = [f'**"{myth}"**' for myth in MYTHS]
    wanted = [PROMISES, LIMITS, *myths, *MYTHS.values()]
    assert [text for text in wanted if text not in readme] == []
