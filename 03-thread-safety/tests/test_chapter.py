"""The pairs, solutions and README of this chapter."""

from racelab.pytest.chapter_tests import Chapter, ChapterTests


class TestChapter(ChapterTests):
    chapter = Chapter(
        numbers={
            "broken_counter": (range(92), 92),  # as many as the last answer has words
            "fixed_counter": (92, 92),
            "broken_fake_lock": (range(5), 5),
            "fixed_fake_lock": (5, 5),
            "broken_lost_context": (0, 4),
            "fixed_lost_context": (4, 4),
            "broken_lazy_init": (1, 5, 5),
            "fixed_lazy_init": (5, 5, 1),
            "broken_tool_timeout": (2, 1),
            "fixed_tool_timeout": (1, 1),
            "broken_bridge": (0, 3),
            "fixed_bridge": (3, 3),
            "broken_lock_across_await": (0, 3),
            "fixed_lock_across_await": (3, 3),
            "broken_lock_order": (0, 2),
            "fixed_lock_order": (2, 2),
            "broken_wrong_loop": (0, 3),
            "fixed_wrong_loop": (3, 3),
            "broken_team_state": (1, 4, range(1, 4), 3),
            "fixed_team_state_lock": (4, 4, 0, 3),
            "fixed_team_state_immutable": (4, 4, 0, 3),
            "fixed_team_state_queue": (4, 4, 0, 3),
        },
        inprocess={"broken_bridge": {"speed": 3.0}, "fixed_bridge": {"speed": 3.0}},
        slow={"broken_bridge"},
        not_inprocess={
            "broken_lock_across_await": "its threads hang for ever",
            "broken_lock_order": "its threads hang for ever",
            "broken_wrong_loop": "its thread hangs for ever",
            "broken_tool_timeout": "its time-out is real time",
            "fixed_tool_timeout": "its time-out is real time",
        },
    )
