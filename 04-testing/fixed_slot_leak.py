"""
A test that cancels at every await, one after another, finds the lost slot.

Run:   python fixed_slot_leak.py
Next:  python broken_mock_only.py
Real:  https://github.com/BerriAI/litellm/issues/20256
"""

from functools import partial

from racelab import Ask, Timeline, start, verdict
from racelab.explore import cancel_everywhere

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


def search() -> tuple[int, str]:
    """The test: how many slots does it find lost, and what has it seen?"""
    slots = Slots()
    # At the first await, then, in a new run, at the second, and so on.
    report = cancel_everywhere(
        partial(run, slots), lambda: slots.free == SLOTS, agents=("scout",)
    )
    return SLOTS - slots.free, str(report)


def main() -> int:
    lost, seen = search()
    print(seen)
    return verdict(lost == 1, f"found {lost} of 1 lost slots")


if __name__ == "__main__":
    start(main)
