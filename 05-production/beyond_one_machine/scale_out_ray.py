"""
The same agents in many processes and on many machines, under one shared rate limit.

Run:   python -m beyond_one_machine.scale_out_ray  (--help says what else)
Next:  python -m beyond_one_machine.benchmark_scale_out

Ray (pip install -r beyond_one_machine/requirements.txt) runs the workers, on this
machine or, with --address, on a running cluster. See cluster.py for what they do, and
leases.py for how they share the limit. With no key, the local model server answers,
under that limit.
"""

import asyncio
import json
import logging
import os
import socket
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

if __name__ == "__main__" and not __package__:  # started by its path
    module = "beyond_one_machine.scale_out_ray"
    print(f"error: from 05-production, run python -m {module}", file=sys.stderr)
    sys.exit(2)

from agents import Journal, Limits
from racelab import ReaderError, Stats, local_server, start, table, verdict
from racelab.model import DEFAULT_MODEL, real_endpoint

CHAPTER = Path(__file__).resolve().parents[1]
Numbered = tuple[int, str]  # a question and its line in the file


def parsed(arguments: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(
        prog="python -m beyond_one_machine.scale_out_ray",
        description=__doc__.split("\n\n")[0].strip(),
    )
    add = parser.add_argument
    add("questions", nargs="?", type=Path, metavar="FILE.jsonl", help="one a line")
    add(
        "--generate", type=int, default=300, metavar="N", help="without a file: so many"
    )
    add("--address", help="of a running Ray cluster, host:port or auto")
    add("--workers", type=int, default=2, help="processes (default: %(default)s)")
    add("--rpm", type=float, default=6000, help="requests a minute, of all together")
    add("--tpm", type=float, help="tokens a minute, of all together")
    add("--concurrency", type=int, default=20, help="calls in flight in each worker")
    add("--lease", type=int, default=10, metavar="N", help="requests leased at once")
    add("--deadline", type=float, default=3600, metavar="S", help="seconds for it all")
    add("--journal", type=Path, metavar="DIR", help="each worker records its answers")
    add(
        "--out",
        type=Path,
        metavar="FILE.jsonl",
        help="answers; it goes on where it ended",
    )
    options = parser.parse_args(arguments)
    for name in ("generate", "workers", "lease"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: must be a whole number from 1")
    return options


def check_ray() -> None:
    if find_spec("ray") is None:
        file = CHAPTER / "beyond_one_machine" / "requirements.txt"
        raise ReaderError(f'Ray is not installed: pip install -r "{file}"')


@contextmanager
def open_cluster(address: str | None, workers: int) -> Iterator[None]:
    """Connect to a cluster, or start one: on this machine, for this machine only."""
    check_ray()
    if address is not None and not answers_at(address):
        raise ReaderError(f"no Ray cluster at {address}")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options: dict[str, Any] = {"address": address}
    if address is None:
        # On Linux, too, only this lets Ray use 127.0.0.1. It is read at the import.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        options = {"address": "local", "_node_ip_address": "127.0.0.1"}
        options |= {"num_cpus": workers, "object_store_memory": 80 * 2**20}
        options |= {"include_dashboard": False}
    import ray

    folder = {"working_dir": str(CHAPTER), "excludes": ["*.db*", "*.jsonl", "tests"]}
    try:
        ray.init(
            runtime_env=folder,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **options,
        )
        yield
    except ConnectionError:
        raise ReaderError(f"no Ray cluster at {address}") from None
    finally:
        ray.shutdown()


def answers_at(address: str) -> bool:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            return False
    return True


def read(options: Namespace) -> Iterator[Numbered]:
    """Lines of JSON: a text, or an object with a `question`. Raises `ReaderError`."""
    if options.questions is None:
        for number in range(1, options.generate + 1):
            yield number, f"What do the papers say about topic {number}?"
        return
    with open(options.questions, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, question_in(line, f"{options.questions.name}:{number}")


def question_in(line: str, where: str) -> str:
    try:
        value = json.loads(line)
        question = value["question"] if isinstance(value, dict) else value
        if isinstance(question, str):
            return question
    except (ValueError, KeyError):
        pass
    raise ReaderError(f'{where}: must be "a text" or {{"question": "a text"}}')


def answered(out: Path | None) -> set[Numbered]:
    """What the file of answers has; the last line may be half written."""
    done = set()
    if out is not None and out.exists():
        for line in out.read_text("utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                if row["answer"] is not None:
                    done.add((row["number"], row["question"]))
    return done


def recorded(
    folder: Path | None, questions: list[Numbered]
) -> Iterator[dict[str, Any]]:
    """What journals have and the file of answers does not: this process had died."""
    for file in sorted(folder.glob("*.db")) if folder else []:
        with Journal(file) as journal:
            for number, question in questions:
                if (answer := journal.lookup(question)) is not None:
                    row = {"number": number, "question": question}
                    yield {**row, "answer": answer.text, "journal": file.name}


class Results:
    """Rows, in a file if one is given, and counted."""

    def __init__(self, out: Path | None, total: int) -> None:
        self.total, self.done = total, answered(out)
        self.before = len(self.done)
        self.failed, self.workers = 0, Counter[int]()
        self._file: TextIO | None = None
        if out is not None:
            is_new = not out.exists() or out.read_bytes()[-1:] in (b"", b"\n")
            self._file = open(out, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
            self._file.write("" if is_new else "\n")

    def add(self, row: dict[str, Any]) -> None:
        if row["answer"] is None:
            self.failed += 1
        else:
            self.done.add((row["number"], row["question"]))
            self.workers[row.get("worker", -1)] += 1
        if self._file is not None:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


async def show(results: Results, group: Any) -> None:
    """A line a second: the whole cluster."""
    while True:
        before = len(results.done)
        await asyncio.sleep(1)
        done, counts = len(results.done), await group.counts()
        print(
            f"{done:,} of {results.total:,} answered, {done - before:,}/s, "
            f"{results.failed:,} failed, {len(counts.workers)} workers, "
            f"{counts.pauses} pauses",
            file=sys.stderr,
        )


async def work(options: Namespace, limits: Limits, base_url: str | None) -> Results:
    from beyond_one_machine.cluster import Job, WorkerGroup, openai_model, scale_out

    model = (real_endpoint() or Namespace(model=DEFAULT_MODEL)).model
    ask = partial(openai_model, model=model, limits=limits, base_url=base_url)
    journals = options.journal and options.journal.resolve()
    job = Job(
        limits=limits,
        open_ask=ask,
        workers=options.workers,
        batch=options.lease,
        journals=journals,
    )
    questions = list(read(options))
    results = Results(options.out, len(questions))
    with ExitStack() as stack:
        stack.callback(results.close)
        rest = [each for each in questions if each not in results.done]
        for known in recorded(journals, rest):
            results.add(known)
        async with WorkerGroup(job) as group:
            progress = asyncio.create_task(show(results, group))
            stack.callback(progress.cancel)
            rest = [each for each in rest if each not in results.done]
            with suppress(TimeoutError):
                async with asyncio.timeout(options.deadline):
                    async for row in scale_out(rest, group):
                        results.add(asdict(row))
    return results


def report(results: Results, stats: Stats | None) -> None:
    rows: list[tuple[object, ...]] = [("answered by", "questions")]
    if results.before:
        rows.append(("an earlier run", results.before))
    for worker, count in sorted(results.workers.items()):
        rows.append((f"worker {worker}" if worker >= 0 else "a journal", count))
    if stats is not None:
        rows.append(("requests at the server", stats.received))
        rows.append(("refused by it", sum(stats.refused.values())))
        again = sum(stats.answers.values()) - len(stats.answers)
        rows.append(("answered by it again", again))
    print(table(*rows))


def main() -> int:
    options = parsed()
    names = ("concurrency", "rpm", "tpm", "deadline")
    try:
        limits = Limits(**{name: getattr(options, name) for name in names})
    except ValueError as error:
        raise ReaderError(f"--{error}") from None
    check_ray()
    endpoint = real_endpoint()
    with ExitStack() as stack:
        server = base_url = None
        if endpoint is None:
            print("model: local server, no key needed", file=sys.stderr)
            limit = {"rpm": options.rpm, "tpm": options.tpm}
            server = stack.enter_context(local_server(**limit))
            base_url = server.base_url
        else:  # for the workers of this machine; on others, each has its own
            print(f"model: {endpoint.model} at {endpoint.host}", file=sys.stderr)
            os.environ["OPENAI_API_KEY"] = endpoint.api_key
            os.environ["OPENAI_BASE_URL"] = endpoint.base_url
        stack.enter_context(open_cluster(options.address, options.workers))
        results = asyncio.run(work(options, limits, base_url))
        report(results, server.stats() if server else None)
    total = results.total
    done = len(results.done if options.out is None else answered(options.out))
    return verdict(done >= total, f"answered {done:,} of {total:,} questions")


if __name__ == "__main__":
    start(main)
