"""
A test that cancels once, at one await, passes code that loses a slot at another.

Run:   python broken_slot_leak.py
Next:  python fixed_slot_leak.py
Real:  https://github.com/BerriAI/litellm/issues/20256
"""

import asyncio
from contextlib import suppress

from racelab import Ask, Timeline, start, verdict
from racelab.explore import clock

SLOTS = 3


class Slots:
    """How many more calls may be in flight."""

    free = SLOTS


async def research(slots: Slots, ask: Ask, timeline: Timeline) -> str:
    """The code under test. The scout holds a slot while it asks."""
    slots.free -= 1
    timeline.mark("scout", f"takes one: {slots.free} free")
    # The bug: this await stands before the `try`.
    tool = await ask("Scout, which tool fits?")
    try:
        notes = await ask(f"Scout, use it: {tool}")
        return await ask(f"Scout, sum up: {notes}")
    finally:
        slots.free += 1
        timeline.mark("scout", f"returns it: {slots.free} free")


async def run(slots: Slots, ask: Ask, timeline: Timeline) -> str:
    slots.free = SLOTS  # all of them, in each run
    return await research(slots, ask, timeline)


async def cancel_once(slots: Slots, timeline: Timeline) -> None:
    async def ask(question: str) -> str:
        await asyncio.sleep(1)
        return "the web"

    with suppress(TimeoutError):
        await asyncio.wait_for(run(slots, ask, timeline), timeout=1.5)


def search() -> tuple[int, str]:
    """The test: how many slots does it find lost, and what has it seen?"""
    slots = Slots()
    timeline = Timeline("scout")
    # Once, in the middle of the second answer: where one thinks of it first.
    clock.run(cancel_once(slots, timeline))
    return SLOTS - slots.free, f"{timeline}\nholds for 1 cancellation"


def main() -> int:
    lost, seen = search()
    print(seen)
    return verdict(lost == 1, f"found {lost} of 1 lost slots")


if __name__ == "__main__":
    start(main)
