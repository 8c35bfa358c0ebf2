"""The README keeps its word: tables, example, pictures and scripts."""

import re
from pathlib import Path

import pytest

from tools import reference_page
from tools.tables import NUMERICS, with_solvers

README = Path(__file__).parents[1] / "README.md"
PAGES = [README, *NUMERICS.parent.glob("*.md")]


def test_generated_pages_are_those_of_the_code() -> None:
    numerics = NUMERICS.read_text()
    assert with_solvers(numerics) == numerics, "run `python -m tools.tables`"
    assert reference_page.PAGE.read_text() == reference_page.page(), "run `python -m tools.reference_page`"


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) < 9500


def test_the_programs_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for program in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(compile(program, "README.md", "exec"), names)
    assert names["images"].shape == (16, 1, 8, 8)  # type: ignore[attr-defined]
    assert (tmp_path / "mine.safetensors").exists()


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
