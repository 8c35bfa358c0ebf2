"""What a docstring says of a part, of its source, and of each of its options.

The docstring of a component is the one place where its options are explained. The reference page, `train --dry-run`
and the help texts read it from here. An option is explained under `Attributes:` or `Args:`, in the class itself or
in the base class that declares it.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any


def summary(part: Callable[..., Any]) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(_doc(part).split("\n\n")[0].split())


def reference(part: Callable[..., Any]) -> str:
    """The publications that a docstring cites, in one line; empty where it cites none."""
    found = re.search(r"References?: (.*?)(?:\n\n|$)", _doc(part), re.DOTALL)
    return " ".join(found[1].split()).rstrip(".") if found else ""


def meanings(part: Callable[..., Any]) -> dict[str, str]:
    """Option -> what it means, for each option that the class or one of its bases explains.

    An entry `optimizer, beta2: …` explains both options in the same words.
    """
    found: dict[str, str] = {}
    for owner in reversed(inspect.getmro(part) if inspect.isclass(part) else (part,)):
        for title in ("Attributes", "Args"):
            section = re.search(rf"^{title}:\n((?:    .*(?:\n|$)|\n)+)", _own_doc(owner), re.MULTILINE)
            entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE)
            found |= {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}
    return found


def _doc(part: Callable[..., Any]) -> str:
    return inspect.getdoc(part) or ""


def _own_doc(part: Callable[..., Any]) -> str:
    return inspect.cleandoc(part.__doc__ or "")
