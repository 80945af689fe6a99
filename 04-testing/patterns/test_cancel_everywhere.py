"""Cancel at every await, one after another, and look at what is left each time.

A cancellation (a timeout, a closed browser, Ctrl-C) can come at any await. Code that
takes something must give it back from each of them. `cancel_everywhere` runs the code
again and again. It cancels at the 1st place, then, in a new run, at the 2nd, and so on.
"""

from collections.abc import Awaitable, Callable

from racelab import Ask
from racelab.explore import cancel_everywhere
from racelab.explore.search import SearchResult

TOOLS = {"search", "shell"}


async def leaky(free: set[str], ask: Ask) -> str:
    tool = free.pop()
    plan = await ask("What shall we do?")  # cancelled here, the tool is gone
    try:
        return await ask(f"Do it with {tool}: {plan}")
    finally:
        free.add(tool)


async def tidy(free: set[str], ask: Ask) -> str:
    tool = free.pop()
    try:
        plan = await ask("What shall we do?")
        return await ask(f"Do it with {tool}: {plan}")
    finally:
        free.add(tool)


def cancelled_everywhere(
    code: Callable[[set[str], Ask], Awaitable[str]],
) -> SearchResult:
    free: set[str] = set()

    async def run(ask: Ask) -> str:
        free.update(TOOLS)  # each run starts with all of them
        return await code(free, ask)

    return cancel_everywhere(run, lambda: free == TOOLS)


def test_a_tool_taken_outside_of_the_try_is_lost() -> None:
    report = cancelled_everywhere(leaky)
    assert report.kind == "invariant"
    assert "What shall we do?" in str(report)  # the line at which it was cancelled


def test_a_tool_is_given_back_from_every_await() -> None:
    report = cancelled_everywhere(tidy)
    assert report.holds, report
    assert report.runs >= 2
