"""`kill -9` at any moment, again and again: the server's counts say what was lost."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import pytest

from racelab import LocalServer, Settings

KILLS, LONG_KILLS = 10, 50  # by default, and with --long
QUESTIONS = 200  # of a run; when it is done, the next one begins
LONGEST = 30  # requests that a run sends before it is killed
LATENCY = 0.01  # seconds, of the server
NEVER = -1
UNKNOWN = (None, None)  # the outcome and the text of a request that was killed
ROWS = "SELECT question, outcome, text FROM requests ORDER BY question, number"
Rows = dict[str, list[tuple[str | None, str | None]]]  # question: outcomes and texts
Live = Callable[[Path, int, float], int]


@pytest.fixture
def live(model_server: LocalServer, tmp_path: Path) -> Iterator[Live]:
    """Run to the end, or for so many requests and seconds: gives the exit status."""
    worker = Path(__file__).with_name("killed_worker.py")
    command = [sys.executable, worker, model_server.base_url, tmp_path / "warm_up.db"]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(worker.parents[1])}
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines, ends = process.stdin, process.stdout
        assert ends.readline() == "ready\n"

        def live(path: Path, after: int, more: float) -> int:
            print(path, QUESTIONS, after, more, file=lines, flush=True)
            return int(ends.readline())

        yield live
        lines.close()


@contextmanager
def copy_of(path: Path) -> Iterator[Path]:
    """Of the file and the log beside it: who only looks would tidy up, too."""
    folder = path.parent / "copy"
    folder.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, folder)
    yield folder / path.name
    shutil.rmtree(folder)


def rows(path: Path) -> Rows:
    """All requests that the journal knows of, and how they have ended."""
    known: Rows = {}
    with copy_of(path) as copy, closing(sqlite3.connect(copy)) as file:
        if file.execute("SELECT 1 FROM sqlite_schema").fetchone():
            for question, outcome, text in file.execute(ROWS):
                known.setdefault(question, []).append((outcome, text))
    return known


@pytest.mark.skipif(os.name == "nt", reason="needs fork, to start a run in no time")
def test_killed_run_loses_nothing_and_asks_nothing_again(
    model_server: LocalServer, live: Live, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    is_long = pytestconfig.getoption("--long", default=False)
    wanted = LONG_KILLS if is_long else KILLS
    model_server.reset(Settings(latency=LATENCY))
    moments, kills, runs, known = Random(6), 0, 0, 0
    while kills < wanted:
        runs += 1
        path, status, rows_now = tmp_path / f"{runs}.db", -9, Rows()
        counts = model_server.stats().answers
        while status == -9:
            rows_before, counts_before = rows_now, counts
            after = moments.randint(0, LONGEST) if kills < wanted else NEVER
            status = live(path, after, moments.uniform(0, LATENCY))
            kills += status == -9
            rows_now, counts = rows(path), model_server.stats().answers
            for question, requests in rows_before.items():
                if requests[-1] != UNKNOWN:  # answered in a life before this one
                    assert rows_now[question] == requests
                    assert counts[question] == counts_before[question]
        assert status == 0
        assert set(rows_now) == {f"{path}: question {n}?" for n in range(QUESTIONS)}
        for question, (*killed, (outcome, text)) in rows_now.items():
            assert set(killed) <= {UNKNOWN}
            assert outcome == "answered"
            assert question in (text or "")
            assert 1 <= counts[question] <= 1 + len(killed)
            known += 1 + len(killed)
    assert kills == wanted
    assert model_server.stats().received <= known  # none was sent without its row
