"""Look-up in the plain dict literals that name this package's parts.

A registry is the dict in a package's `__init__.py` (`SDES`, `SOLVERS`, …); nothing registers itself.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from sde_diffusion.errors import InputError

T = TypeVar("T")


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error line: the nearest known name, if any is near, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" known: {', '.join(known)}"


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The row `name` of `table`.

    Raises:
        InputError: No such row; the message names `kind`, the nearest row and all rows.
    """
    if name not in table:
        raise InputError(f"unknown {kind} {name!r}{suggest(str(name), table)}")
    return table[name]
