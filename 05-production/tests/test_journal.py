"""All that a run has learned is in its journal, or there is one error."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from openai import AsyncOpenAI, DefaultAioHttpClient

from agents import Answer, Ask, Journal, JournalError, Limits, Outcome, Team, openai_ask
from racelab import LocalServer

KEY = "topsecret-4f9c2e71d8a65b03"
LONG_TEXT = 10_000  # characters: more than a page of the file
ROWS = "SELECT question, number, outcome, text FROM requests ORDER BY 1, 2"
unix_only = pytest.mark.skipif(os.name == "nt", reason="folders as Unix has them")


def rows(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as file:
        return file.execute(ROWS).fetchall()


def says(path: Path) -> str:
    with pytest.raises(JournalError) as error:
        Journal(path)
    prefix, _, why = str(error.value).partition(f"journal {path}: ")
    assert prefix == ""
    assert error.value.__suppress_context__
    return why


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes().lower() for file in folder.iterdir()}


def counting(asked: Counter[str], length: int = 0) -> Ask:
    async def ask(question: str) -> Answer:
        asked[question] += 1
        await asyncio.sleep(1 + len(asked) / 1000)  # one after another
        return Answer(f"On {question}".ljust(length), 3, 5)

    return ask


async def run(ask: Ask, path: Path, *questions: str, tries: int = 1) -> list[str]:
    """The answers' texts, or the kinds of failure."""
    limits = Limits(tries=tries, timeout=10)
    with Journal(path) as journal:
        async with Team(ask, limits, journal=journal) as team:
            ends = [end async for end in team.run(questions, in_order=True)]
    return [end.failure.kind if end.failure else end.text for end in ends]


@pytest.mark.virtual_time
async def test_next_run_does_not_ask_answered_questions(tmp_path: Path) -> None:
    asked = Counter[str]()
    path = tmp_path / "run.db"
    assert await run(counting(asked), path, "a", "b") == ["On a", "On b"]
    assert await run(counting(asked), path, "a", "c", "b") == ["On a", "On c", "On b"]
    assert asked == {"a": 1, "b": 1, "c": 1}


@pytest.mark.virtual_time
async def test_recorded_answer_has_tokens_and_no_requests(
    tmp_path: Path,
) -> None:
    await run(counting(Counter()), tmp_path / "run.db", "a")
    with Journal(tmp_path / "run.db") as journal:
        async with Team(counting(Counter()), journal=journal) as team:
            known = await team.ask("a")
    assert known.answer == Answer("On a", 3, 5)
    assert (known.requests, known.tokens) == (0, 0)


@pytest.mark.virtual_time
async def test_same_questions_at_once_are_asked_once(
    tmp_path: Path,
) -> None:
    asked = Counter[str]()
    ends = await run(counting(asked), tmp_path / "run.db", *"aabab")
    assert ends == ["On a", "On a", "On b", "On a", "On b"]
    assert asked == {"a": 1, "b": 1}


@pytest.mark.virtual_time
async def test_each_request_is_a_row_with_how_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    errors = iter([ConnectionError(), TimeoutError(), KeyError()])

    async def fails(question: str) -> str:
        raise next(errors)

    async def hangs(question: str) -> str:
        await asyncio.sleep(100)
        return "Too late."

    assert await run(fails, path, "a", tries=5) == ["crashed"]
    assert await run(hangs, path, "a") == ["timed out"]
    assert await run(counting(Counter()), path, "a") == ["On a"]
    assert rows(path) == [
        ("a", 1, "unreachable", None),
        ("a", 2, "timed out", None),
        ("a", 3, "crashed", None),
        ("a", 4, "timed out", None),  # numbered on by the next run
        ("a", 5, "answered", "On a"),
    ]


def test_two_requests_for_a_question_end_each_by_itself(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.db") as journal:
        numbers = [journal.start("a"), journal.start("a")]  # a hedge
        journal.finish("a", 1, "answered", Answer("Yes."))
    assert numbers == [1, 2]
    assert rows(tmp_path / "run.db") == [
        ("a", 1, "answered", "Yes."),
        ("a", 2, None, None),
    ]


@pytest.mark.virtual_time
async def test_a_row_is_there_before_the_request_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    seen: list[tuple[object, ...]] = []
    with Journal(path) as journal:

        async def ask(question: str) -> str:
            assert journal._file is not None
            seen.extend(journal._file.execute(ROWS))
            await asyncio.sleep(100)
            return "Too late."

        async with Team(ask, journal=journal) as team:
            asking = asyncio.create_task(team.ask("a"))
            await asyncio.sleep(1)
            team.cancel()
            await asking
    assert seen == [("a", 1, None, None)]
    assert rows(path) == [("a", 1, "cancelled", None)]


@pytest.mark.virtual_time
async def test_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    texts = ["", "'); DROP TABLE requests; --", "\N{SNOWMAN}\0\r\n", "x" * 100_000]
    asked = Counter[str]()
    for _ in range(2):
        ends = await run(counting(asked), tmp_path / "run.db", *texts)
        assert ends == [f"On {text}" for text in texts]
    assert set(asked.values()) == {1}


async def test_no_key_and_no_header_is_in_the_file(
    tmp_path: Path, model_server: LocalServer
) -> None:
    limits = Limits()
    with Journal(tmp_path / "run.db") as journal:
        async with (
            AsyncOpenAI(
                base_url=model_server.base_url,
                api_key=KEY,
                http_client=DefaultAioHttpClient(verify=False, trust_env=False),
            ) as client,
            Team(openai_ask(client, "any", limits), limits, journal=journal) as team,
        ):
            assert (await team.ask("A question?")).answer
        written = contents(tmp_path)  # before the end: the log beside the file, too
    assert written.keys() == {"run.db", "run.db-wal"}
    assert b"a question?" in b"".join(written.values())
    for secret in (KEY[:8], "bearer", "authorization", "x-ratelimit", "127.0.0.1"):
        assert secret.encode() not in b"".join(written.values())


def test_a_write_waits_for_no_disk(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.db") as journal:
        assert journal._file is not None
        assert journal._file.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert journal._file.execute("PRAGMA synchronous").fetchone() == (1,)


def test_second_journal_in_the_same_process_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.db"
    for _ in ("a new file", "an old one, which is free again"):
        with Journal(path) as journal:
            assert says(path) == "in use already"
            journal.start("a")  # the first one goes on


def test_journal_excludes_other_processes(
    tmp_path: Path,
) -> None:
    """Another process is what has the file, too: the SQLite shell, say."""
    path = tmp_path / "run.db"
    take = (
        "import sqlite3, sys; "
        "file = sqlite3.connect(sys.argv[1], timeout=0); "
        "file.execute('BEGIN IMMEDIATE'); "
    )
    command = [sys.executable, "-S", "-c", take, str(path)]
    Journal(path).close()
    with Journal(path):
        ran = subprocess.run(command, capture_output=True, text=True)
    assert "database is locked" in ran.stderr
    command[3] += "print('has it', flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert says(path) == "in use already"
        process.communicate()


@contextmanager
def nobody() -> Iterator[None]:
    """Root may write everywhere: for so long, be somebody who may not."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_path_that_is_no_journal_is_one_error(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("Not a database, but my notes.\n" * 100)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as file:
        file.execute("CREATE TABLE requests (climber, peak)")
    older = tmp_path / "older.db"
    with closing(sqlite3.connect(older)) as file:
        file.execute("CREATE TABLE attempts (question, attempt, text)")
    assert says(text) == "file is not a database"
    assert says(tmp_path) == "unable to open database file"
    assert says(tmp_path / "no" / "folder.db") == "unable to open database file"
    assert says(other) == "no such column: text"
    assert says(older) == "not a journal: it has a table attempts"
    assert text.read_text().startswith("Not a database, but my notes.")


@unix_only
def test_read_only_path_is_one_error() -> None:
    with tempfile.TemporaryDirectory() as name:  # open to others, as `tmp_path` is not
        folder, path = Path(name), Path(name) / "run.db"
        Journal(path).close()
        path.chmod(0o444)
        folder.chmod(0o555)
        with nobody():
            assert says(path)
            assert says(folder / "new.db") == "unable to open database file"


async def collect(outcomes: AsyncIterator[Outcome], got: list[Outcome]) -> None:
    async for outcome in outcomes:
        got.append(outcome)


def full(journal: Journal) -> None:
    """The file cannot grow, as on a full disk."""
    assert journal._file is not None
    (pages,) = journal._file.execute("PRAGMA page_count").fetchone()
    journal._file.execute(f"PRAGMA max_page_count = {pages}")


@pytest.mark.virtual_time
async def test_full_disk_is_one_error_and_stops_asking(
    tmp_path: Path,
) -> None:
    """Of ten at once, the first answer does not fit: the other nine are in flight."""
    path, asked, got = tmp_path / "run.db", Counter[str](), list[Outcome]()
    with Journal(path) as journal:
        full(journal)
        async with Team(counting(asked, LONG_TEXT), journal=journal) as team:
            with pytest.raises(JournalError) as error:
                await collect(team.run(map(str, range(1000))), got)
            assert asyncio.all_tasks() == {asyncio.current_task()}
    assert str(error.value) == f"journal {path}: database or disk is full"
    assert sum(asked.values()) == 10
    assert [row[2] for row in rows(path)] == [None, *["cancelled"] * 9]
    assert got == []


@pytest.mark.virtual_time
async def test_lost_disk_ends_the_run_and_all_tasks(
    tmp_path: Path,
) -> None:
    """Not even that a request in flight was cancelled can be written."""
    asked, got = Counter[str](), list[Outcome]()
    with Journal(tmp_path / "run.db") as journal:
        async with Team(counting(asked), journal=journal) as team:
            asyncio.get_running_loop().call_later(1.5, journal.close)  # while ten wait
            with pytest.raises(JournalError, match=r"run\.db: closed$"):
                await collect(team.run(map(str, range(1000))), got)
            assert asyncio.all_tasks() == {asyncio.current_task()}
    assert len(got) == 10
    assert sum(asked.values()) == 20
