"""READMEs are made from scripts, and a block that has drifted is found."""

from pathlib import Path

import pytest

from racelab.pytest.readme_check import (
    diff,
    masked,
    refreshed,
    source,
    stale_blocks,
)

SCRIPT = (
    '"""A docstring."""\n\n\ndef main() -> None:\n    print("kept {}")\n\n\nmain()\n'
)
README = """
<!-- output: a.py -->
```text
```

<!-- diff: a.py b.py -->
```diff
```

<!-- code: a.py main -->
```python
```
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text(SCRIPT.format(1))
    (tmp_path / "b.py").write_text(SCRIPT.format(2).replace("A doc", "Another doc"))
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "README.md").write_text(refreshed(tmp_path / "README.md"))
    return tmp_path


def stale(folder: Path) -> list[str]:
    return [str(block) for block in stale_blocks(folder / "README.md")]


def test_blocks_are_made_from_the_scripts(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert "```text\nkept 1\n```" in text
    assert '-    print("kept 1")\n+    print("kept 2")\n' in text
    assert '```python\ndef main() -> None:\n    print("kept 1")\n```' in text
    assert stale(folder) == []


def test_a_drifted_block_is_found(folder: Path) -> None:
    (folder / "a.py").write_text(SCRIPT.format(3))
    assert stale(folder) == [
        "output: a.py",
        "diff: a.py b.py",
        "code: a.py main",
    ]


def test_a_docstring_is_no_part_of_the_diff(folder: Path) -> None:
    assert "doc" not in diff(folder / "a.py", folder / "b.py")


def test_an_unknown_function_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.py has no function or class 'run'"):
        source(folder / "a.py", "run")


def test_times_do_not_count_but_the_order_does() -> None:
    one = "   ms  scout   critic\n    0  read 0\n   50          wrote 1\nOK: 1 of 1"
    two = "   ms  scout   critic\n    0  read 0\n  123          wrote 1\nOK: 1 of 1"
    other = "   ms  scout   critic\n    0          read 0\n   50  wrote 1\nOK: 1 of 1"
    assert masked(one) == masked(two) != masked(other)


def test_measured_numbers_do_not_count_but_others_do() -> None:
    assert masked("8  57 ms   7.1x   88%") == masked("8  9 ms  12.0x  5%")
    assert masked("kept 1 of 5") != masked("kept 2 of 5")


def test_timeline_rows_of_different_agents_may_swap() -> None:
    head = "   ms  a     b\n"
    before = masked(head + "    0  one\n    1        two\n    9  three\nOK: all\n")
    assert (
        masked(head + "    0        two\n    7  one\n    8  three\nOK: all\n") == before
    )
    assert (
        masked(head + "    0  three\n    7        two\n    8  one\nOK: all\n") != before
    )
    assert (
        masked(head + "    0  two\n    1        one\n    9  three\nOK: all\n") != before
    )
