"""The keys of a JSON file of another package, checked one by one."""

from collections.abc import Mapping
from typing import Any

from sde_diffusion.errors import require


class Keys:
    """The values of a file, and the defaults of what it leaves out.

    Args:
        found: What the file holds.
        source: The file, for messages.
        defaults: What a key that is absent means; None where it has none.
    """

    def __init__(self, found: Mapping[str, Any], source: object, defaults: Mapping[str, Any]) -> None:
        self.source = source
        self.values = {**defaults, **found}

    def __getitem__(self, key: str) -> Any:
        return self.values.get(key)

    def check(self, key: str, condition: bool, rule: str) -> None:
        """Raise `InputError` for `key` unless `condition`."""
        require(condition, f"`{key}` of {self.source} must {rule} to be imported, got {self[key]!r}")

    def whole(self, key: str) -> int:
        """A whole number > 0."""
        value = self[key]
        self.check(key, isinstance(value, int) and not isinstance(value, bool) and value > 0, "be a whole number > 0")
        return int(value)

    def number(self, key: str) -> float:
        """A number."""
        value = self[key]
        self.check(key, isinstance(value, int | float) and not isinstance(value, bool), "be a number")
        return float(value)
