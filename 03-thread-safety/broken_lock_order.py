"""
Two agents take two locks in opposite order, and neither ever finishes.

Run:   python broken_lock_order.py
Next:  python fixed_lock_order.py
Real:  https://github.com/NorthlandPositronics/Cogtrix/pull/1403
"""

from threading import Barrier, Lock

from racelab import (
    SyncAsk,
    Timeline,
    Watchdog,
    local_server,
    open_model_sync,
    start,
    verdict,
)

AGENTS = ("scout", "critic")


class Memory:
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.notes: list[str] = []
        self.lock = Lock()


def in_order(agent: str, memories: list[Memory]) -> list[Memory]:
    """Both memories, in the order in which this agent takes their locks."""
    # My own comes first. So each holds what the other one waits for.
    return sorted(memories, key=lambda memory: memory.owner != agent)


def share(
    agent: str, memories: list[Memory], meet: Barrier, ask: SyncAsk, timeline: Timeline
) -> None:
    """Write one finding into both memories: into both, or into none."""
    finding = ask(f"You are the {agent}. What could go wrong?")
    first, second = in_order(agent, memories)
    with first.lock:
        timeline.mark(agent, f"holds {first.owner}'s")
        meet.wait()  # with all that can be here: the worst moment, on every run
        with second.lock:
            timeline.mark(agent, "holds both")
            first.notes.append(finding)
            second.notes.append(finding)
    timeline.mark(agent, "done")


def run(ask: SyncAsk, timeline: Timeline) -> list[str]:
    """Let both agents share; give where those stand that never finish."""
    memories = [Memory(agent) for agent in AGENTS]
    # With different first locks both can hold theirs at once, else only one can.
    firsts = {in_order(agent, memories)[0].owner for agent in AGENTS}
    meet, watchdog = Barrier(len(firsts)), Watchdog(lambda: str(timeline))
    for agent in AGENTS:
        watchdog.start(agent, share, agent, memories, meet, ask, timeline)
    return watchdog.watch()


def main() -> int:
    timeline = Timeline(*AGENTS)
    # The local server answers long before the watchdog's patience ends.
    with local_server() as server, open_model_sync(server) as ask:
        stuck = run(ask, timeline)
    print(timeline, *stuck, sep="\n")
    finished = len(AGENTS) - len(stuck)
    return verdict(not stuck, f"finished {finished} of {len(AGENTS)} agents")


if __name__ == "__main__":
    start(main)
