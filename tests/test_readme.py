"""The README keeps its word: tables, example, pictures and scripts."""

import re
from pathlib import Path

import pytest

from tools.tables import NUMERICS, README, with_solvers, with_tables

TEXT = README.read_text()
PAGES = [README, *NUMERICS.parent.glob("*.md")]


def test_tables_are_those_of_the_registries() -> None:
    assert with_tables(TEXT) == TEXT, "run `python -m tools.tables`"
    numerics = NUMERICS.read_text()
    assert with_solvers(numerics) == numerics, "run `python -m tools.tables`"


def test_the_library_example_runs(capsys: object) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["samples"].shape == (16, 1, 8, 8)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_and_names_exists(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    named = re.findall(r"`((?:benchmarks|configs|tests)/[\w/.]+)`", text)
    assert links
    for path in links:
        assert (page.parent / path).exists(), path
    for path in named:
        assert (README.parent / path).exists(), path


def test_nothing_is_left_to_fill_in() -> None:
    assert not any(re.search(r"@[A-Z_]+@", page.read_text()) for page in PAGES)
