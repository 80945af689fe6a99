"""
The pairs of chapters 1 to 3 in every order in which their answers can arrive.

Run:   python every_order.py
Next:  python broken_slot_leak.py

Broken breaks and fixed holds in all of them, by the verdict of the scripts themselves.
Pairs with sockets or threads are not here: the explorer refuses what it cannot control.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from racelab import Ask, Message, Refused, Timeline, result, start, table
from racelab.explore import explore
from racelab.script import load_script

ROOT = Path(__file__).parents[1]
Lesson = ModuleType  # a script


def as_it_is(lesson: Lesson, ask: Ask, timeline: Timeline) -> Any:
    return lesson.run(ask, timeline)


@dataclass(frozen=True)
class Pair:
    broken: str  # the script's path, from the repository's root
    cast: str  # the constant with the names of the agents
    holds: Callable[[Lesson, Any], bool]  # the verdict on what `run` returns
    run: Callable[[Lesson, Ask, Timeline], Any] = as_it_is
    answer: Callable[[str], str] = "On {!r}: yes.".format
    fix: str = ""  # which of several
    size: int | None = None  # number of agents, or None for all

    @property
    def name(self) -> str:
        name = Path(self.broken).stem.removeprefix("broken_")
        return f"{name} ({self.size} agents)" if self.size else name

    @property
    def fixed(self) -> str:
        return self.broken.replace("broken_", "fixed_").replace(".py", f"{self.fix}.py")


def all_are_kept(lesson: Lesson, findings: Any) -> bool:
    return len(findings) == len(lesson.AGENTS)


def the_budget_is_kept(lesson: Lesson, answers: Any) -> bool:
    paid = len(answers) - answers.count(None)
    return bool(paid == lesson.BUDGET // lesson.PRICE)


def each_is_answered(lesson: Lesson, ended: Any) -> bool:
    answers, _ = ended
    return None not in answers


def each_answer_fits(lesson: Lesson, answers: Any) -> bool:
    return all(city in answers[city] for city in lesson.CITIES)


def each_vote_is_under_its_name(lesson: Lesson, filed: Any) -> bool:
    return all(agent in filed[agent] for agent in lesson.PANEL)


def each_task_is_done_once(lesson: Lesson, done: Any) -> bool:
    return bool(done == dict.fromkeys(lesson.TASKS, 1))


def all_but_the_scout_are_kept(lesson: Lesson, kept: Any) -> bool:
    return sum(map(len, kept)) == 2 * (len(lesson.AGENTS) - 1)


def one_session_keeps_all(lesson: Lesson, session: Any) -> bool:
    _, *findings = session.history
    return session.opened == 1 and len(findings) == len(lesson.AGENTS)


async def strict_api(lesson: Lesson, ask: Ask, timeline: Timeline) -> Any:
    """Refuse, as the API does, a tool call that no result follows."""

    async def chat(messages: list[Message], **options: Any) -> Message:
        following = [message["role"] for message in messages[1:]]
        for message, role in zip(messages, [*following, ""], strict=True):
            if "tool_calls" in message and role != "tool":
                raise Refused("tool calls must be followed by tool messages", 400)
        answer = await ask(messages[-1]["content"])
        if options.get("tool_choice") != "required":
            return {"role": "assistant", "content": answer}
        return {"role": "assistant", "tool_calls": [{"id": "call_1"}]}

    return await lesson.run(chat, timeline)


async def to_the_end(lesson: Lesson, ask: Ask, timeline: Timeline) -> Any:
    kept = await lesson.run(ask, timeline)
    await lesson.rest_of_the_program()
    return kept


def the_scout_fails(question: str) -> str:
    import openai  # it takes a second
    from httpx2 import Request

    if "scout" in question:
        raise openai.APIError("down", Request("POST", "http://model"), body=None)
    return "Yes."


ONE, TWO, THREE = "01-race-conditions", "02-async-await", "03-thread-safety"
PAIRS = (
    Pair(f"{ONE}/broken_agents.py", "AGENTS", all_are_kept),
    Pair(f"{ONE}/broken_double_spend.py", "AGENTS", the_budget_is_kept),
    Pair(f"{ONE}/broken_shared_history.py", "CITIES", each_is_answered, strict_api),
    Pair(f"{ONE}/broken_shared_agent.py", "CITIES", each_answer_fits),
    Pair(f"{ONE}/broken_wrong_owner.py", "PANEL", each_vote_is_under_its_name),
    Pair(f"{ONE}/broken_duplicate_work.py", "WORKERS", each_task_is_done_once),
    Pair(
        f"{TWO}/broken_orphans.py",
        "AGENTS",
        all_but_the_scout_are_kept,
        to_the_end,
        the_scout_fails,
        fix="_keep_partial",
    ),
    # All five agents have 113,400 orders.
    Pair(f"{THREE}/broken_lazy_init.py", "AGENTS", one_session_keeps_all, size=3),
)


def count_orders(lesson: Lesson, pair: Pair) -> tuple[int, int]:
    """Return in how many orders the script holds, and the number of all orders."""
    held = 0

    def note(value: Any) -> None:
        nonlocal held
        held += pair.holds(lesson, value)

    def run(ask: Ask, timeline: Timeline) -> Any:
        return pair.run(lesson, ask, timeline)

    cast = vars(lesson)[pair.cast] = vars(lesson)[pair.cast][: pair.size]
    report = explore(run, note, agents=(*cast, "boss"), answer=pair.answer)
    if not report.exhausted:
        raise RuntimeError(str(report))
    return held, report.runs


def main() -> int:
    rows = [("pair", "broken holds in", "fixed holds in", "explored in")]
    totals = [0, 0, 0, 0]
    for pair in PAIRS:
        lessons = [load_script(ROOT / side) for side in (pair.broken, pair.fixed)]
        began = time.perf_counter()
        counts = [count for lesson in lessons for count in count_orders(lesson, pair)]
        took = time.perf_counter() - began
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        broken, of_broken, fixed, of_fixed = counts
        cells = f"{broken} of {of_broken} orders", f"{fixed} of {of_fixed} orders"
        rows.append((pair.name, *cells, f"{took:.2f} s"))
    print(table(*rows))
    broken, of_broken, fixed, of_fixed = totals
    says = f"broken holds in {broken} of {of_broken} orders"
    return result(f"{says}, fixed in {fixed} of {of_fixed}")


if __name__ == "__main__":
    start(main)
