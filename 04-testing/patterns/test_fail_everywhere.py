"""Fail the 1st call, then the 2nd, and so on, and look at what is left each time.

A model fails now and then, at any call. A test in which one chosen call fails shows
that your code handles this one. `fail_everywhere` runs it again and again, and in each
run another call fails. The code may give up or go on, but it must lose nothing.
"""

from collections.abc import Awaitable, Callable

from racelab import Ask
from racelab.explore import fail_everywhere
from racelab.explore.search import SearchResult

TASKS = ["press", "video", "logo"]
Work = Callable[[list[str], list[str], Ask], Awaitable[None]]


async def careless(todo: list[str], done: list[str], ask: Ask) -> None:
    while todo:
        task = todo.pop(0)
        try:
            draft = await ask(f"Do the task: {task}.")
        except ConnectionError:
            todo.append(task)  # somebody thought of this call, and of no other
            continue
        await ask(f"Check: {draft}")
        done.append(task)


async def careful(todo: list[str], done: list[str], ask: Ask) -> None:
    while todo:
        draft = await ask(f"Do the task: {todo[0]}.")
        await ask(f"Check: {draft}")
        done.append(todo.pop(0))  # both lists change in one step


def failed_everywhere(work: Work) -> SearchResult:
    todo: list[str] = []
    done: list[str] = []

    async def run(ask: Ask) -> None:
        todo[:], done[:] = TASKS, []
        await work(todo, done, ask)

    return fail_everywhere(run, lambda: sorted(done + todo) == sorted(TASKS))


def test_a_task_is_lost_when_the_second_call_fails() -> None:
    assert failed_everywhere(careless).failing == "2"  # the first check


def test_no_task_is_lost_whichever_call_fails() -> None:
    report = failed_everywhere(careful)
    assert report.holds, report
    assert report.runs == 2 * len(TASKS)
