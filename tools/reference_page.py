"""docs/reference.md, from the code: `python -m tools.reference_page` writes it.

Four parts: every key of a config with its default, its type and its meaning; every row of every registry; what a
program calls; every command with its options. The words are those of the docstrings and of the commands' help.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
import yaml

import sde_diffusion
from sde_diffusion.commands import cli
from sde_diffusion.config.parse import options, plain
from sde_diffusion.config.schema import REGISTRIES, Config
from sde_diffusion.docstrings import meanings, reference, summary
from sde_diffusion.exchange import FORMATS
from sde_diffusion.model import NOISE_CONDITIONINGS, PREDICTIONS
from tools.tables import cell

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
Registry = Mapping[str, Callable[..., Any]]

INTRODUCTION = """\
# Reference

What can be set, what can be named, and what can be run. Written by `python -m tools.reference_page` from the code:
the words are those of the docstrings and of `--help`.

- [Configuration](#configuration): every key with its default and its meaning
- [Parts](#parts): every process, network, loss, solver … that a config can name, with its options
- [Library](#library): what a program calls
- [Commands](#commands): every command with its options, exit codes, completion in a shell

## Configuration

A config is a YAML file of the sections below. What it leaves out has its default. `--set training.batch=128` overrides
one key. A part is chosen by its name, `sde: vp`, or by a section with its name and its options,
`sde: {name: ve, sigma_max: 348}`. `train --dry-run` prints the config that results.
"""

PARTS = """\
## Parts

Each table is a registry: a name that a config can give, what it stands for, and where it was published. The options of
a part stand below its table. [CONTRIBUTING](../CONTRIBUTING.md) shows how to add a row.
"""

LIBRARY = """\
## Library

`import sde_diffusion as sd`. The package exports these functions and classes, every part above by its class
(`sd.VPSDE`, `sd.DDIM` …), the tables of them (`sd.SDES`, `sd.SOLVERS` …) and the base class of each kind. Docstrings
explain each argument, with shapes, units, errors and cost: `help(sd.sample)`.
"""

CALLS = {
    "A trained model": ("load", "save", "train", "Model", "Trainer", "Continuous", "Discrete", "TensorDataset"),
    "Your own loop": ("ScoreModel", "dsm_loss", "denoising_error", "EMA", "training_batches", "sweep"),
    "Samples and latents": ("sample", "encode", "decode", "slerp", "for_budget", "within", "SeededNoise"),
    "Likelihoods": ("log_likelihood", "mean_interval", "continuous_bound", "chain_bound", "ledger"),
    "Closed forms and conversions": ("GaussianMixture", "reverse_drift", "x0_from_score", "eps_from_score"),
}

COMMANDS = """\
## Commands

`python cli.py COMMAND …` in a clone; `sde-diffusion COMMAND …` once the package is installed. `-h` shows the help.

| exit code | meaning |
|---|---|
| 0 | The command did what was asked. |
| 1 | It failed. The last line says why: memory ran out, the disk was full, a check of `verify` did not hold. |
| 2 | Something that was asked for is wrong or missing. The line `error: …` says what, and what to do. |
| 130, 143 | Ctrl-C or `kill` stopped it. Training saves a checkpoint first; the same command continues from there. |

Completion in a shell, after installation:

```console
$ eval "$(_SDE_DIFFUSION_COMPLETE=bash_source sde-diffusion)"    # in ~/.bashrc; zsh_source in ~/.zshrc
$ _SDE_DIFFUSION_COMPLETE=fish_source sde-diffusion | source     # fish
```
"""

TITLES: dict[str, str] = {
    "SDE": "Processes",
    "BetaSchedule": "β(t) of continuous processes",
    "BetaSequence": "β of a chain",
    "DataSource": "Data",
    "Recipe": "Networks",
    "ClassifierRecipe": "Classifiers",
    "Objective": "Objectives",
    "Weighting": "Weightings λ(t)",
    "TimeSampler": "Time samplers r(t)",
    "Solver": "Solvers",
    "AdaptiveODE": "Adaptive ODE solvers",
    "Corrector": "Correctors",
    "TimeGrid": "Time grids",
    "Projection": "Projections of the predicted data",
    "Guidance": "Guidance",
    "Divergence": "Trace estimators",
    "Dequantisation": "Dequantisation of likelihoods",
    "TrainingNoise": "Dequantisation in training",
}


def page() -> str:
    """The whole page."""
    return (
        "\n".join(
            [INTRODUCTION, *configuration(), PARTS, *parts(), LIBRARY, *library(), COMMANDS, *commands(cli)]
        ).rstrip()
        + "\n"
    )


def configuration() -> Iterator[str]:
    """A table of keys for each section of a config."""
    defaults = Config()
    single = [f for f in dataclasses.fields(Config) if not dataclasses.is_dataclass(f.type) or f.type in REGISTRIES]
    yield "### The run\n"
    yield keys(Config, "", only=[field.name for field in single])
    for field in dataclasses.fields(Config):
        if field not in single:
            section = type(getattr(defaults, field.name))
            yield f"### `{field.name}`\n"
            yield keys(section, f"{field.name}.")


def keys(section: Callable[..., Any], prefix: str, only: list[str] | None = None) -> str:
    """One row for each key of a section, and of the sections inside it."""
    return table(("key", "default", "type", "meaning"), key_rows(section, prefix, only))


def key_rows(section: Callable[..., Any], prefix: str, only: list[str] | None = None) -> Iterator[tuple[str, ...]]:
    meaning = meanings(section)
    for name, option in options(section).items():
        if only is not None and name not in only:
            continue
        kind = option.annotation
        if dataclasses.is_dataclass(kind) and kind not in REGISTRIES:
            yield from key_rows(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            assert name in meaning, f"the docstring of {section} must explain `{name}` under `Attributes:`"
            yield f"`{prefix}{name}`", f"`{default(option.default)}`", kind_of(kind), meaning[name]


def parts() -> Iterator[str]:
    """A table for each registry, and one of its options."""
    for kind, registry in REGISTRIES.items():
        title = TITLES[kind.__name__]
        yield f"### {title}\n"
        yield rows_of(registry)
        if any(options(part) for part in registry.values()):
            yield "Options:\n"
            yield table(("option", "default", "type", "meaning", "of"), options_of(registry))
    for title, registry in (
        ("Predictions", PREDICTIONS),
        ("Noise conditionings", NOISE_CONDITIONINGS),
        ("Formats of import and export", FORMATS),
    ):
        yield f"### {title}\n"
        yield rows_of(registry)


def options_of(registry: Registry) -> Iterator[tuple[str, ...]]:
    """The options of all rows of a registry; rows that share an option in the same words share a line."""
    owners: dict[tuple[str, ...], list[str]] = {}
    for name, part in registry.items():
        for option in key_rows(part, ""):
            owners.setdefault(option, []).append(name)
    for option, names in owners.items():
        yield *option, "all" if len(names) == len(registry) > 1 else ", ".join(f"`{name}`" for name in names)


def rows_of(registry: Registry) -> str:
    """One registry: name, first paragraph of the docstring, reference."""
    rows = ((f"`{name}`", summary(part), reference(part)) for name, part in registry.items())
    return table(("name", "what it is", "reference"), rows)


def library() -> Iterator[str]:
    """The calls of a program, with the public methods of a model."""
    for title, names in CALLS.items():
        yield f"### {title}\n"
        yield table(("call", "what it does"), (row for name in names for row in calls(name)))


def calls(name: str) -> Iterator[tuple[str, str]]:
    """One function or class; of `Model` its methods too."""
    part = getattr(sde_diffusion, name)
    yield f"`{name}({arguments(part)})`", re.sub(":$", ".", summary(part))  # a formula follows in the docstring
    if part is sde_diffusion.Model:
        for method, value in vars(part).items():
            if inspect.isfunction(value) and not method.startswith("_"):
                yield f"`Model.{method}({arguments(value)})`", summary(value)


def arguments(part: Callable[..., Any]) -> str:
    """The names of the arguments; a star stands before those that are given by keyword."""
    shown: list[str] = []
    for parameter in inspect.signature(part).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        if parameter.name != "self":
            shown.append(parameter.name)
    return ", ".join(shown)


def commands(group: click.Group) -> Iterator[str]:
    """Every command: usage, help and options."""
    context = click.Context(group, info_name="sde-diffusion", **group.context_settings)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        yield f"### `{name}`\n"
        yield inspect.cleandoc(command.help or "").split("\f")[0].strip() + "\n"
        yield f"`sde-diffusion {name} {' '.join(command.collect_usage_pieces(inner))}`\n"
        records = [record for parameter in command.get_params(inner) if (record := parameter.get_help_record(inner))]
        yield table(("option", "meaning"), ((f"`{flags}`", " ".join(text.split())) for flags, text in records))


def table(heading: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Rows of texts as Markdown."""
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    return "\n".join([*lines, *(f"| {' | '.join(cell(text) for text in row)} |" for row in rows)]) + "\n"


def default(value: Any) -> str:
    """A default as YAML writes it; of a part its name, and what of it differs from the part's own defaults."""
    written = plain(value, REGISTRIES)
    if isinstance(written, dict) and "name" in written:
        part = getattr(value, "factory", type(value))
        own = {name: plain(option.default, REGISTRIES) for name, option in options(part).items()}
        changed = {key: option for key, option in written.items() if key != "name" and own[key] != option}
        written = {"name": written["name"]} | changed if changed else written["name"]
    text = yaml.safe_dump(written, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def kind_of(annotation: Any) -> str:
    """A type in words."""
    if annotation in REGISTRIES:
        title = TITLES[annotation.__name__]
        return f"[{title}](#{anchor(title)})"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (types.UnionType, Union):
        return " or ".join(kind_of(argument) for argument in arguments)
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple:
        return f"list of {kind_of(arguments[0])}s"
    words = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", type(None): "`null`"}
    return words[annotation]


def anchor(title: str) -> str:
    """The link to a heading, as GitHub makes it."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
