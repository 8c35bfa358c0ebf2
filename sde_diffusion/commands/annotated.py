"""A config as YAML in which a comment explains each key, in the words of the docstrings."""

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from sde_diffusion.config.parse import Recipe, options, plain
from sde_diffusion.config.schema import REGISTRIES, Config
from sde_diffusion.docstrings import meanings, summary

WIDTH, LEFT = 120, 44  # of a line, and of the keys before the comments

Line = tuple[str, str]
"""A line of YAML, and what it means."""


def annotated(config: Config, sections: Iterable[str]) -> str:
    """These sections of a config, every default written out, with the meaning of each key."""
    lines: list[str] = []
    for name in sections:
        for text, meaning in _section(config, only=name):
            first, *rest = textwrap.wrap(meaning, WIDTH - LEFT - 2, break_on_hyphens=False) or [""]
            lines.append(f"{text:<{LEFT - 1}} # {first}" if first else text)
            lines += [f"{'':<{LEFT}}# {line}" for line in rest]
    return "\n".join(lines) + "\n"


def _section(value: Any, indent: str = "", only: str | None = None) -> Iterator[Line]:
    """The lines of an object's options."""
    owner = value.factory if isinstance(value, Recipe) else type(value)
    explained = meanings(owner)
    for name, option in _options(value).items():
        if only is None or name == only:
            yield from _option(name, option, explained.get(name, ""), indent)


def _option(name: str, value: Any, meaning: str, indent: str) -> Iterator[Line]:
    written = plain(value, REGISTRIES)
    if not isinstance(written, dict):
        yield f"{indent}{name}: {_flow(written)}", meaning
        return
    yield f"{indent}{name}:", meaning
    if "name" in written:
        owner = value.factory if isinstance(value, Recipe) else type(value)
        yield f"{indent}  name: {written['name']}", summary(owner)
    yield from _section(value, indent + "  ")


def _options(value: Any) -> dict[str, Any]:
    if isinstance(value, Recipe):
        return {name: option.default for name, option in options(value.factory).items()} | value.options
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _flow(written: Any) -> str:
    text = yaml.safe_dump(written, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
