"""The workbench of all chapters: a model to ask, timelines, verdicts, and their tests.

Chapter 4 explains how it works.
"""

from racelab.barrier import NotTogether, ask_together
from racelab.model import (
    Ask,
    Chat,
    Message,
    ModelError,
    Refused,
    SyncAsk,
    open_model,
    open_model_sync,
)
from racelab.process import LocalServer, ServerError, local_server
from racelab.reader_error import ReaderError
from racelab.script import start
from racelab.settings import BadSetting, Fault, Settings, Stats
from racelab.timeline import Timeline, result, table, verdict
from racelab.watchdog import Watchdog

__all__ = [
    "Ask",
    "BadSetting",
    "Chat",
    "Fault",
    "LocalServer",
    "Message",
    "ModelError",
    "NotTogether",
    "ReaderError",
    "Refused",
    "ServerError",
    "Settings",
    "Stats",
    "SyncAsk",
    "Timeline",
    "Watchdog",
    "ask_together",
    "local_server",
    "open_model",
    "open_model_sync",
    "result",
    "start",
    "table",
    "verdict",
]
