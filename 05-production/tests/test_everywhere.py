"""A team cancelled at every await, failed at every call, in every order of answers."""

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
from simulation import left_behind

from agents import Answer, Ask, FailureKind, Limits, Outcome, Summary, Team
from racelab.explore import cancel_everywhere, explore, fail_everywhere
from racelab.explore.fault_injection import Injected
from racelab.explore.search import random_orders

QUESTIONS = ["one", "two", "three"]
LIMITS = Limits(concurrency=2, tries=2, backoff=0.1, free_retries=5, retry_share=0)


class TeamLab:
    """Runs a team in a world where answers come when they are told to."""

    topics = QUESTIONS

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits

    async def __call__(self, ask: Ask) -> None:
        """Ask, and look at what is left, whatever happens to us."""
        self.outcomes: list[Outcome] = []
        self.summary, self.asked = Summary(), Counter[str]()

        async def counted(question: str) -> str:
            self.asked[question] += 1
            answer = await ask(question)
            assert isinstance(answer, str)
            return answer

        rng = random.Random(0)
        team = Team(counted, self.limits, observer=self.summary, rng=rng)
        try:
            async with team:
                await self.work(team)
        finally:
            self.left = left_behind(team)

    async def work(self, team: Team) -> None:
        async for outcome in team.run(QUESTIONS):
            self.outcomes.append(outcome)

    def is_tidy(self, *_: object) -> bool:
        """All is given back, and all is counted."""
        assert self.left == []
        assert self.summary["sent"] == self.asked.total()
        assert self.summary["retried"] <= self.limits.free_retries
        return self.summary.open == 0

    def all_have_ended(self, *_: object) -> bool:
        """Each once, in one way or the other."""
        assert sorted(o.question for o in self.outcomes) == sorted(self.topics)
        return self.is_tidy()

    def all_are_answered(self, *_: object) -> bool:
        assert all(outcome.answer for outcome in self.outcomes)
        return self.all_have_ended()


class InOrderLab(TeamLab):
    async def work(self, team: Team) -> None:
        async for outcome in team.run(QUESTIONS, in_order=True):
            self.outcomes.append(outcome)
        assert [outcome.question for outcome in self.outcomes] == QUESTIONS


class NestedLab(TeamLab):
    """Two agents, each of which asks the team two questions."""

    topics = QUESTIONS[:2]

    async def work(self, team: Team) -> None:
        async def agent(topic: str) -> str:
            asked = [f"{topic}, first", f"{topic}, then"]
            return " ".join([outcome.text async for outcome in team.run(asked)])

        async for outcome in team.run(self.topics, agent=agent):
            self.outcomes.append(outcome)


HEDGED = Limits(concurrency=2, hedge=1, tries=2, backoff=0.1)
PACED = Limits(
    concurrency=2, rpm=600, request_burst=1, tpm=6000, token_burst=20, answer_tokens=10
)
LABS: dict[str, Callable[[], TeamLab]] = {
    "plain": TeamLab,
    "in order": InOrderLab,
    "agents": NestedLab,
    "agents, one slot": lambda: NestedLab(Limits(concurrency=1, tries=2)),
    "hedged": lambda: TeamLab(HEDGED),
    "paced": lambda: TeamLab(PACED),
}


@pytest.mark.parametrize("lab", LABS.values(), ids=LABS)
def test_nothing_is_left_wherever_it_is_cancelled(lab: Callable[[], TeamLab]) -> None:
    here = lab()
    report = cancel_everywhere(here, here.is_tidy)
    assert report.holds, report
    assert report.runs > 20


@pytest.mark.parametrize("error", [Injected, TimeoutError])
@pytest.mark.parametrize("lab", LABS.values(), ids=LABS)
def test_each_call_may_fail_once(
    lab: Callable[[], TeamLab], error: Callable[[], Exception]
) -> None:
    here = lab()
    report = fail_everywhere(here, here.all_are_answered, error=error)
    assert report.holds, report
    assert report.runs >= 3


@pytest.mark.parametrize("lab", LABS.values(), ids=LABS)
def test_what_is_not_retried_costs_one_answer_at_most(
    lab: Callable[[], TeamLab],
) -> None:
    here = lab()
    report = fail_everywhere(here, here.all_have_ended, error=ZeroDivisionError)
    assert report.holds, report
    kinds = [outcome.failure.kind for outcome in here.outcomes if outcome.failure]
    assert kinds == [FailureKind.CRASHED]


@pytest.mark.parametrize("lab", [TeamLab, InOrderLab, NestedLab])
def test_every_order_of_answers_keeps_all_of_them(lab: Callable[[], TeamLab]) -> None:
    here = lab()
    report = explore(
        here, here.all_are_answered, max_timer_delay=0
    )  # no timeout comes first
    assert report.exhausted, report


@pytest.mark.parametrize("lab", [TeamLab, InOrderLab])
def test_every_order_of_answers_and_timeouts_ends_all(
    lab: Callable[[], TeamLab],
) -> None:
    here = lab()
    report = explore(here, here.all_have_ended)
    assert report.exhausted, report


@pytest.mark.parametrize("lab", LABS.values(), ids=LABS)
def test_many_orders_of_answers_and_timeouts_end_all(
    lab: Callable[[], TeamLab],
) -> None:
    here = lab()
    report = explore(here, here.all_have_ended, strategy=random_orders(), runs=200)
    assert report.holds, report


def test_a_retry_may_come_before_or_after_any_answer() -> None:
    limits = Limits(
        concurrency=2, tries=2, backoff=0.1, timeout=math.inf, deadline=math.inf
    )
    here = TeamLab(limits)

    async def fails_once(ask: Ask) -> None:
        async def flaky(question: str) -> str | Answer:
            answer = await ask(question)
            if question == "one" and here.asked["one"] == 1:
                raise ConnectionResetError("the first time")
            return answer

        await here(flaky)
        assert here.summary["retried"] == 1

    report = explore(fails_once, here.all_are_answered)
    assert report.exhausted, report
