"""What an option of a config says of itself: what becomes another when its value does."""

import dataclasses
from typing import Any, Literal

Changes = Literal["weights", "training", "nothing"]
"""What another value changes: what the weights are of, how they come about, or neither; then it may always change."""

Kind = Literal["model", "classifier", "both"]
"""Which kind of network an option is about."""


def option(
    default: Any, changes: Changes | None = None, *, naming: Changes | None = None, of: Kind | None = None
) -> Any:
    """A field of a dataclass of options. What it leaves out it has from the section that it is in.

    Args:
        default: Its default.
        changes: What another value changes.
        naming: Of a component: what another name changes.
        of: The network that it is about.
    """
    said = {"changes": changes, "naming": naming, "of": of}
    return dataclasses.field(default=default, metadata={key: value for key, value in said.items() if value})


def changes(section: object, key: str, kind: Kind = "model") -> str:
    """What another value of a dotted `key` below `section` changes for a network of this kind.

    Args:
        section: A dataclass of options, such as a whole config.
    """
    said = {"changes": "weights", "of": "both"}
    for part in key.split("."):
        if part == "name" and "naming" in said:
            said["changes"] = said["naming"]
        fields = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
        found = next((field for field in fields if field.name == part), None)
        if found is None:
            break
        said |= found.metadata
        section = getattr(section, part)
    return said["changes"] if said["of"] in ("both", kind) else "nothing"
