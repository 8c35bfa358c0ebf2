"""What the user asks for: the config file, `--set` and flags, as one overlay in which each value knows who gave it.

A request means the same whichever way it is made: by a flag, by `--set a.b=value`, by a mapping in `--set`, or in a
file. Flags stand over `--set`, and `--set` over the file. Naming another component drops the options of the old one, so
names that flags depend on come first; other texts of `--set` count in their order.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sde_diffusion.config.parse import Raw, assigned, merge, parse, put, read_yaml
from sde_diffusion.config.schema import REGISTRIES, Config, describes_a_run, renamed

FILE, SET = "--config", "--set"


@dataclass(frozen=True)
class Said:
    """One value that the user gave.

    Attributes:
        key: The dotted config key.
        origin: `--set`, or the flag.
    """

    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Asked:
    """A config with the user's values in it.

    Attributes:
        raw: The whole of it, as YAML gives it.
        origins: Dotted key -> `--config`, `--set` or the flag, of each value that the user gave.
    """

    raw: Raw
    origins: Mapping[str, str]

    def says(self, key: str) -> str | None:
        """How the user gave the value at `key` or one below it, in words for a message; None if they gave none."""
        for said, origin in self.origins.items():
            if _within(said, key):
                return {SET: f"--set {said}", FILE: f"{said} in the config file"}.get(origin, origin)
        return None

    def value(self, key: str) -> Any:
        """What the config has at `key`; None if it has nothing there."""
        return _value_at(self.raw, key)[1]

    def under(self, key: str) -> list[str]:
        """The keys at and below `key` that the user gave."""
        return [said for said in self.origins if _within(said, key)]

    def config(self) -> Config:
        """The config as objects.

        Raises:
            InputError: See `parse`.
        """
        return parse(Config, self.raw, REGISTRIES)


@dataclass(frozen=True)
class Request:
    """What the user gave, each text read once.

    Attributes:
        file: The content of the config file.
        said: The values of the command line.
    """

    file: Raw
    said: tuple[Said, ...]

    def over(self, base: Raw) -> Asked:
        """`base`, a run's own config or nothing, with what the user gave over it.

        A run writes a config file with every value in it. Such a file asks for what differs from `base`, not for the
        rest.

        Raises:
            InputError: A key that goes through a value.
        """
        below = renamed(base)
        file = renamed(self.file)
        raw = merge(below, file)
        repeats = describes_a_run(file)
        origins = {
            key: FILE for key, value in _leaves(file, raw) if not (repeats and (True, value) == _value_at(below, key))
        }
        for said in sorted(self.said, key=lambda said: self._order(said, raw)):
            raw = put(raw, said.key, said.value)
            origins = {key: origin for key, origin in origins.items() if _value_at(raw, key)[0]}
            origins |= dict.fromkeys((key for key, _ in _leaves(put({}, said.key, said.value), raw)), said.origin)
        return Asked(renamed(raw), origins)

    def _order(self, said: Said, raw: Raw) -> tuple[int, int, bool]:
        """Names from the outermost component inwards, by flags or above what flags say; then `--set`, then flags."""
        key, value = said.key.removesuffix(".name"), said.value
        named = key != said.key or (isinstance(value, Mapping) and "name" in value)
        named |= isinstance(value, str) and isinstance(_value_at(raw, key)[1], Mapping)
        is_set = said.origin == SET
        if named and (not is_set or any(_within(flag.key, key) for flag in self.said if flag.origin != SET)):
            return 0, key.count("."), is_set
        return (1 if is_set else 2), 0, is_set


def request(file: Path | None, assignments: Sequence[str], flags: Iterable[Said] = ()) -> Request:
    """What a config file, the texts of `--set` and some flags ask for.

    Raises:
        InputError: A file or a text that cannot be read.
    """
    sets = [Said(*assigned(text), SET) for text in assignments]
    return Request(read_yaml(file) if file else {}, (*sets, *flags))


def flags(given: Mapping[str, Any], keys: Mapping[str, str]) -> list[Said]:
    """What the options `given` say, of which None stands for one that was not given.

    Args:
        given: Name of the option -> its value.
        keys: Name of the option -> the config key that it is short for.
    """
    return [
        Said(key, given[name], f"--{name.replace('_', '-')}")
        for name, key in keys.items()
        if given.get(name) is not None
    ]


def _leaves(layer: Mapping[str, Any], merged: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of `layer`; what `merged` has a section for is a component's name."""
    for key, value in layer.items():
        now = merged.get(key) if isinstance(merged, Mapping) else None
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, now, f"{path}{key}.")
        elif isinstance(value, str) and isinstance(now, Mapping):
            yield f"{path}{key}.name", value
        else:
            yield f"{path}{key}", value


def _value_at(raw: Any, key: str) -> tuple[bool, Any]:
    """Whether `raw` has the dotted key, and its value."""
    for part in key.split("."):
        if not isinstance(raw, Mapping) or part not in raw:
            return False, None
        raw = raw[part]
    return True, raw


def _within(key: str, section: str) -> bool:
    parts = section.split(".")
    return key.split(".")[: len(parts)] == parts
