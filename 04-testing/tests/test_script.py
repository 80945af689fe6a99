"""How a script ends: its verdict's status, or one clear line and status 2."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from racelab import ReaderError, start, verdict


def ended(main: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        start(main)  # type: ignore[arg-type]
    printed = capsys.readouterr()
    return end.value.code, printed.out, printed.err  # type: ignore[return-value]


def test_a_script_ends_with_the_status_of_its_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> int:
        return verdict(False, "kept 1 of 2 findings")

    async def async_main() -> int:
        await asyncio.sleep(0)
        return verdict(True, "kept 2 of 2 findings")

    assert ended(main, capsys) == (1, "BROKEN: kept 1 of 2 findings\n", "")
    assert ended(async_main, capsys) == (0, "OK: kept 2 of 2 findings\n", "")


def test_an_error_for_readers_is_its_own_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> int:
        raise ReaderError("rpm=0: must be\n a number from 1")

    assert ended(main, capsys) == (2, "", "error: rpm=0: must be a number from 1\n")


def test_any_other_error_is_one_line_that_says_where(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> int:
        return {}["scout"]

    status, out, err = ended(main, capsys)
    assert (status, out) == (2, "")
    assert err.startswith("error: KeyError: 'scout' test_script.py:")
    assert err.count("\n") == 1


def test_first_error_of_a_task_group_is_the_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def fails() -> None:
        raise ReaderError("no answer")

    async def main() -> int:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
        return 0

    assert ended(main, capsys) == (2, "", "error: no answer\n")


def test_the_traceback_is_there_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main() -> int:
        raise ReaderError("no answer")

    monkeypatch.setenv("RACELAB_TRACEBACK", "1")
    status, _, err = ended(main, capsys)
    assert status == 2
    assert "Traceback" in err
    assert err.endswith("error: no answer\n")


VERDICT = "from racelab import start, verdict\nstart(lambda: verdict(True, 'x' * 9))\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_no_verdict(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(VERDICT)
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, str(script)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: OSError: [Errno 28]")
    assert ran.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="pipes as Unix has them")
def test_a_closed_pipe_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(VERDICT)
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [sys.executable, str(script)], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: BrokenPipeError")
    assert ran.stderr.count("\n") == 1
