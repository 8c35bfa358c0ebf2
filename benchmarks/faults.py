"""The faults of `benchmarks/mutants.py`, read from `faults.txt`: one text of one file, replaced by another.

The right text stands exactly once in its file (tests/test_faults.py checks it), so a refactoring that moves it must
mend the line.
"""

from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_suffix(".txt")


@dataclass(frozen=True)
class Fault:
    """One text of one file, replaced by another that is wrong.

    Attributes:
        name: Short and unique.
        file: Path within the package.
        old, new: The right text, which stands there once, and the wrong one.
        breaks: What is wrong then.
        area: Areas of `verify` to run first, comma-separated.
        tests: Test files or folders to run first, within `tests/`, comma-separated.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    area: str
    tests: str


def read_faults(text: str) -> list[Fault]:
    """The faults of a table; its first lines say how it is written.

    Raises:
        ValueError: A line has not five fields, or stands before the first `[areas; tests]`.
    """
    faults: list[Fault] = []
    first: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            first = line.strip("[]").split("; ")
            continue
        fields = line.split(" ¦ ")
        if len(fields) != 5 or len(first) != 2:
            raise ValueError(
                f"{TABLE.name}:{number} must be `name ¦ file ¦ right ¦ wrong ¦ what is wrong`, below a line "
                f"`[areas; tests]`, got {line!r}"
            )
        faults.append(Fault(*fields, *first))
    return faults


FAULTS = read_faults(TABLE.read_text())
