"""What is answered already: a killed run that starts again pays for nothing twice."""

import sqlite3
import time
from pathlib import Path
from typing import Any, Self

from .results import Answer

SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    question TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    sent REAL NOT NULL,      -- seconds since 1970
    ended REAL,
    outcome TEXT,            -- 'answered', or the kind of failure; NULL: not known
    text TEXT,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    PRIMARY KEY (question, attempt)
)
"""
ANSWER = """
SELECT text, prompt_tokens, completion_tokens FROM attempts
WHERE question = ? AND outcome = 'answered'
"""
NUMBER = "SELECT coalesce(max(attempt), 0) + 1 FROM attempts WHERE question = ?"
END = """
UPDATE attempts SET ended = ?, outcome = ?, text = ?, prompt_tokens = ?,
completion_tokens = ? WHERE question = ? AND attempt = ?
"""


class JournalError(Exception):
    """The journal cannot be used: nothing more is asked."""


class Journal:
    """A SQLite file with a row for each request: `with Journal("run.db") as journal`.

    A row is there before its request is sent, and has the answer before anybody sees
    it. So after `kill -9` all that was recorded is there (after a power cut, the last
    moments may be missing). One process at a time; questions are told apart by their
    text. Raises `JournalError`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: sqlite3.Connection | None = None
        self._broken = ""  # why, if something could not be written
        try:
            self._file = sqlite3.connect(self.path, timeout=0, isolation_level=None)
            # With WAL: from the first look on, until the end, nobody else gets in.
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute(SCHEMA)
            self._file.execute(ANSWER, ("",))  # is it ours?
        except sqlite3.Error as error:
            self.close()
            why = "in use already" if "locked" in str(error) else error
            raise JournalError(f"journal {self.path}: {why}") from None

    def answer_to(self, question: str) -> Answer | None:
        row = self._execute(ANSWER, question).fetchone()
        return None if row is None else Answer(*row)

    def sent(self, question: str) -> int:
        """A request is about to be sent. Gives its number, which goes on over runs."""
        if self._broken:
            raise JournalError(self._broken)
        number: int = self._execute(NUMBER, question).fetchone()[0]
        self._execute(
            "INSERT INTO attempts (question, attempt, sent) VALUES (?, ?, ?)",
            *(question, number, time.time()),
        )
        return number

    def ended(
        self, question: str, number: int, outcome: str, answer: Answer | None = None
    ) -> None:
        """The request was `answered`, or failed in some way."""
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
        """A second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
