"""The pairs, solutions and README of this chapter."""

from racelab.pytest.chapter_tests import Chapter, ChapterTests


class TestChapter(ChapterTests):
    chapter = Chapter(
        numbers={
            "broken_agents": (1, 5),
            "fixed_agents": (5, 5),
            "broken_double_spend": (6, 2),
            "fixed_double_spend": (2, 2),
            "fixed_duplicate_work": (3, 3),
            "fixed_shared_agent": (3, 3),
            "fixed_shared_history": (2, 2),
            "fixed_wrong_owner": (4, 4),
        },
    )
