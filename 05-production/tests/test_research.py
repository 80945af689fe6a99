"""The complete system: what it prints, what it survives, what it names as missing."""

import asyncio
import json
import re
import signal
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import pytest

import research
from agents import (
    Answer,
    Ask,
    Event,
    Failure,
    FailureKind,
    InvalidResponse,
    Journal,
    JournalError,
    Limits,
    Team,
)
from racelab import Fault, LocalServer, ServerError, Settings, start
from racelab.process import reuse_server
from racelab.pytest.run_scripts import Ran, run_as_reader
from research_team import command_line, model_source, screen
from research_team.final_report import ResearchReport, shown, why
from research_team.forms import is_sound, questions_in

RunResearch = Callable[..., Ran]
QUESTION = command_line.QUESTION
KEY = "sk-test-0123456789abcdef"
AT_ONCE = ("--rpm", "600000", "--tpm", "100000000")  # tests need not wait for a turn
SPARE_TIME = ("--timeout", "0.3")  # a call that hangs takes so long


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(
    model_server: LocalServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> RunResearch:
    """`run("--agents", "3", faults=(...))`: `main()` here, on the session's server."""
    quick = partial(Limits, backoff=0.01)
    monkeypatch.setattr(model_source, "Limits", quick)

    def run(
        *arguments: str, faults: tuple[Fault, ...] = (), err: StringIO | None = None
    ) -> Ran:
        monkeypatch.setitem(command_line.FAULTS, "none", faults)
        out, err = StringIO(), err or StringIO()
        with (
            reuse_server(model_server, speed=20),
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            start(partial(research.main, (*AT_ONCE, *arguments)))
        assert isinstance(end.value.code, int)
        return Ran(end.value.code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def real(
    model_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    """A key is set, and the "real" API is the session's server."""
    monkeypatch.delenv("RACELAB_LOCAL")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", model_server.base_url)
    return monkeypatch


def worker_prompts(model_server: LocalServer) -> dict[str, int]:
    """What the workers have asked, and how often each was answered."""
    prefix = research.RESEARCH.partition("{")[0]
    answers = model_server.stats().answers
    return {asked: n for asked, n in answers.items() if asked.startswith(prefix)}


# What it survives


def test_the_default_faults_lose_nothing(
    run: RunResearch, model_server: LocalServer
) -> None:
    ran = run("--faults", "some", *SPARE_TIME)
    assert (ran.status, ran.last_line) == (0, "OK: answered 8 of 8 questions")
    stats = model_server.stats()
    assert set(stats.faults) == {"429", "500", "503", "hang", "malformed", "reset"}
    assert list(worker_prompts(model_server).values()) == [1] * 8
    assert stats.largest_in_flight <= 4
    assert "Missing:\n" not in ran.out


def test_an_outage_keeps_what_arrived_and_names_what_did_not(run: RunResearch) -> None:
    ran = run("--faults", "outage")
    assert (ran.status, ran.word) == (1, "BROKEN")
    answered, asked = ran.numbers
    found = re.findall(r"^- .* \[.*checked\]$|^- .* \[doubtful\]$", ran.out, re.M)
    missing = re.findall(r"^- .*: refused: 503 .*$", ran.out, re.M)
    assert 0 < answered == len(found)
    assert answered + len(missing) == asked == 8
    assert "The editor failed: refused: 503 " in ran.out


def test_one_lost_question_is_named_to_the_reader_and_to_the_editor(
    run: RunResearch, model_server: LocalServer
) -> None:
    lost = f"{QUESTION} (3)"
    fault = Fault("500", question=research.RESEARCH.format(question=lost))
    ran = run("--faults", "none", faults=(fault,))
    assert (ran.status, ran.last_line) == (1, "BROKEN: answered 7 of 8 questions")
    assert f"\nMissing:\n- {lost}: refused: 500 " in ran.out
    (merged,) = (q for q in model_server.stats().answers if q.startswith("Merge"))
    assert f"\nMissing: {lost} (refused: 500 " in merged


def test_an_answer_that_cannot_be_checked_is_kept(run: RunResearch) -> None:
    fault = Fault("500", question=research.CHECK[:20])
    ran = run("--faults", "none", "--agents", "2", faults=(fault,))
    assert ran.last_line == "OK: answered 2 of 2 questions"
    assert ran.out.count("[not checked]") == 2


def test_a_lead_that_fails_is_named(run: RunResearch) -> None:
    fault = Fault("500", question=research.PLAN[:20])
    ran = run("--faults", "none", faults=(fault,))
    assert (ran.status, ran.last_line) == (1, "BROKEN: answered 0 of 8 questions")
    assert "The lead failed: refused: 500 " in ran.out


def test_an_editor_that_fails_leaves_the_findings(run: RunResearch) -> None:
    fault = Fault("500", question=research.MERGE[:20])
    ran = run("--faults", "none", faults=(fault,))
    assert ran.status == 1
    assert ran.last_line == "BROKEN: answered 8 of 8 questions, but the editor failed"
    assert ran.out.count("\n- ") == 8


def test_a_server_that_is_gone_at_the_end_costs_only_its_counts(
    run: RunResearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: LocalServer) -> None:
        raise ServerError("the local model server is gone")

    monkeypatch.setattr(LocalServer, "stats", gone)
    ran = run("--faults", "none", "--agents", "1")
    assert ran.last_line == "OK: answered 1 of 1 questions"
    assert "server: received" not in ran.out


# With fakes, in virtual time


async def words(prompt: str) -> str:
    return "yes"


async def sound(prompt: str) -> str:
    return '{"sound": true}'


async def two(prompt: str) -> str:
    return '{"questions": ["What?", "Why?"]}'


async def researched(
    limits: Limits, words: Ask = words, plan: Ask = two, check: Ask = sound
) -> ResearchReport:
    asks = research.Asks(words, plan, check)
    board = screen.Board(limits)
    async with Team(words, limits, observer=board) as team:
        return await research.run("How?", 2, team, asks, board)


@pytest.mark.virtual_time
async def test_at_the_deadline_what_arrived_is_merged() -> None:
    asked = list[tuple[float, str]]()

    async def slow(prompt: str) -> str:
        asked.append((asyncio.get_running_loop().time(), prompt))
        await asyncio.sleep(1000 if "Why?" in prompt and "What?" not in prompt else 1)
        return "yes"

    report = await researched(Limits(deadline=100, timeout=5000), slow)
    assert report.findings == {"What?": "yes [checked]"}
    assert report.missing == {"Why?": "deadline: what time is left is the editor's"}
    when, prompt = asked[-1]
    assert prompt.startswith("Merge") and when == pytest.approx(80)  # noqa: PT018
    assert report.says == "yes"
    assert not report.holds


@pytest.mark.virtual_time
async def test_an_answer_in_time_is_kept_when_its_check_is_late() -> None:
    async def late(prompt: str) -> str:
        await asyncio.sleep(1000)
        return await sound(prompt)

    report = await researched(Limits(deadline=100, timeout=5000), check=late)
    assert report.findings == dict.fromkeys(("What?", "Why?"), "yes [not checked]")
    assert report.holds


@pytest.mark.virtual_time
async def test_unreadable_plans_and_checks_are_asked_for_again() -> None:
    plans = ["sorry", '{"questions": []}', await two("")]
    checks = ["maybe", '{"sound": true}', '{"sound": false}']

    async def poor_plan(prompt: str) -> str:
        return plans.pop(0)

    async def poor_check(prompt: str) -> str:
        return checks.pop(0)

    report = await researched(Limits(), plan=poor_plan, check=poor_check)
    assert report.holds
    assert report.questions == ["What?", "Why?"]
    assert set(report.findings.values()) == {"yes [checked]", "yes [doubtful]"}
    assert plans == checks == []


@pytest.mark.virtual_time
async def test_a_plan_may_be_shorter_or_longer_than_asked_for() -> None:
    async def one(prompt: str) -> Answer:
        return Answer('{"questions": ["Who?"]}')

    async def many(prompt: str) -> str:
        return json.dumps({"questions": [*"abcdef"]})

    for plan, verdict in ((one, "answered 1 of 1"), (many, "answered 2 of 2")):
        report = await researched(Limits(), plan=plan)
        assert report.holds
        assert report.verdict == f"{verdict} questions"


@pytest.mark.virtual_time
async def test_all_workers_are_at_work_at_the_same_time() -> None:
    both = asyncio.Barrier(2)

    async def meet(prompt: str) -> str:
        if not prompt.startswith("Merge"):
            async with asyncio.timeout(1):
                await both.wait()
        return "yes"

    assert (await researched(Limits(tries=1), meet)).holds


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ('{"questions": ["a", " a ", "b\\n c  d ", "", 7, null]}', ["a", "c d"]),
        ('```json\n{"questions": ["a"]}\n```', ["a"]),
        ('{"questions": "a"}', None),
        ('{"questions": [" ", {}]}', None),
        ('["a"]', None),
        ("no", None),
        ("", None),
        ('{"a":' * 100_000 + "}" * 100_000, None),
    ],
)
def test_a_plan_is_read_trusting_nobody(text: str, questions: list[str] | None) -> None:
    if questions is not None:
        assert questions_in(text) == questions
        return
    with pytest.raises(InvalidResponse):
        questions_in(text)


def test_a_check_says_yes_or_no_or_is_unreadable() -> None:
    assert is_sound('{"sound": true}')
    assert not is_sound('{"sound": false}')
    for text in ('{"sound": "yes"}', "{}", "true"):
        with pytest.raises(InvalidResponse):
            is_sound(text)


# What it prints


def test_json_is_one_object_with_the_report_the_outcomes_and_the_counts(
    run: RunResearch,
) -> None:
    lost = f"{QUESTION} (2)"
    fault = Fault("500", question=research.RESEARCH.format(question=lost))
    ran = run("--json", "--agents", "2", "--faults", "none", faults=(fault,))
    says = json.loads(ran.out)
    assert ran.status == 1
    assert says["verdict"] == "BROKEN: answered 1 of 2 questions"
    assert says["report"].startswith('On "Merge these findings')
    assert list(says["missing"]) == [lost]
    kept, failed = says["outcomes"]
    assert kept["question"] == QUESTION
    assert (kept["answer"][:3], kept["failure"]) == ("On ", None)
    assert failed["question"] == lost
    assert (failed["answer"], failed["failure"][:12]) == (None, "refused: 500")
    assert says["used"]["requests"] == says["server"]["received"] == 10
    assert says["retried"] == 5
    assert set(says["used"]) == set(says["allowed"])
    assert says["model"]["host"] == "127.0.0.1"
    assert (says["stopped"], says["trouble"], says["from_journal"]) == (None, [], 0)


def test_what_was_used_is_no_more_than_the_limits_allow(run: RunResearch) -> None:
    ran = run("--json", "--rpm", "1200", "--concurrency", "2", "--faults", "none")
    says = json.loads(ran.out)
    assert (ran.status, says["verdict"]) == (0, "OK: answered 8 of 8 questions")
    for name, used in says["used"].items():
        assert 0 < used <= says["allowed"][name]
    assert says["used"]["in_flight"] == 2
    assert says["refused"] == 0


def test_without_a_terminal_there_are_plain_lines_on_stderr(run: RunResearch) -> None:
    ran = run("--agents", "3", "--faults", "none")
    assert "\x1b" not in ran.out + ran.err
    first, *lines = ran.err.splitlines()
    assert first.startswith("model: local server, no key needed")
    assert lines[0].startswith("workers: 0 of 3 questions done, 0 in flight, 0 waiting")
    assert lines[-1].startswith("editor: 3 of 3 questions done")


def test_on_a_terminal_there_is_a_live_picture(
    run: RunResearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    ran = run("--agents", "3", "--faults", "none", err=Terminal())
    assert "\x1b[1A" in ran.err  # the cursor goes up, to draw over
    assert "\x1b" not in ran.out
    for words in (
        "lead: ",
        f"done    {QUESTION} (3)",
        "end: 3 of 3 questions done, 0 in flight, 0 waiting",
        "0 refused, 0 retried, ",
        " s left",
    ):
        assert words in ran.err


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    run: RunResearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    ran = run("--agents", "1", "--faults", "none", err=Terminal())
    assert "\x1b" not in ran.err
    assert "\nworkers: 0 of 1 questions done, " in ran.err


@pytest.mark.virtual_time
async def test_plain_lines_come_every_two_seconds_and_when_something_begins() -> None:
    board, file = screen.Board(Limits(deadline=60)), StringIO()
    async with screen.show(board, file):
        await asyncio.sleep(5)
        board.begin("workers", ["What?", "Why?"])
        board.note("What?", "asks")
        await asyncio.sleep(2.5)
    left = [line.rpartition(", ")[2] for line in file.getvalue().splitlines()]
    assert left == ["58 s left", "56 s left", "55 s left", "53 s left"]
    assert "workers: 0 of 2 questions done, 0 in flight, 1 waiting" in file.getvalue()


@pytest.mark.virtual_time
async def test_the_picture_shows_those_at_work_when_there_are_too_many() -> None:
    board = screen.Board(Limits())
    questions = [f"q{number}?" for number in range(20)]
    board.begin("workers", questions)
    for question in questions[:15]:
        board.note(question, "done")
    rows = [str(line) for line in board.picture(60).renderables]
    assert [row for row in rows if "waits" in row] == [
        f"  waits   q{n}?" for n in range(15, 20)
    ]
    assert "  ...     and 8 more" in rows
    board(Event("retried", "q1?", 0.0, detail="no [red]\x1b[2J"))
    assert str(board.picture(60).renderables[-1]) == "retried: no [red] [2J"
    assert max(len(str(row)) for row in board.picture(20).renderables) == 19


def test_a_model_cannot_talk_to_the_terminal() -> None:
    assert shown("a\x1b[2Jb\r\x07c\nd") == "a [2Jb  c\nd"


def test_a_reason_is_said_once() -> None:
    assert why(Failure(FailureKind.TIMED_OUT, "no answer")) == "timed out: no answer"
    says = "timed out: no answer\n in time"
    assert why(Failure(FailureKind.TIMED_OUT, says)) == "timed out: no answer in time"


def test_help_is_for_newcomers(run: RunResearch) -> None:
    ran = run("--help")
    assert ran.status == 0
    for words in ("Ctrl-C", "local server", "nothing is lost", *command_line.FAULTS):
        assert words in ran.out
    options = re.findall(r"^  --(\w+) (?:[A-Z]+)?", ran.out, re.M)
    assert sorted(options) == sorted({*vars(command_line.parse([]))} - {"question"})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--agents", "0"),
        ("--agents", "1001"),
        ("--agents", "two"),
        ("--concurrency", "-1"),
        ("--rpm", "1e3"),
        ("--tpm", "\u0662"),
        ("--timeout", "nan"),
        ("--deadline", "0"),
        ("--deadline", "inf"),
        ("--faults", "all"),
        ("--journal", " "),
        ("QUESTION", ""),
        ("QUESTION", "x" * 2001),
    ],
)
def test_a_bad_value_is_one_line_that_says_what_is_allowed(
    arguments: tuple[str, str], run: RunResearch
) -> None:
    name, value = arguments
    ran = run(f"{name}={value}") if name != "QUESTION" else run(value)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    shown = repr(value) if len(value) < 99 else "'...'"
    assert re.fullmatch(
        rf"research\.py: argument {name}: {re.escape(shown)}: must (be|have) .+\n",
        ran.err,
    )


def test_a_question_is_one_line_of_text_that_can_be_sent() -> None:
    assert command_line.parse([" a\n b\udcff "]).question == "a b?"


def test_the_options_are_the_limits() -> None:
    given = ["--concurrency=3", "--rpm=60", "--tpm=9000", "--timeout=7"]
    given += ["--deadline=90"]
    for is_local in (True, False):
        limits = model_source.limits_of(command_line.parse(given), is_local)
        assert (limits.concurrency, limits.rpm, limits.tpm) == (3, 60, 9000)
        assert (limits.timeout, limits.connect, limits.deadline) == (7, 5, 90)
    server = model_source.server_settings(command_line.parse(given))
    assert (server["rpm"], server["request_burst"], server["tpm"]) == (60, 1, 9000)
    assert server["faults"] == command_line.FAULTS["some"]
    assert model_source.limits_of(command_line.parse([]), is_local=True).connect == 1.5
    default = model_source.limits_of(command_line.parse([]), is_local=False)
    assert (default.rpm, default.tpm, default.timeout) == (500, 200_000, 60)


# The journal


def test_a_second_start_with_the_same_journal_asks_nothing(
    run: RunResearch, model_server: LocalServer, tmp_path: Path
) -> None:
    journal = ("--journal", str(tmp_path / "run.db"))
    first = run("--faults", "some", *SPARE_TIME, *journal)
    again = run("--faults", "some", *SPARE_TIME, *journal)
    assert model_server.stats().received == 0
    assert again.status == first.status == 0
    assert "had 18 answers; nothing asked" in again.out
    assert again.out.splitlines()[:5] == first.out.splitlines()[:5]  # same report


def test_after_an_outage_only_what_is_missing_is_asked(
    run: RunResearch, model_server: LocalServer, tmp_path: Path
) -> None:
    journal = ("--journal", str(tmp_path / "run.db"))
    assert run("--faults", "outage", *journal).status == 1
    before = model_server.stats().answers
    assert (
        run("--faults", "none", *journal).last_line == "OK: answered 8 of 8 questions"
    )
    after = model_server.stats().answers
    assert not set(before) & set(after)
    assert len(before) + len(after) == 18


def test_a_journal_in_use_is_one_line(run: RunResearch, tmp_path: Path) -> None:
    file = tmp_path / "run.db"
    with Journal(file):
        ran = run("--journal", str(file))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"error: journal {file}: in use")
    assert ran.err.count("\n") == 1


def test_a_journal_that_breaks_is_one_line(
    run: RunResearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Journal, question: str, *values: object) -> None:
        raise JournalError("journal run.db: disk is full")

    monkeypatch.setattr(Journal, "finish", full)
    ran = run("--journal", str(tmp_path / "run.db"), "--faults", "none")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.splitlines()[-1] == "error: journal run.db: disk is full"


# With a key


@pytest.mark.parametrize("accepted", [None, "sk-another"])
def test_no_output_and_no_journal_contains_the_key(
    accepted: str | None,
    run: RunResearch,
    real: pytest.MonkeyPatch,
    model_server: LocalServer,
    tmp_path: Path,
) -> None:
    model_server.reset(Settings(latency=0.01, api_key=accepted))
    journal = tmp_path / "run.db"
    rans = [
        run("--journal", str(journal), "--agents", "2"),
        run("--journal", str(journal), "--agents", "3", "--json"),
    ]
    assert [ran.status for ran in rans] == ([0, 0] if accepted is None else [2, 2])
    assert "model: gpt-5.4-mini at 127.0.0.1" in rans[0].err
    written = [file.read_bytes() for file in tmp_path.iterdir()]
    assert written
    written += [(ran.out + ran.err).encode() for ran in rans]
    assert not any(KEY[:12].encode() in text for text in written)


def test_a_wrong_key_is_one_line(
    run: RunResearch, real: pytest.MonkeyPatch, model_server: LocalServer
) -> None:
    model_server.reset(Settings(api_key="sk-another"))
    ran = run()
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.splitlines()[-1].startswith("error: 127.0.0.1: 401 ")
    assert "check OPENAI_API_KEY" in ran.err
    assert model_server.stats().received == 1


def test_nobody_there_is_one_line(run: RunResearch, real: pytest.MonkeyPatch) -> None:
    real.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    ran = run()
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.splitlines()[-1].startswith("error: 127.0.0.1: ")


def test_faults_are_for_the_local_server(
    run: RunResearch, real: pytest.MonkeyPatch, model_server: LocalServer
) -> None:
    ran = run("--faults", "some")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: --faults some: only the local server ")
    assert ran.err.count("\n") == 1
    assert model_server.stats().received == 0


# As a whole


def test_it_runs_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("--agents", "1", "--faults", "none", "--rpm", "6000")
    ran = run_as_reader(Path(research.__file__), *arguments)
    assert (ran.status, ran.last_line) == (0, "OK: answered 1 of 1 questions")


def test_ctrl_c_keeps_what_arrived_and_is_the_status(
    run: RunResearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = screen.Board.note

    def interrupt(board: screen.Board, question: str, doing: str) -> None:
        note(board, question, doing)
        if doing == "done" and list(board.agents.values()).count("done") == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(screen.Board, "note", interrupt)
    ran = run("--agents", "20", "--faults", "none", "--json")
    says = json.loads(ran.out)
    kept = 20 - len(says["missing"])
    assert 1 <= kept < 20
    assert ran.status == 128 + signal.SIGINT
    assert says["stopped"] == "SIGINT"
    assert f"stopped by SIGINT: {kept} answers were kept" in ran.err
    assert says["verdict"].startswith(f"BROKEN: answered {kept} of 20 questions")
    assert all(why.startswith("cancelled: ") for why in says["missing"].values())
