"""Cancel at every checkpoint, fail at every call, and check what is left each time.

    from racelab.explore import cancel_everywhere, fail_everywhere

    report = cancel_everywhere(run, lambda: pool.free == 2)
    report = fail_everywhere(run, lambda: pool.free == 2)

`run(ask)` runs again and again, as under `explore`, with answers first in, first out:
once for each task and each turn of the loop at which it could be cancelled, or once for
each call of `ask` that can fail. `run` may then give up or go on. But it must come to
an end, and it must raise nothing but the cancellation or failure (or what it raises
`from` that). Then the invariant must hold.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Unpack

from racelab.explore.answer_orders import ExploreOptions, Program, follow
from racelab.explore.clock import Events
from racelab.explore.controlled_loop import ControlledLoop
from racelab.explore.search import SearchResult
from racelab.where import describe, frames_of_task, line_of, tasks_of


class Injected(ConnectionError):
    """The failure that `fail_everywhere` injects, unless the caller names another."""


def cancel_everywhere(
    run: Program[Any],
    invariant: Callable[[], object],
    only: str | None = None,
    **options: Unpack[ExploreOptions],
) -> SearchResult:
    """Cancel each task at each turn of the loop, one after another, run by run.

    `only`: one of them to repeat. `writer@7` is the task of that name, at the 7th turn.
    """
    loop = _Cancels(run, lambda _: invariant(), **options)
    with loop.only_asyncio():
        loop.execute(follow([]))
        points = list(loop.points) if only is None else [only]
        return _first_failure(loop, points, "cancel", "cancellations")


def fail_everywhere(
    run: Program[Any],
    invariant: Callable[[], object],
    only: str | None = None,
    error: Callable[[], Exception] = Injected,
    **options: Unpack[ExploreOptions],
) -> SearchResult:
    """Fail the 1st call of `ask`, then, in another run, the 2nd, and so on.

    `only`: one of them to repeat. "3" is the third call. `error`: returns the failure.
    """
    loop = _Fails(run, lambda _: invariant(), **options)
    loop.error = error
    with loop.only_asyncio():
        loop.execute(follow([]))
        points = list(map(str, range(1, loop.calls + 1))) if only is None else [only]
        return _first_failure(loop, points, "fail", "failing calls")


def _first_failure(
    loop: "_Everywhere", points: list[str], name: str, what: str
) -> SearchResult:
    for tried, point in enumerate(points, 1):
        loop.point = point
        if loop.execute(follow([])).kind:
            execution = loop.execute(follow([]), record=True)
            again = f"{name}_everywhere(run, invariant, only={{!r}}, ...)"
            message, kind = f"{name} {point}: {execution.message}", execution.kind
            timeline = execution.timeline
            return SearchResult(message, tried, False, kind, point, timeline, again)
    return SearchResult(f"holds for all {len(points)} {what}", len(points), True)


class _Everywhere(ControlledLoop):
    point = ""  # of the fault in this run; none

    def _judge(self, main: asyncio.Task[Any]) -> None:
        try:
            main.result()
        except BaseException as error:
            if not any(map(self.is_expected, chain(error))):
                self._fail("exception", f"raises {describe(error)}")
                return
        self._check(None)

    def is_expected(self, error: BaseException) -> bool:
        raise NotImplementedError


class _Cancels(_Everywhere):
    def execute(self, *choose: Any, **options: Any) -> Any:
        self.turns, self.points = 0, dict[str, None]()
        return super().execute(*choose, **options)

    def turn(self, timeout: float | None) -> Events:
        if not self.ended:
            self.turns += 1
            for task in tasks_of(self):
                point = f"{task.get_name()}@{self.turns}"
                if not is_unstarted_main(task):
                    self.points[point] = None
                    if point == self.point:
                        self.note(
                            task.get_name(),
                            f"cancelled at {line_of(frames_of_task(task))}",
                        )
                        task.cancel()
                        timeout = 0
        return super().turn(timeout)

    def is_expected(self, error: BaseException) -> bool:
        return isinstance(error, asyncio.CancelledError)


class _Fails(_Everywhere):
    error: Callable[[], Exception]
    injected: Exception | None = None

    def execute(self, *choose: Any, **options: Any) -> Any:
        self.calls, self.injected = 0, None
        return super().execute(*choose, **options)

    def answered(self, question: str) -> str:
        self.calls += 1
        if str(self.calls) == self.point:
            self.injected = self.error()
            raise self.injected
        return super().answered(question)

    def is_expected(self, error: BaseException) -> bool:
        return error is self.injected


def is_unstarted_main(task: asyncio.Task[Any]) -> bool:
    coroutine: Any = task.get_coro()
    created = inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
    return created and task.get_name() == "main"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error`, those that it groups, and what it was raised from."""
    if error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from chain(inner)
        yield from chain(error.__cause__)  # not its context: a handler may have bugs
