"""
Five agents in threads count words with `+=`, and only one agent's words are counted.

Run:   python broken_counter.py
Next:  python fixed_counter.py
Real:  https://github.com/BerriAI/litellm/pull/34013
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from racelab import SyncAsk, Timeline, ask_together, open_model_sync, start, verdict

AGENTS = ("scout", "writer", "lawyer", "seller", "auditor")


@dataclass
class Usage:
    answers: list[str] = field(default_factory=list)
    words: int = 0  # in all answers


def length(text: str) -> int:
    return len(text.split())


def work(agent: str, usage: Usage, ask: SyncAsk, timeline: Timeline) -> None:
    timeline.mark(agent, f"sees {usage.words}")
    # `+=` reads `usage.words` first, then asks, then writes: the others read 0, too.
    usage.words += keep(usage, ask(f"As the {agent}, sum up our plan."))
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
