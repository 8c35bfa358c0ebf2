"""Configuration: YAML, dotted overrides and validation against the components' own signatures.

A section that names a component, `{name: linear, max: 10.0}`, becomes an object of the class in that row of the
registry; its option names, types and defaults are those of the class. A section without a name changes options of the
default component. A config can name rows, never code. Errors give the dotted path, the rule and the nearest known name.
"""

import contextlib
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from sde_diffusion.errors import InputError, UnknownKeyError, require
from sde_diffusion.registry import lookup, suggest

T = TypeVar("T")
Registries = Mapping[type, Mapping[str, type]]
"""Base class of a kind of component -> its registry."""

Raw = dict[str, Any]
"""A config as YAML gives it."""


@dataclass(frozen=True)
class Recipe:
    """A component that needs more than its options to be built, such as a network that waits for the data's shape."""

    factory: Callable[..., Any]
    options: Raw

    def __call__(self, *args: Any, **given: Any) -> Any:
        """Build it, with what the options cannot know."""
        return self.factory(*args, **given, **self.options)


class ClassifierRecipe(Recipe):
    """A recipe of a classifier, whose registry is another."""


def read_yaml(path: Path) -> Raw:
    """A config file as a nested dict.

    Raises:
        InputError: Missing, unreadable, not YAML, or not a mapping.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"cannot read the config file {path}: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"the config file {path} is not YAML: {getattr(error, 'problem', error)}{where}") from None
    require(raw is None or isinstance(raw, dict), f"the config file {path} must hold a mapping of sections")
    return raw or {}


def merge(below: Raw, above: Mapping[str, Any]) -> Raw:
    """`above` over `below`, section by section; a section that names another component replaces the one below."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, dict):
            old = {"name": old}
        if isinstance(old, dict) and isinstance(value, str) and "name" in old:
            value = {"name": value}
        if isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name"):
            value = merge(old, value)
        merged[key] = value
    return merged


def assigned(text: str) -> tuple[str, Any]:
    """The dotted key and the value of an assignment `a.b=value`, whose value is YAML.

    Raises:
        InputError: It is not of that form.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    require(bool(equals) and all(key.split(".")), f"an override must have the form section.key=value, got {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"the value of the override {text!r} is not YAML; quote it") from None


def put(raw: Raw, key: str, value: Any) -> Raw:
    """`raw` with the value of a dotted key put in; naming another component drops the options of the old one.

    Raises:
        InputError: The key goes through a value that is not a section.
    """
    inner: Any = raw
    for part in key.split(".")[:-1]:
        inner = inner.get(part) if isinstance(inner, dict) else inner
        require(
            inner is None or isinstance(inner, str | dict),
            f"`{key}` cannot be set: `{part}` is a value, not a section",
        )
    nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return merge(raw, nested)


def override(raw: Raw, assignments: Sequence[str]) -> Raw:
    """`raw` with assignments `a.b=value` put in, one after the other.

    Raises:
        InputError: See `assigned` and `put`.
    """
    for text in assignments:
        raw = put(raw, *assigned(text))
    return raw


def parse(schema: Callable[..., T], raw: Mapping[str, Any], registries: Registries, path: str = "") -> T:
    """Build `schema`, a dataclass or another class with annotated keyword arguments, from a section.

    Raises:
        InputError: Unknown key or name, wrong type, or a value that the component refuses; with the dotted path.
    """
    options = _parse_options(schema, raw, registries, path)
    try:
        return schema(**options)
    except InputError as error:
        raise InputError(f"in `{path}`: {error}" if path else str(error)) from None


def plain(value: Any, registries: Registries) -> Any:
    """The inverse of `parse`: plain YAML values with every default written out."""
    if isinstance(value, Recipe):
        defaults = {key: option.default for key, option in options(value.factory).items()}
        return {"name": _row(value.factory, registries)} | {
            key: plain(option, registries) for key, option in (defaults | value.options).items()
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name), registries) for f in dataclasses.fields(value)}
        name = _row(type(value), registries)
        return fields if name is None else {"name": name} | fields
    if isinstance(value, tuple | list):
        return [plain(item, registries) for item in value]
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old, new) of every value in which two plain configs differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, f"{path}{key}.")
        elif before != after:
            found[path + key] = (before, after)
    return found


def options(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that a config may set: those with defaults, typed by resolved annotations."""
    given = () if dataclasses.is_dataclass(factory) else GIVEN
    hints = typing.get_type_hints(vars(factory).get("__init__", factory))
    return {
        name: parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in given
    }


GIVEN = ("classes", "heads")  # of a network: data and model decide them, though the signature has defaults


def _parse_options(schema: Callable[..., Any], raw: Any, registries: Registries, path: str) -> Raw:
    known = options(schema)
    require(isinstance(raw, Mapping), f"`{path}` must be a section of keys, got {raw!r}")
    for key in raw:
        if key not in known:
            row = _row(schema, registries)
            owner = f" of {row!r}" if row else ""
            rest = suggest(str(key), known) if known else "; it has no options"
            dotted = _join(path, key)
            raise UnknownKeyError(f"unknown config key {dotted!r}{owner}{rest}", key=dotted, owner=row, known=known)
    return {
        key: _parse_value(known[key].annotation, value, registries, _join(path, key), known[key].default)
        for key, value in raw.items()
    }


def _parse_value(annotation: Any, value: Any, registries: Registries, path: str, default: Any = None) -> Any:
    if annotation in registries:
        return _parse_component(annotation, value, registries, path, default)
    if dataclasses.is_dataclass(annotation):
        return parse(typing.cast(type, annotation), value, registries, path)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (types.UnionType, Union):
        if value is None and type(None) in arguments:
            return None
        words = [word for a in arguments if str(get_origin(a)) == "typing.Literal" for word in get_args(a)]
        if value in words:  # such as auto in place of a number
            return value
        annotation = next(a for a in arguments if a is not type(None) and str(get_origin(a)) != "typing.Literal")
        return _parse_value(annotation, value, registries, path, default)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"`{path}` must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_parse_value(arguments[0], item, registries, path) for item in items)
    return _parse_scalar(annotation, value, path)


def _parse_scalar(annotation: type, value: Any, path: str) -> Any:
    if annotation is float:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):
                number = float(value)  # YAML reads 1e-4 as text
                if math.isfinite(number):
                    return number
    elif isinstance(value, bool) == (annotation is bool) and isinstance(value, annotation):
        return value
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    raise InputError(f"`{path}` must be {names.get(annotation, annotation.__name__)}, got {value!r}")


def _parse_component(kind: type, value: Any, registries: Registries, path: str, default: Any) -> Any:
    section = {"name": value} if isinstance(value, str) else value
    require(isinstance(section, Mapping), f"`{path}` must be a name or a section with a name, got {value!r}")
    if "name" not in section:
        require(default is not None, f"`{path}` must name one of {', '.join(registries[kind])}, or be null")
        section = merge(plain(default, registries), section)
    name, table = section["name"], registries[kind]
    require(isinstance(name, str), f"`{path}.name` must be one of {', '.join(table)}, got {name!r}")
    cls = lookup(table, name, path)
    options = {key: option for key, option in section.items() if key != "name"}
    if dataclasses.is_dataclass(cls):
        return parse(cls, options, registries, path)
    make = kind if issubclass(kind, Recipe) else Recipe
    return make(cls, _parse_options(cls, options, registries, path))


def _row(cls: Any, registries: Registries) -> str | None:
    return next((name for table in registries.values() for name, row in table.items() if row is cls), None)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
