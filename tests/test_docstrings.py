from dataclasses import dataclass

import pytest

from sde_diffusion.docstrings import meanings, reference, summary


@dataclass
class Base:
    """A base.

    Attributes:
        width: How wide
            it is.
        first, last: Its ends: both of them.
    """

    width: int = 1
    first: int = 0
    last: int = 1


@dataclass
class Row(Base):
    """What a row is,
    in two lines.

    More of it.

    Attributes:
        width: How wide a row is.

    Reference: Author 2026,
    eq. 1.
    """


def test_a_summary_is_the_first_paragraph_in_one_line() -> None:
    assert summary(Row) == "What a row is, in two lines."


def test_a_reference_is_told_without_its_full_stop() -> None:
    assert reference(Row) == "Author 2026, eq. 1"
    assert reference(Base) == ""


@pytest.mark.parametrize(
    ("option", "meaning"),
    [("width", "How wide a row is."), ("first", "Its ends: both of them."), ("last", "Its ends: both of them.")],
)
def test_a_class_explains_its_options_before_its_base_does(option: str, meaning: str) -> None:
    assert meanings(Row)[option] == meaning


def test_a_base_keeps_its_own_words() -> None:
    assert meanings(Base)["width"] == "How wide it is."
