"""The commands as they are declared, without what they do: names, options and help, read from `commands.json`.

`describe` turns the real commands into plain values, which `python -m tools.command_table` writes. `build` makes
commands of them again, which parse and print help just as the real ones do.
"""

import json
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from sde_diffusion_cli.configs import ConfigType, configs
from sde_diffusion_cli.exits import exit_codes, named, program

TABLE = Path(__file__).with_name("commands.json")
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
TYPES: dict[str, type[click.ParamType[Any]]] = {
    "integer": click.types.IntParamType,
    "float": click.types.FloatParamType,
    "path": click.Path,
    "config": ConfigType,
    "boolean": click.types.BoolParamType,
}
Plain = dict[str, Any]


def answered() -> bool:
    """Answer for the program if it can be done without PyTorch, and exit if something is wrong.

    Returns:
        Whether it has been done. Otherwise the arguments have the right form.
    """
    with exit_codes():
        group = build(json.loads(TABLE.read_text(encoding="utf-8")))
        return group.main(prog_name=program(), standalone_mode=False) is not _LATER
    raise AssertionError("exit_codes ends the process where it catches something")


_LATER = object()


def _later(**_: Any) -> object:
    return _LATER


def build(table: Plain) -> click.Group:
    """The commands of `describe`. Each only says that it is for later."""
    group = click.Group(context_settings=SETTINGS, help=table["help"], epilog=named(table["epilog"]))
    click.version_option(version(), prog_name="sde-diffusion")(group)
    for name, command in table["commands"].items():
        texts = {"help": command["help"], "epilog": named(command["epilog"] or ""), "short_help": command["short_help"]}
        parameters = [_parameter(record) for record in command["parameters"]]
        group.add_command(click.Command(name, callback=_later, params=parameters, **texts))
    group.add_command(configs)
    return group


def describe(group: click.Group) -> Plain:
    """Everything of the commands that help, completion and the check of arguments need, as JSON has it."""
    outer = click.Context(group, info_name="sde-diffusion")
    commands = {}
    for name, command in group.commands.items():
        if command is configs:
            continue
        inner = click.Context(command, info_name=name, parent=outer)
        commands[name] = {
            "help": command.help,
            "epilog": command.epilog,
            "short_help": command.short_help,
            "parameters": [_record(parameter, inner) for parameter in command.params],
        }
    return {"help": group.help, "epilog": group.epilog, "commands": commands}


def version() -> str:
    """The version of the package, without importing it."""
    found = find_spec("sde_diffusion")
    assert found is not None
    assert found.origin is not None
    return str(runpy.run_path(str(Path(found.origin).with_name("version.py")))["__version__"])


def _record(parameter: click.Parameter, context: click.Context) -> Plain:
    kind = parameter.type
    record: Plain = {
        "names": [*parameter.opts, parameter.name],
        "type": kind.name,
        "required": parameter.required,
        "nargs": parameter.nargs,
        "metavar": parameter.make_metavar(context),
    }
    if isinstance(kind, click.Choice):
        record["type"] = list(kind.choices)
    if isinstance(kind, click.IntRange):
        record |= {"type": "integer", "range": [kind.min, kind.max]}
    if isinstance(parameter, click.Option):
        optional = not parameter.is_flag and isinstance(parameter.flag_value, str)
        record |= {"off": parameter.secondary_opts, "flag": parameter.is_flag, "multiple": parameter.multiple}
        record |= {"optional": optional, "shown": parameter.get_help_record(context)}
    return record


def _parameter(record: Plain) -> click.Parameter:
    given = {key: record[key] for key in ("required", "nargs", "metavar")} | {"type": _type(record)}
    if "shown" not in record:
        return click.Argument([record["names"][-1]], **given)
    return Declared(record, given)


def _type(record: Plain) -> click.ParamType[Any]:
    kind = record["type"]
    if isinstance(kind, list):
        return click.Choice(kind)
    if "range" in record:
        return click.IntRange(*record["range"])
    return TYPES[kind]() if kind in TYPES else click.STRING


class Declared(click.Option):
    """An option that shows the help of the real one."""

    def __init__(self, record: Plain, given: Plain) -> None:
        names = record["names"]
        if record["off"]:
            names = [f"{names[0]}/{record['off'][0]}", *names[1:]]
        if record["flag"]:
            given = {"is_flag": True}
        elif record["optional"]:
            given = given | {"is_flag": False, "flag_value": ""}
        super().__init__(names, multiple=record["multiple"], **given)
        self._shown = record["shown"]

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Its names, and its help."""
        names, text = self._shown
        return names, text
