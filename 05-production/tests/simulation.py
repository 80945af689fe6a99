"""A team's whole life in virtual time, drawn from a seed, against a model in memory.

    ran = play(1234)    # the same on every call
    print(ran)          # what was drawn, and what happened, moment by moment

The plan of a run is drawn from its seed: limits, faults, other spenders of the same
limit, questions and where they come from, agents, and how it is stopped. The
`SimulatedServer` keeps limits and breaks as real ones do. Its log is also that of the
observer and of the consumers, and `test_simulation.py` reads it.
"""

import asyncio
import math
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, NamedTuple

from agents import (
    Answer,
    Event,
    InvalidResponse,
    Journal,
    Limits,
    Outcome,
    QuestionFailed,
    Remaining,
    StatusError,
    Summary,
    Team,
    all_of,
)
from racelab.explore.clock import VirtualLoop
from racelab.server.buckets import TokenBucket

FAULTS = ["500", "503", "503 wait", "408", "409", "429", "429 wait", "reset", "hang"]
FAULTS += ["unreadable", "400", "401", "quota", "quota wait", "crash"]
FINAL = ("400", "401", "quota", "quota wait", "crash")  # never pass
STOPS = (
    "cancel",
    "drain",
    "drain, cancel",
    "deadline",
    "exit",
    "break",
    "drop",
    "kill",
)
SOURCES = ("list", "generator", "async", "slow async", "raises", "async hangs")
STYLES = (
    "one by one",
    "run",
    "gather",
    "first",
    "timeout",
    "crash",
    "group",
    "careless",
)
EPS = 1e-6


class Moment(NamedTuple):
    at: float
    what: str
    question: str = ""
    detail: Any = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to happen in one run. The server's figures are the truth."""

    seed: int
    limits: Limits  # what the team is told
    questions: tuple[str, ...]
    source: str = "list"
    consumers: int = 1  # runs of the team at the same time
    by_ask: bool = False  # `team.ask` for each, all at once, and no `run`
    in_order: bool = False
    slow: float = 0.0  # the consumer's mean pause after each outcome
    levels: int = 0  # agents above each question to the model
    stop: str = ""  # one of STOPS
    stop_at: float = 0.0  # seconds, or outcomes before the break
    grace: float = 0.0
    journal: bool = False  # and afterwards a second team that goes on

    rpm: float | None = None
    tpm: float | None = None
    request_burst: float = 1.0
    token_burst: float = 1.0
    latency: float = 1.0
    faults: tuple[tuple[str, float], ...] = ()  # kind, probability
    storms: tuple[tuple[float, float], ...] = ()  # all is refused from .. to
    waits: str = "true"  # what it says in a storm: true, short, 0
    others: tuple[tuple[float, float, float], ...] = ()  # at, requests, tokens
    sizes: tuple[int, int] = (10, 60)  # tokens of a question and its answer
    headers: str = ""  # of what is left, as of "arrival" or "answer"
    usage: bool = True
    estimate: str = "exact"  # exact, over, under

    def random(self, *key: object) -> Random:
        return Random(f"{self.seed}:{key}")

    def tokens(self, question: str) -> int:
        return self.random("tokens", question).randint(*self.sizes)

    def estimated(self, question: str) -> float:
        """What the team reserves. All that is too much fits into what it holds back."""
        need, r = self.tokens(question), self.random("estimate", question)
        if self.estimate == "under":
            return need * r.uniform(0.3, 1)
        if self.estimate == "over":
            held_back = min(self.token_burst / 10, (self.tpm or 0) / 240)
            return need + r.random() * held_back / (self.limits.concurrency + 1)
        return need

    @property
    def knows_limits(self) -> bool:
        """Told the truth, and alone: then nothing may be refused."""
        told = (self.limits.rpm, self.limits.tpm) == (self.rpm, self.tpm)
        is_enough = self.estimate == "exact"
        if self.estimate == "over":  # by a share of the burst
            is_enough = self.limits.token_burst is not None
        return told and not self.others and is_enough

    @property
    def knows_all(self) -> bool:
        """Bursts, too, and what each request will cost: then nobody waits in vain."""
        bursts = (self.limits.request_burst, self.limits.token_burst)
        told = bursts == (self.request_burst, self.token_burst)
        is_calm = not self.storms and not any("429" in kind for kind, _ in self.faults)
        is_exact = self.estimate == "exact" or self.usage
        is_true = is_exact and self.headers != "arrival"
        return self.knows_limits and told and is_calm and is_true


def draw(seed: int) -> Plan:
    r = Random(seed)
    is_known = r.random() < 0.25  # the limits matter, and nothing about them is vague

    def maybe(probability: float, value: Any, otherwise: Any) -> Any:
        return value if r.random() < probability else otherwise

    latency = r.choice((0.0, 0.2, 1.0, 3.0))
    rpm = maybe(0.5, float(r.choice((30, 120, 600, 3000))), None)
    tpm = maybe(
        0.8 if is_known else 0.3, float(r.choice((2_000, 10_000, 60_000))), None
    )
    request_burst = float(r.choice((1, 1, 2, 5, 20)))
    token_burst = float(r.choice((100, 300, 1000)))
    is_told = is_known or r.random() < 0.8  # the limits
    knows_bursts = is_known or r.random() < 0.6
    if not knows_bursts:  # ten seconds' worth
        request_burst = max(1.0, (rpm or 0) / 6)
        token_burst = max(100.0, (tpm or 0) / 6)
    large = (int(token_burst / 2), int(token_burst))
    sizes = r.choice(((10, 60), (20, 20), (1, 100), (1, int(token_burst)), large))
    share = r.choice((0.02, 0.1, 0.3))
    kinds = r.sample(
        [kind for kind in FAULTS if not (is_known and "429" in kind)],
        r.choice((1, 2, 5)),
    )
    if not is_known and r.random() < 0.15:
        kinds, share = ["429 wait"], 0.3
    number = r.choice((15, 30) if is_known else (1, 3, 8, 15, 30))
    levels = maybe(0.3, r.choice((1, 1, 2)), 0)
    names = [f"q{n}" for n in range(max(1, number // (1 + 2 * levels)))]
    stop = maybe(0.2 if is_known else 0.5, r.choice(STOPS), "")
    source = maybe(0.5, r.choice(SOURCES), "list")
    stop_at = r.uniform(0, 1) * r.choice((0.5, 3.0, 20.0))
    deadline = stop_at + 0.001 if stop == "deadline" else 100_000.0
    if source == "async hangs" and stop not in STOPS[:5]:
        deadline = 50.0
    journal = levels == 0 and r.random() < 0.15
    if journal and r.random() < 0.4:
        names = [r.choice(names) for _ in names]  # some of them more than once
    begin = r.uniform(0, 5)
    others = tuple((t, r.randint(0, 9), r.randint(0, 99)) for t in range(30))
    return Plan(
        seed=seed,
        limits=Limits(
            concurrency=r.choice((1, 1, 2, 3, 5, 8)),
            rpm=rpm if is_told else None,
            tpm=tpm if is_told else None,
            request_burst=request_burst if knows_bursts else None,
            token_burst=token_burst if knows_bursts else None,
            timeout=r.choice((0.7, 2.0, 10.0, 60.0)),
            deadline=deadline,
            tries=r.choice((1, 2, 4, 8)),
            refusals=r.choice((0, 1, 5, 100)),
            backoff=r.choice((0.0, 0.5, 2.0)),
            longest_backoff=r.choice((1.0, 30.0)),
            free_retries=r.choice((0, 3, 10, 100)),
            retry_share=r.choice((0.0, 0.2, 1.0)),
            hedge=maybe(0.2, r.choice((0.1, 0.5, 2.0)), None),
        ),
        questions=tuple(names),
        source=source,
        consumers=r.choice((1, 1, 1, 2)),
        by_ask=r.random() < 0.1,
        in_order=r.random() < 0.3,
        slow=maybe(0.25, r.choice((0.1, 2.0)), 0.0),
        levels=levels,
        stop=stop,
        stop_at=r.randint(0, number) if stop in ("break", "drop") else stop_at,
        grace=r.choice((0.0, 0.5, 5.0)),
        journal=journal,
        rpm=rpm,
        tpm=tpm,
        request_burst=request_burst,
        token_burst=token_burst,
        latency=latency,
        faults=maybe(0.6, tuple((kind, share) for kind in kinds), ()),
        storms=maybe(
            0 if is_known else 0.2, ((begin, begin + r.choice((0.5, 5.0))),), ()
        ),
        waits=r.choice(("true", "true", "short", "0")),
        others=maybe(0 if is_known else 0.2, others, ()),
        sizes=sizes,
        headers=maybe(0.5, "answer" if is_known else "arrival", ""),
        usage=r.random() < 0.8,
        estimate=r.choice(
            ("exact", "over") if is_known else ("exact", "over", "under")
        ),
    )


class SimulatedServer:
    """A model with limits and faults. Its `ask` is what the team is given."""

    def __init__(self, plan: Plan, log: list[Moment]) -> None:
        self.plan, self.log = plan, log
        self.in_flight = self.over_limit = 0
        self.received = Counter[str]()
        self.seconds = defaultdict[str, float](float)
        self.delivered = Counter[str]()
        self.requests = self.tokens = None
        if plan.rpm is not None:
            self.requests = TokenBucket(plan.rpm, plan.request_burst, 0.0)
        if plan.tpm is not None:
            self.tokens = TokenBucket(plan.tpm, plan.token_burst, 0.0)
        self.others = sorted(plan.others, reverse=True)

    def refill(self, now: float) -> None:
        """Until now, with what others have spent meanwhile."""
        while self.others and self.others[-1][0] <= now:
            at, *amounts = self.others.pop()
            self.refill(at)
            for bucket, amount in zip(self.buckets, amounts, strict=True):
                if bucket is not None and not bucket.wait(amount):
                    bucket.take(amount)
        for bucket in self.buckets:
            if bucket is not None:
                bucket.refill(now)

    @property
    def buckets(self) -> tuple[TokenBucket | None, TokenBucket | None]:
        return self.requests, self.tokens

    def remaining(self) -> Remaining:
        self.refill(now())
        left = [
            None if bucket is None else max(0.0, math.floor(bucket.level + EPS))
            for bucket in self.buckets
        ]
        return Remaining(*left)

    async def ask(self, question: str) -> Answer:
        begun = now()
        self.received[question] += 1
        self.in_flight += 1
        self.log.append(Moment(begun, "arrived", question))
        how = "left"
        try:
            answer = await self._serve(question)
            how = "delivered"
            self.delivered[question] += 1
            return answer
        except Exception as error:
            how = str(getattr(error, "kind", "refused"))
            raise
        finally:
            self.in_flight -= 1
            self.seconds[question] += now() - begun
            self.log.append(Moment(now(), how, question))

    async def _serve(self, question: str) -> Answer:
        plan, number = self.plan, self.received[question]
        r, need = plan.random(question, number), plan.tokens(question)
        kind = next((k for k, share in plan.faults if r.random() < share), "")
        self._storm(r)
        is_refused = kind.startswith(("4", "quota"))  # it costs no tokens
        self._admit(0 if is_refused else need)
        if plan.headers == "arrival":
            remaining = self.remaining()
        if kind == "hang":
            await asyncio.Event().wait()
        seconds = plan.latency * r.choice((0.0, r.random(), 1.0, r.expovariate(1)))
        if seconds and not (is_refused and plan.tpm):  # else: tokens back too late
            await asyncio.sleep(seconds)
        if plan.headers != "arrival":
            remaining = self.remaining() if plan.headers else Remaining()
        if kind:
            raise fault(kind, r, remaining)
        prompt = r.randint(0, need)
        if not plan.usage:
            return Answer(text_of(question), remaining=remaining)
        return Answer(text_of(question), prompt, need - prompt, remaining)

    def _storm(self, r: Random) -> None:
        for begin, end in self.plan.storms:
            if begin <= now() < end:
                waits = {"true": end - now(), "short": r.random() / 2, "0": 0.0}
                self._refuse(waits[self.plan.waits])

    def _admit(self, tokens: int) -> None:
        self.refill(now())
        waits = [b.wait(n) for b, n in self._due(tokens)]
        if max(waits, default=0.0) > EPS:
            self.over_limit += 1
            if self.requests is not None:
                self.requests.take(1)
            self._refuse(max(b.wait(n) for b, n in self._due(tokens)), charge=False)
        for bucket, amount in self._due(tokens):
            bucket.take(amount)

    def _due(self, tokens: int) -> Iterator[tuple[TokenBucket, float]]:
        for bucket, amount in zip(self.buckets, (1, tokens), strict=True):
            if bucket is not None:
                yield bucket, amount

    def _refuse(self, wait: float, charge: bool = True) -> None:
        if charge and self.requests is not None:
            self.refill(now())
            self.requests.take(1)  # a refused request counts
        error = StatusError(429, "slow down", retry_after=wait)
        error.kind = f"429 wait {wait}"  # type: ignore[attr-defined]
        raise error


def fault(kind: str, r: Random, remaining: Remaining) -> Exception:
    wait = r.choice((0.1, 1.0, 4.0)) if kind.endswith("wait") else None
    error: Exception
    match kind.split()[0]:
        case "reset":
            error = ConnectionResetError("reset")
        case "unreadable":
            error = InvalidResponse("half an answer")
        case "crash":
            error = ZeroDivisionError("a bug in the ask")
        case "quota":
            error = StatusError(429, "pay", code="insufficient_quota", retry_after=wait)
        case status:
            error = StatusError(
                int(status), "no", retry_after=wait, remaining=remaining
            )
    vars(error)["kind"] = kind if wait is None else f"{kind} {wait}"
    return error


def text_of(question: str) -> str:
    return f"On {question}: yes."


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(eq=False)
class Part:
    """A `run` of the team, or one that an agent has begun, and what came of it."""

    questions: list[str]
    in_order: bool = False
    is_agents: bool = False  # agents answer, not the model
    pulled: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    is_finished: bool = False  # it came to its end by itself
    error: BaseException | None = None
    ended: float = math.inf


@dataclass(eq=False, repr=False)
class SimulatedRun:
    plan: Plan
    log: list[Moment]
    server: SimulatedServer
    summary: Summary
    parts: list[Part] = field(default_factory=list)  # of the first team
    resumed: Part | None = None  # of the second
    over: float = math.inf  # when everything was to be over
    exit_began: float = math.inf
    ended: float = math.inf
    left: list[str] = field(default_factory=list)
    resumed_after: int = 0  # moments

    def __str__(self) -> str:
        lines = [str(self.plan)]
        for at, what, question, detail in self.log:
            if isinstance(detail, Event):
                detail = f"{detail.detail} {detail.wait or ''}"
            if what != "idle":
                line = f"{at:10.4f}  {what:18} {question:9} {detail or ''}"
                lines.append(line.rstrip())
        return "\n".join(lines)


def left_behind(team: Team, tasks: int = 1) -> list[str]:
    """What is still taken, waited for, or running: nothing, after the end."""
    found = list(_held(team, "team", team.limits.concurrency))
    others = len(asyncio.all_tasks()) - tasks
    return found + [f"{others} tasks"] * bool(others)


def _held(owner: object, name: str, slots: int) -> Iterator[str]:
    """In all that belongs to the team, whatever its parts are called."""
    for key, value in vars(owner).items():
        path = f"{name}.{key}"
        if isinstance(value, asyncio.Semaphore):
            if value._value != slots or value.locked():
                yield f"{path}: {value._value} of {slots}"
        elif isinstance(value, asyncio.Lock):
            if value.locked():
                yield f"{path}: locked"
        elif isinstance(value, set | deque):
            if value:
                yield f"{path}: {len(value)}"
        elif type(value).__module__.startswith("agents.") and hasattr(
            value, "__dict__"
        ):
            yield from _held(value, path, slots)


class SimulationLoop(VirtualLoop):
    """A loop that notes the state of things each time that no task can run."""

    note: Callable[[], None] | None = None

    def jump(self) -> bool:
        if self.note is not None:
            self.note()
        return super().jump()


def play(seed: int) -> SimulatedRun:
    """Raises whatever no run should raise."""
    with asyncio.Runner(loop_factory=SimulationLoop) as runner:
        return runner.run(Life(draw(seed)).whole())


class Life:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.log = plan, list[Moment]()
        self.server = SimulatedServer(plan, self.log)
        self.ran = SimulatedRun(plan, self.log, self.server, Summary())
        self.journal = Journal(":memory:") if plan.journal else None

    def note(self, what: str, question: str = "", detail: Any = None) -> None:
        self.log.append(Moment(now(), what, question, detail))

    def idle(self) -> None:
        """Nobody can run: what would the server let through?"""
        self.server.refill(now())
        levels = [b and b.level for b in self.server.buckets]
        if self.log and self.log[-1][:2] == (now(), "idle"):
            self.log.pop()
        self.note("idle", "", (self.server.in_flight, *levels))

    def complain(self, loop: object, context: dict[str, Any]) -> None:
        """What asyncio would only log."""
        what = f"{context['message']}: {context.get('exception')}"
        self.log.append(Moment(0.0, "complained", "", what))

    def saw(self, event: Event) -> None:
        self.log.append(Moment(event.at, event.kind, event.question, event))

    def team(self, limits: Limits, seed: int) -> Team:
        observer = all_of(self.ran.summary, self.saw)
        return Team(
            self.server.ask,
            limits,
            journal=self.journal,
            observer=observer,
            estimate=self.plan.estimated,
            rng=self.plan.random("team", seed),
        )

    async def whole(self) -> SimulatedRun:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulationLoop)
        loop.note = self.idle
        loop.set_exception_handler(self.complain)
        await self.first_team()
        loop.note = None
        if self.journal is not None:
            await self.second_team()
            self.journal.close()
        return self.ran

    async def first_team(self) -> None:
        plan, ran, loop = self.plan, self.ran, asyncio.get_running_loop()
        shares = [plan.questions[n :: plan.consumers] for n in range(plan.consumers)]
        async with self.team(plan.limits, 1) as team:
            over = [plan.limits.deadline]
            consumers = [
                asyncio.create_task(self.consume(team, list(s))) for s in shares
            ]
            if plan.stop == "cancel":
                over.append(plan.stop_at)
                loop.call_at(plan.stop_at, self.stop, team.cancel)
            if plan.stop.startswith("drain"):
                over.append(plan.stop_at + plan.grace)
                drain = partial(team.drain, plan.grace)
                loop.call_at(plan.stop_at, self.stop, drain)
            if plan.stop == "drain, cancel":
                over.append(plan.stop_at + plan.grace / 2)
                loop.call_at(over[-1], self.stop, team.cancel)
            if plan.stop == "kill":
                loop.call_at(plan.stop_at, self.stop, consumers[0].cancel)
            if plan.stop == "exit":
                await asyncio.wait(consumers, timeout=plan.stop_at)
            else:
                await asyncio.wait(consumers)
            ran.exit_began = now()
            self.note("exit")
        ran.ended = now()
        ran.over = min([ran.ended, *over])
        self.note("ended")
        await asyncio.wait(consumers)
        turns = 0  # of the loop: what was dropped, it closes
        while len(asyncio.all_tasks()) > 1 and turns < 100:
            await asyncio.sleep(0)
            turns += 1
        ran.left = left_behind(team)

    def stop(self, what: Callable[[], object]) -> None:
        self.note("stop")
        what()

    async def second_team(self) -> None:
        """Goes on with the journal; no more faults, and all the time in the world."""
        self.ran.resumed_after = len(self.log)
        self.server.plan = Plan(
            seed=self.plan.seed,
            limits=self.plan.limits,
            questions=self.plan.questions,
            sizes=self.plan.sizes,
        )
        self.server.requests = self.server.tokens = None
        part = self.ran.resumed = Part(list(self.plan.questions))
        async with self.team(Limits(), 2) as team:
            async for outcome in team.run(self.listed(part)):
                part.outcomes.append(outcome)
                self.got(outcome)
        part.is_finished = True

    def got(self, outcome: Outcome) -> None:
        how = str(outcome.failure.kind) if outcome.failure else "ok"
        counts = (outcome.requests, outcome.waited, outcome.in_flight, outcome.tokens)
        self.note("got", outcome.question, (how, *counts))

    # Where the questions come from

    def listed(self, part: Part) -> Iterator[str]:
        for question in part.questions:
            part.pulled.append(question)
            self.note("pulled", question)
            yield question

    def raising(self, part: Part) -> Iterator[str]:
        yield from self.listed(part)
        raise LookupError("the source of the questions failed")

    async def streamed(self, part: Part) -> AsyncIterator[str]:
        r = self.plan.random("source", part.questions[:1])
        for question in self.listed(part):
            yield question
            if self.plan.source != "async":
                await asyncio.sleep(r.choice((0.0, 0.3, 2.0)) * r.random())
        if self.plan.source == "async hangs":
            await asyncio.Event().wait()

    # What becomes of them

    async def consume(self, team: Team, questions: list[str]) -> None:
        plan = self.plan
        part = Part(questions, plan.in_order and not plan.by_ask)
        part.is_agents = plan.levels > 0
        self.ran.parts.append(part)
        try:
            if plan.by_ask:
                part.is_agents = False
                part.pulled += questions
                asks = [asyncio.create_task(team.ask(q)) for q in questions]
                for ask in asks:
                    self.keep(part, await ask)
            else:
                await self.run(team, part)
        except Exception as error:
            part.error = error
        finally:
            part.ended = now()

    async def run(self, team: Team, part: Part) -> None:
        plan, pauses = self.plan, self.plan.random("consumer", part.questions[:1])
        if plan.source == "raises":
            source: Any = self.raising(part)
        elif "async" in plan.source:
            source = self.streamed(part)
        else:
            source = self.listed(part)
        agent = self.agent(team, 1) if plan.levels else None
        run = team.run(source, agent=agent, in_order=plan.in_order)
        if plan.stop == "drop":
            async for outcome in run:
                self.keep(part, outcome)
                if len(part.outcomes) >= plan.stop_at:
                    return
        else:
            async with aclosing(run):
                async for outcome in run:
                    self.keep(part, outcome)
                    if plan.stop == "break" and len(part.outcomes) >= plan.stop_at:
                        return
                    if plan.slow:
                        await asyncio.sleep(pauses.expovariate(1 / plan.slow))
        part.is_finished = True

    def keep(self, part: Part, outcome: Outcome) -> None:
        part.outcomes.append(outcome)
        self.got(outcome)

    # Agents that ask

    def agent(self, team: Team, level: int) -> Callable[[str], Awaitable[str]]:
        deeper = self.agent(team, level + 1) if level < self.plan.levels else None

        async def agent(question: str) -> str:
            r = self.plan.random("agent", question)
            style = r.choice(STYLES)
            questions = [f"{question}.{n}" for n in range(r.randint(1, 4))]
            if style in ("run", "first", "careless"):
                part = Part(questions, r.random() < 0.5, deeper is not None)
                self.ran.parts.append(part)
                source = self.listed(part)
                run = team.run(source, agent=deeper, in_order=part.in_order)
                if style == "careless":  # it may raise, and closes nothing
                    return " ".join([o.text async for o in run])
                async with aclosing(run):
                    async for outcome in run:
                        self.keep(part, outcome)
                        if style == "first":
                            return outcome.question
                part.is_finished = True
                return " ".join(o.text for o in part.outcomes if o.answer)
            return await self.asked(team, style, questions, r)

        return agent

    async def asked(
        self, team: Team, style: str, questions: list[str], r: Random
    ) -> str:
        part = Part(questions, pulled=questions)
        self.ran.parts.append(part)

        async def one(question: str) -> str:
            outcome = await team.ask(question)
            self.keep(part, outcome)
            return outcome.text  # raises QuestionFailed

        if style == "one by one":
            texts = [await one(question) for question in questions]
        elif style == "timeout":
            async with asyncio.timeout(r.choice((0.1, 1.0, 5.0))):
                texts = [await one(question) for question in questions]
        elif style == "group":
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(question)) for question in questions]
            texts = [task.result() for task in tasks]
        elif style == "gather":
            found = await asyncio.gather(*map(one, questions), return_exceptions=True)
            texts = [text for text in found if isinstance(text, str)]
            for error in found:
                assert isinstance(error, str | QuestionFailed), error
        else:
            await one(questions[0])
            raise ZeroDivisionError("a bug in the agent")
        part.is_finished = True
        return " ".join(texts)
