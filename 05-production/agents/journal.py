"""A record of all answers, so that a killed run pays for none of them twice."""

import sqlite3
import time
from pathlib import Path
from typing import Any, Self

from .results import Answer

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    question TEXT NOT NULL,
    number INTEGER NOT NULL,
    sent REAL NOT NULL,      -- seconds since 1970
    ended REAL,
    outcome TEXT,            -- 'answered', or the kind of failure; NULL: not known
    text TEXT,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    PRIMARY KEY (question, number)
)
"""
TABLES = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name != 'requests'"
ANSWER = """
SELECT text, prompt_tokens, completion_tokens FROM requests
WHERE question = ? AND outcome = 'answered'
"""
NUMBER = "SELECT coalesce(max(number), 0) + 1 FROM requests WHERE question = ?"
END = """
UPDATE requests SET ended = ?, outcome = ?, text = ?, prompt_tokens = ?,
completion_tokens = ? WHERE question = ? AND number = ?
"""


class JournalError(Exception):
    """The journal cannot be used, so nothing more is asked."""


class Journal:
    """A SQLite file with a row for each request: `with Journal("run.db") as journal`.

    Each row is written before its request is sent, and its answer before you see it.
    So `kill -9` loses nothing that was recorded, and a power cut the last moments at
    most. Only one process at a time can use the file. The key is the question's text.
    Raises `JournalError`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: sqlite3.Connection | None = None
        self._broken = ""  # why, if something could not be written
        try:
            self._file = sqlite3.connect(self.path, timeout=0, isolation_level=None)
            # With WAL, no other process can use the file until this one closes it.
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            if other := self._file.execute(TABLES).fetchone():  # of another program,
                raise sqlite3.DatabaseError(f"not a journal: it has a table {other[0]}")
            self._file.execute(SCHEMA)
            self._file.execute(ANSWER, ("",))  # or its table has other columns
        except sqlite3.Error as error:
            self.close()
            why = "in use already" if "locked" in str(error) else error
            raise JournalError(f"journal {self.path}: {why}") from None

    def lookup(self, question: str) -> Answer | None:
        """Return the recorded answer, if there is one."""
        row = self._execute(ANSWER, question).fetchone()
        return None if row is None else Answer(*row)

    def start(self, question: str) -> int:
        """Record a request before it is sent. Return its number, over all runs."""
        if self._broken:
            raise JournalError(self._broken)
        number: int = self._execute(NUMBER, question).fetchone()[0]
        self._execute(
            "INSERT INTO requests (question, number, sent) VALUES (?, ?, ?)",
            *(question, number, time.time()),
        )
        return number

    def finish(
        self, question: str, number: int, outcome: str, answer: Answer | None = None
    ) -> None:
        """Record how the request ended: "answered", or a kind of failure."""
        texts: tuple[Any, ...] = (None, None, None)
        if answer is not None:
            texts = (answer.text, answer.prompt_tokens, answer.completion_tokens)
        self._execute(END, time.time(), outcome, *texts, question, number)

    def _execute(self, command: str, *values: Any) -> sqlite3.Cursor:
        # On the event loop: a write is some 20 microseconds, as it waits for no disk.
        if self._file is None:
            raise JournalError(f"journal {self.path}: closed")
        try:
            return self._file.execute(command, values)
        except sqlite3.Error as error:
            self._broken = f"journal {self.path}: {error}"
            raise JournalError(self._broken) from error

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
