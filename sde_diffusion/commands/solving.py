"""The options that choose a solver, and their way into the config."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from sde_diffusion.build import Config
from sde_diffusion.commands.common import Command, as_assignments
from sde_diffusion.config import read_yaml
from sde_diffusion.errors import InputError, UnknownKeyError, require
from sde_diffusion.grids import GRIDS
from sde_diffusion.solvers import SOLVERS, GridSolver, Solver, for_budget, within

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


def budget_option(command: Command) -> Command:
    """--nfe."""
    return click.option(
        "--nfe",
        type=int,
        help="Score evaluations per sample, the final denoising included: chooses solver, grid, steps and end, or the "
        "steps of the solver that is named.",
    )(command)


def check_budget(given: Mapping[str, Any], assignments: Sequence[str], file: Path | None) -> None:
    """Refuse options that say otherwise than --nfe.

    Raises:
        InputError: They do.
    """
    if given["nfe"] is None:
        return
    require(given["nfe"] > 0, f"--nfe must be > 0, got {given['nfe']}")
    for key in ("steps", "rtol", "atol"):
        by_key = any(assignment.partition("=")[0].strip() == f"{SECTION}.{key}" for assignment in assignments)
        flag = f"--set {SECTION}.{key}" if by_key else f"--{key}"
        require(
            given[key] is None and not by_key,
            f"--nfe decides how many steps there are, so {flag} cannot be given beside it; leave one of them out",
        )
    require(
        given["grid"] is None or _names_solver(given, assignments, file),
        "--nfe chooses the grid with the solver; name a --solver too, or leave --grid out",
    )


def _names_solver(given: Mapping[str, Any], assignments: Sequence[str], file: Path | None) -> bool:
    """Whether the user says anything of the solver but its grid: by a flag, by its key or in the config `file`."""
    if given["solver"] is not None or any(assignment.strip().startswith(SECTION) for assignment in assignments):
        return True
    section = None if file is None else read_yaml(file).get("sampling")
    return isinstance(section, Mapping) and section.get("solver") is not None


def spend_budget(given: Mapping[str, Any], assignments: Sequence[str], file: Path | None, config: Config) -> Config:
    """`config` with what --nfe chooses: all, or the steps alone of a solver that the user names.

    Raises:
        InputError: Too little for one step, or an adaptive solver, which chooses its own.
    """
    nfe, options = given["nfe"], config.sampling
    if nfe is None:
        return config
    denoise = None if options.denoise and given["denoise"] is None else options.denoise
    if _names_solver(given, assignments, file):
        fitting = [name for name, row in SOLVERS.items() if issubclass(row, GridSolver)]
        require(
            isinstance(options.solver, GridSolver),
            f"--nfe cannot set the steps of the solver {name_of(options.solver)!r}, which chooses its own by its "
            f"tolerances; take one of {', '.join(fitting)}, or name none",
        )
        assert isinstance(options.solver, GridSolver)
        plan = within(options.solver, nfe, denoise=denoise)
    else:
        plan = for_budget(nfe, denoise=denoise)
    t_end = plan.t_end(config.sde) if options.t_end is None else options.t_end
    sampling = dataclasses.replace(options, solver=plan.solver, denoise=plan.denoise, t_end=t_end)
    return dataclasses.replace(config, sampling=sampling)


def name_of(solver: Solver) -> str:
    """Its row in `SOLVERS`."""
    return next(name for name, row in SOLVERS.items() if type(solver) is row)


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
