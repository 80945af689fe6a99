"""The pairs, solutions and README of this chapter."""

from racelab.pytest.chapter_tests import Chapter, ChapterTests


class TestChapter(ChapterTests):
    chapter = Chapter(
        numbers={
            "broken_sleep_test": (169, 200),
            "fixed_sleep_test": (200, 200),
            "broken_stress_test": (0, 1),
            "fixed_stress_test": (1, 1),
            "broken_slot_leak": (0, 1),
            "fixed_slot_leak": (1, 1),
            "broken_mock_only": (3, 9),
            "fixed_mock_only": (9, 9),
        },
        inprocess={
            "broken_sleep_test": {"ENOUGH": 0.001, "SLOW": 0.002, "RUNS": 50},
            "fixed_sleep_test": {"SLOW": 0.001, "RUNS": 50},
            "broken_stress_test": {"RUNS": 100},
        },
        slow={"fixed_stress_test"},
    )
