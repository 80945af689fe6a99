"""A counter and a lock that only look safe, and what Python itself keeps together."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import ModuleType

import pytest

from racelab import Timeline
from racelab.pytest.run_scripts import LoadScript, RunScript

SCRIPTS = [
    f"{kind}_{pair}.py"
    for pair in ("counter", "fake_lock")
    for kind in ("broken", "fixed")
]
ANSWER = "Our plan is too large."  # five words


def answer(question: str) -> str:
    return ANSWER


def words_counted(module: ModuleType) -> int:
    timeline = Timeline(*module.AGENTS)
    usage = module.run(answer, timeline)
    assert usage.answers == [ANSWER] * 5  # `append` has kept them all
    return int(usage.words)


def findings_kept(module: ModuleType) -> int:
    return len(module.run(answer, Timeline(*module.AGENTS)))


def test_a_call_within_an_increment_loses_every_time(
    load_script: LoadScript, switch_intervals: range
) -> None:
    module = load_script("broken_counter.py")
    assert {words_counted(module) for _ in switch_intervals} == {5}


def test_a_call_before_a_locked_increment_loses_nothing(
    load_script: LoadScript, switch_intervals: range
) -> None:
    module = load_script("fixed_counter.py")
    assert {words_counted(module) for _ in switch_intervals} == {25}


def test_a_new_lock_for_each_caller_loses_every_time(
    load_script: LoadScript, switch_intervals: range
) -> None:
    module = load_script("broken_fake_lock.py")
    assert {findings_kept(module) for _ in switch_intervals} == {1}


def test_one_lock_for_all_callers_loses_nothing(
    load_script: LoadScript, switch_intervals: range
) -> None:
    module = load_script("fixed_fake_lock.py")
    assert {findings_kept(module) for _ in switch_intervals} == {5}


class Quiet(Timeline):
    """Marks nothing: drawing thousands of rows is not the point."""

    def mark(self, agent: str, what: str) -> None:
        pass


@pytest.mark.usefixtures("switch_intervals")
def test_32_threads_and_10_000_increments_are_counted_exactly(
    load_script: LoadScript,
) -> None:
    module = load_script("fixed_counter.py")
    usage, ready = module.Usage(), Barrier(32)

    def work(thread: int) -> None:
        ready.wait()
        for _ in range(thread, 10_000, 32):
            module.work("scout", usage, answer, Quiet())

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32)))
    assert usage.words == 5 * 10_000


@pytest.mark.usefixtures("switch_intervals")
def test_32_threads_and_3_200_findings_are_all_kept(load_script: LoadScript) -> None:
    module = load_script("fixed_fake_lock.py")
    report, ready, alone = module.Report(), Barrier(32), Barrier(1)

    def work(thread: int) -> None:
        ready.wait()
        for number in range(thread, 3_200, 32):
            module.research(f"{number}", report, alone, str, Quiet())

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32)))
    assert len(set(report.findings)) == len(report.findings) == 3_200


def test_numbers_given_back_need_no_lock(load_script: LoadScript) -> None:
    assert words_counted(load_script("solutions/counter_without_a_lock.py")) == 25


@pytest.mark.parametrize("name", SCRIPTS)
def test_one_failed_question_is_no_hang(name: str, load_script: LoadScript) -> None:
    def ask(question: str) -> str:
        if "lawyer" in question:
            raise ConnectionError(question)
        return ANSWER

    module = load_script(name)
    with pytest.raises(ConnectionError):
        module.run(ask, Timeline(*module.AGENTS))


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        ("x.n += f()", 1),
        ("x.n += v", 1),
        ("if 9 not in d: d[9] = f()", 1),
        ("for k in d: f(k)", 1),
        ("for k in lst: f(k)", 2),
        ("lst.sort(key=f)", 0),
        ("got.append(next(gen))", 1),
        ("for k in d.copy(): f(k)", 3),
    ],
)
def test_what_another_thread_can_get_into_halfway(
    code: str, kept: int, load_script: LoadScript
) -> None:
    module = load_script("whats_atomic.py")
    (operation,) = (each for each in module.OPERATIONS if each.code == code)
    assert [module.halfway(operation) for _ in range(20)] == [kept] * 20
    assert (kept == operation.of) == operation.promised


@pytest.mark.long
def test_a_reader_sees_what_is_atomic_on_this_python(script: RunScript) -> None:
    ran = script("whats_atomic.py")
    assert (ran.status, ran.word) == (0, "RESULT"), ran
    relied_on, accidents, to_lock = ran.numbers
    assert relied_on == 8  # all that the documentation promises
    assert accidents + to_lock == 11
    assert to_lock >= 7  # those that are forced
    assert ran.err.startswith(f"python: {sys.version.split()[0]}")
    assert ran.err.endswith(" the GIL\n")


def test_switch_interval_is_restored_after_the_proof(
    load_script: LoadScript,
) -> None:
    before = sys.getswitchinterval()
    module = load_script("whats_atomic.py")
    vars(module)["OPERATIONS"] = module.OPERATIONS[:1]
    module.run()
    assert sys.getswitchinterval() == before
