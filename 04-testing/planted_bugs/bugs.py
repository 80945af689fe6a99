"""Eight planted bugs, each with its fix and one invariant for both.

`benchmark_race_detection.py` hunts them. An object is the state that agents share. Each
agent calls `broken` or `fixed` on it, and the search calls `holds` at the end. Locks
are injected, so that a search can use its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from racelab import Ask, SyncAsk

QUESTION = "What could go wrong?"


@dataclass
class Planted:
    new_lock: Callable[[], Any] = field(repr=False)
    agents: ClassVar[tuple[str, ...]] = ("scout", "critic", "writer")
    in_threads: ClassVar[bool] = False
    merges: ClassVar[bool] = False  # the fields are all data, so states can be compared

    def __post_init__(self) -> None:
        self.lock = self.new_lock()

    async def plan(self, agent: str, ask: Ask) -> None:
        """Ask nothing as the first agent, once as the second, twice as the third."""
        for _ in range(self.agents.index(agent)):
            await ask("What do we know?")


@dataclass
class LostUpdate(Planted):
    name = "lost update"
    findings: int = 0

    async def broken(self, agent: str, ask: Ask) -> None:
        await ask("What do we know?")
        before = self.findings
        await ask(QUESTION)
        self.findings = before + 1

    async def fixed(self, agent: str, ask: Ask) -> None:
        await ask("What do we know?")
        await ask(QUESTION)
        before = self.findings
        self.findings = before + 1

    def holds(self) -> bool:
        return self.findings == len(self.agents)


@dataclass
class Overspend(Planted):
    name = "overspend"
    left: int = 2  # calls that the budget pays for

    async def broken(self, agent: str, ask: Ask) -> None:
        await self.plan(agent, ask)
        if self.left > 0:
            await ask(QUESTION)
            self.left -= 1

    async def fixed(self, agent: str, ask: Ask) -> None:
        await self.plan(agent, ask)
        if self.left > 0:
            self.left -= 1
            await ask(QUESTION)

    def holds(self) -> bool:
        return self.left == 0


@dataclass
class InterleavedHistory(Planted):
    name = "interleaved history"
    history: list[str] = field(default_factory=list)

    async def talk(self, agent: str, ask: Ask) -> None:
        self.history.append(agent)  # the question
        await ask(QUESTION)
        self.history.append(agent)  # the answer

    async def broken(self, agent: str, ask: Ask) -> None:
        await self.plan(agent, ask)
        await self.talk(agent, ask)

    async def fixed(self, agent: str, ask: Ask) -> None:
        await self.plan(agent, ask)
        async with self.lock:
            await self.talk(agent, ask)

    def holds(self) -> bool:
        return self.history[::2] == self.history[1::2]


@dataclass
class RareOrder(Planted):
    """A bug in 102 of 34,650 orders: an agent's work falls into one wait of the editor.

    The same code as in `fixed_stress_test.py`, without its timeline.
    """

    name = "rare order"
    agents = ("editor", "scout", "critic")
    merges = True
    findings: tuple[str, ...] = ()
    busy: int = 0  # agents
    read: tuple[str, ...] = ()  # by the editor
    quiet: bool = False  # no agent was busy then

    async def broken(self, agent: str, ask: Ask) -> None:
        await self.work(agent, ask, lambda: not self.busy)

    async def fixed(self, agent: str, ask: Ask) -> None:
        await self.work(agent, ask, lambda: self.findings == self.read)

    async def work(self, agent: str, ask: Ask, safe: Callable[[], bool]) -> None:
        if agent == "editor":
            await self.edit(ask, safe)
            return
        await ask("What do you need?")
        self.busy += 1
        for step in ("Search.", "Read.", QUESTION):
            await ask(step)
        self.findings = (*self.findings, agent)
        self.busy -= 1

    async def edit(self, ask: Ask, safe: Callable[[], bool]) -> None:
        for step in ("Choose a title.", "Choose a style.", "Choose a layout."):
            await ask(step)
        self.read, self.quiet = self.findings, not self.busy
        await ask("How do we sort?")
        if self.quiet and safe():
            self.findings = tuple(sorted(self.read))

    def holds(self) -> bool:
        return len(self.findings) == 2


@dataclass
class DoubleInit(Planted):
    name = "double init"
    opened: int = 0
    session: str | None = None

    async def open_once(self, ask: Ask) -> None:
        if self.session is None:
            self.session = await ask("Open a session.")
            self.opened += 1

    async def broken(self, agent: str, ask: Ask) -> None:
        await self.open_once(ask)
        await ask(QUESTION)

    async def fixed(self, agent: str, ask: Ask) -> None:
        async with self.lock:
            await self.open_once(ask)
        await ask(QUESTION)

    def holds(self) -> bool:
        return self.opened == 1


@dataclass
class LockOrder(Planted):
    """A deadlock, if each agent gets its first lock."""

    name = "lock order"
    agents = ("scout", "critic")

    def __post_init__(self) -> None:
        self.notes, self.tools = self.new_lock(), self.new_lock()

    async def share(self, first: Any, second: Any, ask: Ask) -> None:
        async with first:
            await ask("Which tool fits?")
            async with second:
                await ask(QUESTION)

    async def broken(self, agent: str, ask: Ask) -> None:
        for _ in range(2 * self.agents.index(agent)):  # the critic plans first
            await ask("What do we know?")
        locks = self.notes, self.tools
        first, second = locks if agent == "scout" else locks[::-1]
        await self.share(first, second, ask)

    async def fixed(self, agent: str, ask: Ask) -> None:
        for _ in range(2 * self.agents.index(agent)):
            await ask("What do we know?")
        await self.share(self.notes, self.tools, ask)

    def holds(self) -> bool:
        return True  # no deadlock, because all agents have ended


@dataclass
class ThreadLostUpdate(Planted):
    name = "thread lost update"
    agents = ("scout", "critic")
    in_threads = True
    calls: int = 0

    def broken(self, agent: str, ask: SyncAsk) -> None:
        ask(QUESTION)
        before = self.calls
        self.calls = before + 1

    def fixed(self, agent: str, ask: SyncAsk) -> None:
        ask(QUESTION)
        with self.lock:
            before = self.calls
            self.calls = before + 1

    def holds(self) -> bool:
        return self.calls == len(self.agents)


@dataclass
class ThreadDictIterated(Planted):
    """RuntimeError: dictionary changed size during iteration."""

    name = "thread dict iterated"
    agents = ("scout", "critic")
    in_threads = True
    findings: dict[str, int] = field(default_factory=lambda: {"seller": 1, "lawyer": 1})
    counted: int = 0

    def save(self) -> None:
        self.findings["scout"] = 1

    def count(self) -> None:
        for finding in self.findings:
            self.counted += self.findings[finding]

    def broken(self, agent: str, ask: SyncAsk) -> None:
        ask(QUESTION)
        if agent == "scout":
            self.save()
        else:
            self.count()

    def fixed(self, agent: str, ask: SyncAsk) -> None:
        ask(QUESTION)
        with self.lock:
            if agent == "scout":
                self.save()
            else:
                self.count()

    def holds(self) -> bool:
        return self.counted in (2, 3)


BUGS: tuple[type[Any], ...] = (
    LostUpdate,
    Overspend,
    InterleavedHistory,
    RareOrder,
    DoubleInit,
    LockOrder,
    ThreadLostUpdate,
    ThreadDictIterated,
)
