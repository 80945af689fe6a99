"""The pairs, solutions and README of this chapter."""

from racelab.pytest.chapter_tests import Chapter, ChapterTests

# Answers that take 20 ms, long beside the time that a connection takes.
FEWER = {"speed": 5.0, "CALLS": 20, "CONNECTIONS": 5}
OPEN = "unclosed:ResourceWarning"


class TestChapter(ChapterTests):
    chapter = Chapter(
        numbers={
            "broken_blocking_client": (),  # milliseconds
            "fixed_blocking_client": (),
            "fixed_blocking_client_to_thread": (),
            "broken_client_per_call": (20, 4),
            "fixed_client_per_call": (range(1, 5), 4),
            "fixed_closed_loop": (5, 5),
            "broken_unbounded_fanout": (10, 40),
            "fixed_unbounded_fanout": (40, 40),
            "broken_orphans": (0, 6),
            "fixed_orphans_all_or_nothing": (0, 0),
            "fixed_orphans_keep_partial": (6, 6),
            "broken_fire_and_forget": (0, 3),
            "fixed_fire_and_forget": (3, 3),
            "broken_swallowed_cancel": (4, 6),
            "fixed_swallowed_cancel": (0, 2),
            "broken_half_stream": (23, 5),
            "fixed_half_stream": (range(6), 5),  # some may be on their way
        },
        errors={"broken_fire_and_forget": "Task was destroyed but it is pending!"},
        inprocess={
            "broken_unbounded_fanout": FEWER,
            "fixed_unbounded_fanout": FEWER,
            "fanout_workers": {"speed": 5.0},
            "fixed_orphans_all_or_nothing": {"speed": 1.0},  # has to be stopped in time
            "broken_swallowed_cancel": {"DEADLINE": 0.05},
            "fixed_swallowed_cancel": {"DEADLINE": 0.05},
        },
        slow={"broken_blocking_client", "broken_client_per_call", "broken_half_stream"},
        ignored={  # the lesson is that nothing closes the sockets
            "broken_blocking_client": OPEN,
            "broken_client_per_call": OPEN,
            "broken_closed_loop": OPEN,
            "broken_unbounded_fanout": OPEN,
            # A task that is collected leaves its connection behind.
            "broken_fire_and_forget": OPEN,
        },
    )
