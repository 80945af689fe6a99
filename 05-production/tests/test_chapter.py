"""The pairs, solutions and README of this chapter."""

import pytest

from racelab import watchdog
from racelab.pytest.chapter_tests import Chapter, ChapterTests

SHORT = {"PAUSE": 0.001}  # shorter waits, in the same proportions
FAST = {"RPM": 1200}
KILLS = "it kills processes, and test_pairs_state.py kills more often"


class TestChapter(ChapterTests):
    chapter = Chapter(
        numbers={
            "broken_retry_multiplied": (range(4, 28), 3),
            "fixed_retry_multiplied": (range(1, 4), 3),
            "broken_semaphore_is_not_a_rate": (range(12), 12),
            "fixed_semaphore_is_not_a_rate": (12, 12),
            "broken_retry_herd": (range(11, 41), 40),
            "fixed_retry_herd": (range(1, 11), 40),
            "broken_timeout": (range(2, 10), 1),
            "fixed_timeout": (range(2), 1),
            "timeout_with_a_second_try": (2, 1),
            "broken_nested_slots": (0, 6),
            "fixed_nested_slots": (6, 6),
            "broken_backoff_in_slot": (0, 8),
            "fixed_backoff_in_slot": (8, 8),
            "broken_shutdown": (3, 6),
            "fixed_shutdown": (6, 6),
            "broken_resume": (5, 6),
            "fixed_resume": (0, 6),
            "broken_stampede": (20, 1),
            "fixed_stampede": (1, 1),
        },
        inprocess={
            "broken_retry_multiplied": SHORT,
            "fixed_retry_multiplied": SHORT,
            "fixed_semaphore_is_not_a_rate": FAST,
            "rate_by_hand": FAST,
        },
        slow={"broken_timeout", "fixed_semaphore_is_not_a_rate", "fixed_shutdown"},
        not_inprocess={
            "broken_resume": KILLS,
            "fixed_resume": KILLS,
        },
    )

    @pytest.fixture(autouse=True)
    def short_waits(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Shorten the SDK's pauses between two tries, and the look at a deadlock."""
        monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)
        if "broken_nested" in request.node.name:  # nothing moves, however long it takes
            monkeypatch.setattr(watchdog, "STUCK_AFTER", 0.05)
