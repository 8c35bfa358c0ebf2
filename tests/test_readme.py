"""The README keeps its word: tables, example, pictures and scripts."""

import re
from pathlib import Path

from tests.readme_tables import README, with_tables

TEXT = README.read_text()


def test_tables_are_those_of_the_registries() -> None:
    assert with_tables(TEXT) == TEXT, "run `python -m tests.readme_tables`"


def test_the_library_example_runs(capsys: object) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["samples"].shape == (16, 1, 8, 8)  # type: ignore[attr-defined]


def test_what_it_shows_and_names_exists() -> None:
    named = re.findall(r"!\[[^]]*\]\(([^)]+)\)|`(benchmarks/[\w/.]+)`|`(configs/[\w/.]+)`", TEXT)
    assert named
    for path in {part for row in named for part in row if part}:
        assert (Path(README).parent / path).exists(), path


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"@[A-Z_]+@", TEXT)
