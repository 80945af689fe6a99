"""
Five agents in threads count words with `+=` under a lock, and all are counted.

Run:   python fixed_counter.py
Next:  python whats_atomic.py
Real:  https://github.com/BerriAI/litellm/pull/34013
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

from racelab import SyncAsk, Timeline, ask_together, open_model_sync, start, verdict

AGENTS = ("scout", "writer", "lawyer", "seller", "auditor")


@dataclass
class Usage:
    answers: list[str] = field(default_factory=list)
    words: int = 0  # in all answers
    lock: Lock = field(default_factory=Lock)  # for `words`


def length(text: str) -> int:
    return len(text.split())


def work(agent: str, usage: Usage, ask: SyncAsk, timeline: Timeline) -> None:
    words = keep(usage, ask(f"As the {agent}, sum up our plan."))
    # Nobody else can be in here, and nobody waits for a model in here.
    with usage.lock:
        timeline.mark(agent, f"sees {usage.words}")
        usage.words += words
        timeline.mark(agent, f"leaves {usage.words}")


def keep(usage: Usage, answer: str) -> int:
    """File the answer, and give its length."""
    usage.answers.append(answer)  # one step, as Python documents
    return length(answer)


def run(ask: SyncAsk, timeline: Timeline) -> Usage:
    """Let all agents work in threads, and give what they have used."""
    usage, ask = Usage(), ask_together(ask, len(AGENTS))
    with ThreadPoolExecutor(len(AGENTS)) as pool:
        list(pool.map(lambda agent: work(agent, usage, ask, timeline), AGENTS))
    return usage


def main() -> int:
    timeline = Timeline(*AGENTS)
    with open_model_sync() as ask:
        usage = run(ask, timeline)
    print(timeline)
    counted, wanted = usage.words, sum(map(length, usage.answers))
    return verdict(counted == wanted, f"counted {counted} of {wanted} words")


if __name__ == "__main__":
    start(main)
