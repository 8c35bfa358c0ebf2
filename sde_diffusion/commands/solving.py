"""The options that choose a solver, and their way into the config."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from sde_diffusion.commands.common import Command, as_assignments
from sde_diffusion.errors import InputError, UnknownKeyError
from sde_diffusion.grids import GRIDS
from sde_diffusion.solvers import SOLVERS

SECTION = "sampling.solver"
FLAGS = ("steps", "grid", "rtol", "atol")  # options of solvers that have one of the command line's own


def solver_options(command: Command) -> Command:
    """--solver, --steps, --grid, --rtol and --atol."""
    for option in reversed(
        [
            click.option("--solver", help=f"{', '.join(SOLVERS)}. Default: the config's."),
            click.option("--steps", type=int, help="Steps of a fixed-grid solver."),
            click.option("--grid", help=f"Its time grid: {', '.join(GRIDS)}."),
            click.option("--rtol", type=float, help="Relative tolerance of an adaptive solver."),
            click.option("--atol", type=float, help="Absolute tolerance of an adaptive solver."),
        ]
    ):
        command = option(command)
    return command


def end_options(command: Command) -> Command:
    """--t-end, --denoise and --clip."""
    for option in reversed(
        [
            click.option("--t-end", type=float, help="Time to stop at. Default: sde.t_min."),
            click.option("--denoise/--no-denoise", default=None, help="End with the mean of the clean data (default)."),
            click.option("--clip/--no-clip", default=None, help="Clip predicted clean images to the data range."),
        ]
    ):
        command = option(command)
    return command


def solver_assignments(given: Mapping[str, Any], assignments: Sequence[str]) -> list[str]:
    """Overrides of the config: names, the user's own `assignments`, then the options given by flags.

    The solver's name comes first and the grid's second, for another name drops the options of what had it.
    """
    naming = [text for text in assignments if text.partition("=")[0].strip() in (SECTION, f"{SECTION}.name")]
    others = [text for text in assignments if text not in naming]
    solver = as_assignments(sampling__solver__name=given["solver"])
    grid = as_assignments(sampling__solver__grid__name=given["grid"])
    options = {f"sampling__solver__{key}": given[key] for key in FLAGS if key != "grid"}
    return [*solver, *naming, *grid, *others, *as_assignments(**options)]


@contextmanager
def naming_flags(given: Mapping[str, Any]) -> Iterator[None]:
    """Where the solver lacks an option that was given by a flag, say so in terms of flags.

    Raises:
        InputError: In place of the config's error.
    """
    try:
        yield
    except UnknownKeyError as error:
        section, _, option = error.key.rpartition(".")
        if section != SECTION or option not in FLAGS or given[option] is None:
            raise
        flags = [f"--{key}" for key in FLAGS if key in error.known]
        others = [key for key in error.known if key not in FLAGS]
        its = ", ".join([*flags, *([f"and by --set {SECTION}.NAME=VALUE: {', '.join(others)}"] if others else [])])
        fitting = [name for name, row in SOLVERS.items() if option in {field.name for field in dataclasses.fields(row)}]
        raise InputError(
            f"--{option} is no option of the solver {error.owner!r}; its options: {its}; "
            f"--{option} goes with {', '.join(fitting)}"
        ) from None
