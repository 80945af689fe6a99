"""`agents.observe`: what an observer is told, and the observers that are shipped."""

import asyncio
import logging

import pytest
from fixed_draws import Shortest

from agents import Event, Limits, StatusError, Summary, Team, all_of, log_to
from agents.observe import KINDS

LOGGER = logging.getLogger("a team")


async def watched(*faults: Exception, **limits: int) -> tuple[list[Event], Summary]:
    """One question; answers take a second, the first ones are these faults."""
    left, events, summary = list(faults), list[Event](), Summary()

    async def ask(question: str) -> str:
        await asyncio.sleep(1)
        if left:
            raise left.pop(0)
        return "Yes."

    everybody = all_of(events.append, summary, log_to(LOGGER))
    policy = Limits(**limits)
    async with Team(ask, policy, observer=everybody, rng=Shortest()) as team:
        await team.ask("A secret?")
    return events, summary


@pytest.mark.virtual_time
async def test_an_answer_is_queued_sent_and_answered() -> None:
    events, _ = await watched()
    assert [event.kind for event in events] == ["queued", "sent", "answered"]
    assert [event.at for event in events] == [0, 0, 1]
    assert [event.requests for event in events] == [0, 1, 1]
    assert {event.question for event in events} == {"A secret?"}
    assert events[-1].outcome is not None
    assert events[-1].outcome.text == "Yes."


@pytest.mark.virtual_time
async def test_refusal_and_retry_events_name_reason_and_wait() -> None:
    faults = StatusError(429, "slow down", retry_after=8), StatusError(500, "oh")
    events, _ = await watched(*faults)
    kinds = ["queued", "sent", "refused", "paused", "sent", "retried", "sent"]
    assert [event.kind for event in events] == [*kinds, "answered"]
    told = {event.kind: event for event in events}
    assert (told["refused"].wait, told["refused"].detail) == (8, "429 slow down")
    assert told["paused"].wait == 8
    assert told["retried"].detail == "refused: 500 oh"
    assert told["answered"].requests == 3


@pytest.mark.virtual_time
async def test_a_failure_is_told_with_its_kind_and_outcome() -> None:
    events, summary = await watched(StatusError(400, "bad"))
    assert events[-1].kind == "failed"
    assert events[-1].detail == "refused: 400 bad"
    assert events[-1].outcome is not None
    assert summary.failures == {"refused": 1}


@pytest.mark.virtual_time
async def test_every_kind_of_event_is_named() -> None:
    faults = StatusError(429, retry_after=1), StatusError(500), StatusError(400)
    events, _ = await watched(*faults)
    more, _ = await watched()
    assert {event.kind for event in events + more} == set(KINDS)


@pytest.mark.virtual_time
async def test_a_summary_counts_and_says_it_in_one_line() -> None:
    _, summary = await watched(StatusError(500), StatusError(500), tries=9)
    assert (summary["sent"], summary["retried"], summary["refused"]) == (3, 2, 0)
    assert summary.open == 0
    assert str(summary) == "1 queued, 3 sent, 2 retried, 1 answered"


def test_what_is_open_was_queued_and_has_not_ended() -> None:
    summary = Summary()
    for kind in ("queued", "queued", "queued", "sent", "answered", "failed"):
        summary(Event(kind, "Why?", at=0))
    assert summary.open == 1


@pytest.mark.virtual_time
async def test_the_log_has_no_questions_and_failures_stand_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER.name)
    await watched(
        StatusError(429, retry_after=1), StatusError(500), StatusError(400, "bad")
    )
    assert "secret" not in caplog.text
    levels = {
        record.getMessage().split()[0]: record.levelname for record in caplog.records
    }
    assert levels == {
        "queued": "DEBUG",
        "sent": "DEBUG",
        "refused": "INFO",
        "paused": "INFO",
        "retried": "INFO",
        "failed": "WARNING",
    }
    assert "bad" in caplog.records[-1].getMessage()
