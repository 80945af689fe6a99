"""Workers on two nodes of Ray's test cluster, and what a kill costs: by the server."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agents import Ask, Journal, JournalError, Limits
from beyond_one_machine import benchmark_scale_out, scale_out_ray
from beyond_one_machine.scale_out_ray import (
    Results,
    answered,
    open_cluster,
    parsed,
    read,
)
from racelab import Fault, LocalServer, ReaderError, Settings, start
from racelab.pytest.run_scripts import Ran, run_as_reader

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on 127.0.0.1 only
FOLDER = Path(__file__).parents[1] / "beyond_one_machine"
needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="needs Ray: beyond_one_machine/requirements.txt"
)
RATE = 100  # requests a second
LIMITS = Limits(rpm=60 * RATE, concurrency=10)
SETTINGS = Settings(rpm=60 * RATE, request_burst=2 * RATE)
COUNT = 200
Act = Callable[[], object]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes, and one that dies is missed soon."""
    from ray.cluster_utils import Cluster

    node = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            **{**node, "num_cpus": 4, "include_dashboard": False},
            "_system_config": {
                "health_check_initial_delay_ms": 0,
                "health_check_period_ms": 500,
                "health_check_failure_threshold": 4,
            },
        },
    )
    cluster.add_node(**node, num_cpus=2)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def connected(nodes: Any) -> Iterator[Any]:
    with open_cluster(nodes.address, 2):
        yield nodes


def job_on(server: LocalServer, **more: Any) -> Any:
    from beyond_one_machine.cluster import Job, openai_model

    ask = partial(openai_model, model="any", limits=LIMITS, base_url=server.base_url)
    return Job(**{"limits": LIMITS, "open_ask": ask, **more})


@pytest.fixture(scope="module")
def group(
    connected: Any,
    session_server: LocalServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Two workers with journals, for several tests: one that dies is started again."""
    from beyond_one_machine.cluster import WorkerGroup

    journals = tmp_path_factory.mktemp("journals")
    group = WorkerGroup(job_on(session_server, journals=journals))
    asyncio.run(group.__aenter__())
    yield group
    asyncio.run(group.__aexit__())


@pytest.fixture
def server(session_server: LocalServer) -> LocalServer:
    session_server.reset(SETTINGS)
    return session_server


async def answers(
    group: Any, topic: str, after: int = 0, act: Act | None = None
) -> list[Any]:
    """Return the results of all questions. After `after` of them, call `act`."""
    from beyond_one_machine.cluster import scale_out

    results = []
    questions = [(number, f"{topic} {number}") for number in range(COUNT)]
    async for result in scale_out(questions, group):
        results.append(result)
        if act is not None and len(results) == after:
            act()
    assert sorted(result.number for result in results) == list(range(COUNT))
    return results


async def all_answers(*arguments: Any) -> list[Any]:
    results = await answers(*arguments)
    assert [result for result in results if result.answer is None] == []
    return results


def script(*arguments: str) -> Ran:
    return run_as_reader(FOLDER / "scale_out_ray.py", *arguments)


def counts(ran: Ran) -> dict[str, int]:
    lines = [line.rsplit(None, 1) for line in ran.out.splitlines()[1:-1]]
    return {name.strip(): int(count) for name, count in lines}


@pytest.mark.parametrize("script", [scale_out_ray, benchmark_scale_out])
def test_without_ray_one_line_says_what_to_install(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as end:
        start(script.main)
    out, err = capfd.readouterr()  # also what child processes print
    assert (end.value.code, out) == (2, "")
    file = FOLDER / "requirements.txt"
    assert err == f'error: Ray is not installed: pip install -r "{file}"\n'


@pytest.mark.parametrize("name", ["scale_out_ray", "simulate_leases"])
def test_a_script_run_by_its_path_names_the_right_command(name: str) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    says = f"from 05-production, run python -m beyond_one_machine.{name}"
    assert ran.stderr == f"error: {says}\n"


@pytest.mark.parametrize("line", ["no JSON", '{"text": "a"}', "7"])
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(f'"a"\n\n{{"question": "b"}}\n{line}\n', "utf-8")
    with pytest.raises(ReaderError, match=r"questions\.jsonl:4: must be"):
        list(read(parsed([str(file)])))


def test_the_file_of_answers_may_end_in_half_a_line(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    result = {"number": 1, "question": "a", "answer": "yes"}
    file.write_text(json.dumps(result) + "\n" + '{"number": 2, "ques', "utf-8")
    results = Results(file, total=2)
    results.add({"number": 2, "question": "b", "answer": "no"})
    results.close()
    assert answered(file) == {(1, "a"), (2, "b")}


@needs_ray
def test_on_a_laptop_and_then_on_a_cluster(nodes: Any, tmp_path: Path) -> None:
    """The file of answers is half lost, as if this process had been killed: of what the
    journals have, nothing is asked again."""
    out, journals = tmp_path / "answers.jsonl", tmp_path / "journals"
    questions = tmp_path / "questions.jsonl"
    lines = [json.dumps({"question": f"question {n}"}) for n in range(60)]
    questions.write_text("\n".join(lines[:40]) + "\n", "utf-8")
    options = [str(questions), "--out", str(out), "--journal", str(journals)]
    ran = script(*options)
    assert ran.last_line == "OK: answered 40 of 40 questions", ran.err
    assert ran.status == 0
    assert counts(ran)["requests at the server"] == 40
    assert str(FOLDER.parent) not in ran.out + ran.err

    rows = out.read_text("utf-8").splitlines(keepends=True)
    out.write_text("".join(rows[:15]) + rows[15][:20], "utf-8")
    questions.write_text("\n".join(lines) + "\n", "utf-8")
    ran = script(*options, "--workers", "1", "--address", nodes.address)
    assert ran.last_line == "OK: answered 60 of 60 questions", ran.err
    assert counts(ran)["an earlier run"] == 15
    assert counts(ran)["a journal"] == 25
    assert counts(ran)["requests at the server"] == 20
    kept = [
        json.loads(row) for row in out.read_text("utf-8").splitlines() if row[-1] == "}"
    ]
    assert Counter(row["number"] for row in kept) == Counter(range(1, 61))


@needs_ray
async def test_two_nodes_share_one_limit(group: Any, server: LocalServer) -> None:
    import ray

    def node_of(worker: Any) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())

    results = await all_answers(group, "share")
    asked = [worker.__ray_call__.remote(node_of) for worker in group.workers]
    assert len(set(ray.get(asked))) == 2
    assert {result.worker for result in results} == {0, 1}
    stats = server.stats()
    assert (stats.received, dict(stats.refused)) == (COUNT, {})


@needs_ray
async def test_a_429_seen_by_one_worker_pauses_the_other(
    group: Any, server: LocalServer
) -> None:
    fault = Fault("429", calls=(50,), retry_after=2.0)
    server.reset(replace(SETTINGS, faults=(fault,)))
    await all_answers(group, "pause")
    stats = server.stats()
    assert dict(stats.refused) == {"429": 1}
    assert stats.received == COUNT + 1
    assert max(b - a for a, b in pairwise(stats.arrivals)) > 1


@needs_ray
async def test_a_restarted_limiter_lets_no_burst_through(
    group: Any, server: LocalServer
) -> None:
    import ray

    kill = partial(ray.kill, group.limiter, no_restart=False)
    await all_answers(group, "limiter", 50, kill)
    # Asked when all is done: right after the kill, the old one may still answer.
    quiet = group.limiter.__ray_call__.remote(lambda limiter: limiter._quiet)
    assert await quiet > 0  # it knows that there was another one
    stats = server.stats()
    assert (stats.received, dict(stats.refused)) == (COUNT, {})


@needs_ray
@pytest.mark.virtual_time
async def test_a_worker_waits_for_the_journal_of_a_dying_one(tmp_path: Path) -> None:
    from beyond_one_machine.cluster import open_journal

    held = Journal(tmp_path / "worker-0.db")
    asyncio.get_running_loop().call_later(5, held.close)
    with await open_journal(tmp_path / "worker-0.db"), pytest.raises(JournalError):
        await open_journal(tmp_path / "worker-0.db")


@needs_ray
async def test_the_questions_of_a_killed_worker_are_done_again_once(
    group: Any, server: LocalServer
) -> None:
    import ray

    worker = group.workers[0]
    await all_answers(group, "kill", 50, lambda: ray.kill(worker, no_restart=False))
    check_paid_again(server, "kill")


@needs_ray
async def test_the_questions_of_a_dead_machine_are_done_again_elsewhere(
    connected: Any, group: Any, server: LocalServer
) -> None:
    def kill() -> None:
        connected.remove_node(connected.worker_nodes.copy().pop(), allow_graceful=False)

    await all_answers(group, "machine", 50, kill)
    check_paid_again(server, "machine")


def check_paid_again(server: LocalServer, topic: str) -> None:
    """At most those in flight at the kill, and none a third time."""
    stats = server.stats()
    assert set(stats.answers) == {f"{topic} {number}" for number in range(COUNT)}
    assert max(stats.answers.values()) <= 2
    assert stats.received <= COUNT + LIMITS.concurrency
    assert dict(stats.refused) == {}


@needs_ray
async def test_a_slow_worker_is_asked_less(connected: Any, server: LocalServer) -> None:
    from beyond_one_machine.cluster import WorkerGroup

    @asynccontextmanager
    async def open_ask(number: int) -> AsyncIterator[Ask]:
        import asyncio

        async def ask(question: str) -> str:
            await asyncio.sleep(0.01 if number else 0.5)
            return "yes"

        yield ask

    async with WorkerGroup(job_on(server, open_ask=open_ask)) as group:
        asked = Counter(result.worker for result in await all_answers(group, "slow"))
    assert asked[0] < asked[1]


@needs_ray
async def test_a_worker_that_cannot_begin_stops_the_run_and_says_why(
    connected: Any, server: LocalServer
) -> None:
    from beyond_one_machine.cluster import WorkerGroup

    @asynccontextmanager
    async def open_ask(number: int) -> AsyncIterator[Ask]:
        raise ValueError("no key")
        yield

    async with WorkerGroup(job_on(server, open_ask=open_ask)) as group:
        with pytest.raises(ValueError, match=r"^no key$"):
            await answers(group, "begin")


@needs_ray
async def test_a_worker_that_dies_for_good_swallows_no_more_than_it_had(
    connected: Any, server: LocalServer
) -> None:
    import ray

    from beyond_one_machine.cluster import WorkerGroup

    async with WorkerGroup(job_on(server)) as group:
        results = await answers(group, "dies", 50, lambda: ray.kill(group.workers[0]))
    failures = [result for result in results if result.answer is None]
    assert 1 <= len(failures) <= 2 * LIMITS.concurrency
