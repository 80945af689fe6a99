"""
A tool in a thread times out and is tried again, and one order is paid for twice.

Run:   python broken_tool_timeout.py
Next:  python fixed_tool_timeout.py
Real:  https://github.com/crewAIInc/crewAI/issues/5802
"""

import asyncio
from threading import Event, Lock

from racelab import Timeline, start, verdict

ORDER = "order-17"  # one number for all tries
TRY_TIMEOUT = 0.5  # seconds for one try


class Bank:
    """Stands for a payment service. Its requests are served by threads."""

    def __init__(self) -> None:
        self.charges: list[str] = []  # the orders that were charged
        self.receipts: dict[str, str] = {}  # of each order
        self.lock = Lock()

    def charge(self, order: str) -> str:
        # Each try is a new order to the bank.
        with self.lock:
            self.charges.append(order)
            self.receipts[order] = f"receipt {len(self.charges)}"
            return self.receipts[order]


def pay(attempt: int, bank: Bank, network: Event, timeline: Timeline) -> None:
    """The tool. It is not async, so each try has a thread of its own."""
    timeline.mark(f"try {attempt}", "sends")
    if attempt == 1:
        network.wait()  # slow: when it gets through, all seems to be over
    receipt = bank.charge(ORDER)
    timeline.mark(f"try {attempt}", f"has {receipt}")


async def buy(bank: Bank, network: Event, timeline: Timeline) -> None:
    for attempt in (1, 2):
        try:
            async with asyncio.timeout(TRY_TIMEOUT):
                await asyncio.to_thread(pay, attempt, bank, network, timeline)
        except TimeoutError:
            # Nobody waits for the thread any more, but nothing can stop it.
            timeline.mark("buyer", f"gives up try {attempt}")
        else:
            timeline.mark("buyer", "is done")
            return


async def run(timeline: Timeline) -> list[str]:
    """Let the buyer order once; give what was charged when all threads have ended."""
    bank, network = Bank(), Event()
    try:
        await buy(bank, network, timeline)
    finally:
        network.set()
        await asyncio.get_running_loop().shutdown_default_executor()
    return bank.charges


async def main() -> int:
    timeline = Timeline("buyer", "try 1", "try 2")
    charges = await run(timeline)
    print(timeline)
    return verdict(len(charges) == 1, f"charged {len(charges)}x for 1 order")


if __name__ == "__main__":
    start(main)
