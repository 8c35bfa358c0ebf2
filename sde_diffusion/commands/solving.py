"""The options that choose a solver, and their way into the config."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from sde_diffusion.commands.asked import Asked, flags, request
from sde_diffusion.commands.common import Command, Options
from sde_diffusion.commands.guiding import class_flags, guided, in_turn, numbered
from sde_diffusion.commands.session import Session, find
from sde_diffusion.config.build import Config, SamplingConfig
from sde_diffusion.errors import InputError, UnknownKeyError, require
from sde_diffusion.grids import GRIDS
from sde_diffusion.registry import name_of
from sde_diffusion.solvers import SOLVERS, GridSolver, Plan, Solver, for_budget, within

SECTION = "sampling.solver"
FLAGS = ("steps", "grid", "rtol", "atol")  # options of solvers that have one of the command line's own
KEYS = {  # options of the commands that solve, and the config keys that they are short for
    "solver": f"{SECTION}.name",
    "grid": f"{SECTION}.grid.name",
    **{key: f"{SECTION}.{key}" for key in ("steps", "rtol", "atol")},
    **{key: f"sampling.{key}" for key in ("t_end", "denoise", "clip", "count", "batch")},
    "guidance": "sampling.guidance.scale",
    "seed": "seed",
}


def solver_options(command: Command) -> Command:
    """--solver, --steps, --grid, --rtol and --atol."""
    for option in reversed(
        [
            click.option("--solver", help=f"The solver: {', '.join(SOLVERS)}. Default: the config's."),
            click.option("--steps", type=int, help="Number of steps, for a solver on a fixed grid of times."),
            click.option("--grid", help=f"How these times are spaced: {', '.join(GRIDS)}."),
            click.option("--rtol", type=float, help="Relative tolerance, for a solver that chooses its steps."),
            click.option("--atol", type=float, help="Absolute tolerance, for a solver that chooses its steps."),
        ]
    ):
        command = option(command)
    return command


def end_options(command: Command) -> Command:
    """--t-end, --denoise and --clip."""
    for option in reversed(
        [
            click.option("--t-end", type=float, help="The time at which the solver stops. Default: sde.t_min."),
            click.option(
                "--denoise/--no-denoise",
                default=None,
                help="Return E[x0 | x] at the end, for one more evaluation (default).",
            ),
            click.option(
                "--clip/--no-clip",
                default=None,
                help="Clip each predicted x0 to the range of discrete data.",
            ),
        ]
    ):
        command = option(command)
    return command


def budget_option(command: Command) -> Command:
    """--nfe."""
    return click.option(
        "--nfe",
        type=int,
        help="Score evaluations for each sample, the final denoising included. Solver, grid, steps and end are chosen "
        "for them; with --solver only its steps.",
    )(command)


def open_to_solve(options: Options, given: dict[str, Any]) -> tuple[Session, SamplingConfig]:
    """The model of a checkpoint with its guidance, to be used as the user asks, and what of `sampling` they ask for.

    Args:
        given: The command's own options, by name.

    Raises:
        InputError: What is wrong with the checkpoint, the config, --nfe, labels or guidance.
    """
    found = find(options.checkpoint, options.device)
    label = numbered(given["label"], found.spec)
    said = [*flags(given | {"seed": options.seed}, KEYS), *class_flags(label)]
    asked = request(options.config_file, options.assignments, said).over(found.own)
    with naming_flags(asked):
        config = spend_budget(given.get("nfe"), asked)
    session = found.load(in_turn(config, found.spec, label), ema=options.ema)
    return guided(session, label), asked.config().sampling


def spend_budget(nfe: int | None, asked: Asked) -> Config:
    """The config that is asked for, with what --nfe chooses: all, or the steps alone of a solver that the user names.

    Raises:
        InputError: Something else that is asked for says otherwise; too little for one step; or an adaptive solver,
            which chooses its own steps.
    """
    if nfe is None:
        return asked.config()
    require(nfe > 0, f"--nfe must be > 0, got {nfe}")
    for key in ("steps", "rtol", "atol"):
        given = asked.says(f"{SECTION}.{key}")
        require(
            given is None,
            f"--nfe decides how many steps there are, so {given} cannot be given beside it; leave one of them out",
        )
    grid = asked.under(f"{SECTION}.grid")
    named = len(asked.under(SECTION)) > len(grid)
    require(
        named or not grid,
        f"--nfe chooses the grid with the solver; name a --solver too, or leave {asked.says(f'{SECTION}.grid')} out",
    )
    config = asked.config()
    options = config.sampling
    denoise = None if options.denoise and not asked.says("sampling.denoise") else options.denoise
    plan = _steps_within(options.solver, nfe, denoise) if named else for_budget(nfe, denoise=denoise)
    t_end = plan.t_end(config.sde) if options.t_end is None else options.t_end
    sampling = dataclasses.replace(options, solver=plan.solver, denoise=plan.denoise, t_end=t_end)
    return dataclasses.replace(config, sampling=sampling)


def _steps_within(solver: Solver, nfe: int, denoise: bool | None) -> Plan:
    """`solver` with as many steps as `nfe` allows."""
    if not isinstance(solver, GridSolver):
        fitting = [name for name, row in SOLVERS.items() if issubclass(row, GridSolver)]
        raise InputError(
            f"--nfe cannot set the steps of the solver {name_of(SOLVERS, solver)!r}, which chooses its own by its "
            f"tolerances; take one of {', '.join(fitting)}, or name none"
        )
    return within(solver, nfe, denoise=denoise)


@contextmanager
def naming_flags(asked: Asked) -> Iterator[None]:
    """Where the solver lacks an option that was given by a flag, say so in terms of flags.

    Raises:
        InputError: In place of the config's error.
    """
    try:
        yield
    except UnknownKeyError as error:
        section, _, option = error.key.rpartition(".")
        if section != SECTION or option not in FLAGS or asked.says(error.key) != f"--{option}":
            raise
        flags = [f"--{key}" for key in FLAGS if key in error.known]
        others = [key for key in error.known if key not in FLAGS]
        its = ", ".join([*flags, *([f"and by --set {SECTION}.NAME=VALUE: {', '.join(others)}"] if others else [])])
        fitting = [name for name, row in SOLVERS.items() if option in {field.name for field in dataclasses.fields(row)}]
        raise InputError(
            f"--{option} is no option of the solver {error.owner!r}; its options: {its}; "
            f"--{option} goes with {', '.join(fitting)}"
        ) from None
