"""Look-up in the plain dict literals that name this package's parts.

A registry is the dict in a package's `__init__.py` (`SDES`, `SOLVERS`, …); nothing registers itself.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from sde_diffusion.errors import InputError, shown_type

T = TypeVar("T")


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error line: the nearest known name, if any is near, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" known: {', '.join(known)}"


def resolve(table: Mapping[str, Callable[[], T]], value: object, base: type[T], name: str) -> T:
    """`value` as an object of the kind `base`: itself, or the row of `table` that it names, with its defaults.

    Args:
        name: The argument's name, for messages.

    Raises:
        InputError: An unknown name, a class in place of an object, or something else.
    """
    if isinstance(value, str):
        return lookup(table, value, name)()
    if isinstance(value, base):
        return value
    raise InputError(
        f"`{name}` must be one of {', '.join(table)}, or an object of such a class, got {shown_type(value)}"
    )


def name_of(table: Mapping[str, Any], value: object) -> str:
    """The row of `table` whose class `value` is of, or that `value` itself is.

    Raises:
        InputError: There is none.
    """
    for name, row in table.items():
        if row is value or type(value) is row:
            return name
    raise InputError(f"{type(value).__name__} is none of {', '.join(table)}")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The row `name` of `table`.

    Raises:
        InputError: No such row; the message names `kind`, the nearest row and all rows.
    """
    if name not in table:
        raise InputError(f"unknown {kind} {name!r}{suggest(str(name), table)}")
    return table[name]
