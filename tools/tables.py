"""The tables of README.md and docs/numerics.md, from the registries: `python -m tools.tables` writes them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sde_diffusion.data import DATASETS
from sde_diffusion.docstrings import reference, summary
from sde_diffusion.exchange import FORMATS
from sde_diffusion.grids import GRIDS
from sde_diffusion.guidance import GUIDANCES
from sde_diffusion.likelihood import DEQUANTISATIONS, DIVERGENCES
from sde_diffusion.losses import OBJECTIVES, TIME_SAMPLERS, WEIGHTINGS
from sde_diffusion.model import PREDICTIONS
from sde_diffusion.networks import CLASSIFIERS, NETWORKS
from sde_diffusion.projections import PROJECTIONS
from sde_diffusion.sde import BETA_SEQUENCES, BETAS, SDES
from sde_diffusion.solvers import CORRECTORS, SOLVERS, GridSolver
from sde_diffusion.training import TRAINING_NOISES

README = Path(__file__).parents[1] / "README.md"
NUMERICS = README.parent / "docs" / "numerics.md"

TABLES: dict[str, tuple[str, Mapping[str, Callable[..., Any]]]] = {
    "sde": ("`sde.name`", SDES),
    "beta": ("`sde.beta.name`", BETAS),
    "beta_sequence": ("`sde.beta.name` of `ddpm`", BETA_SEQUENCES),
    "solver": ("`sampling.solver.name`", SOLVERS),
    "grid": ("`sampling.solver.grid.name`", GRIDS),
    "corrector": ("`sampling.solver.corrector.name`", CORRECTORS),
    "projection": ("`sampling.project.name`", PROJECTIONS),
    "guidance": ("`sampling.guidance.name`", GUIDANCES),
    "divergence": ("`likelihood.divergence.name`", DIVERGENCES),
    "dequantisation": ("`likelihood.dequantisation.name`", DEQUANTISATIONS),
    "prediction": ("`model.prediction`", PREDICTIONS),
    "network": ("`model.network.name`", NETWORKS),
    "objective": ("`loss.objective.name`", OBJECTIVES),
    "classifier": ("`classifier.network.name`", CLASSIFIERS),
    "weighting": ("`loss.weighting.name`", WEIGHTINGS),
    "time_sampler": ("`loss.time_sampler.name`", TIME_SAMPLERS),
    "data": ("`data.name`", DATASETS),
    "format": ("`import --format`", FORMATS),
    "training_noise": ("`training.dequantise.name`", TRAINING_NOISES),
}


def table(key: str) -> str:
    """One registry as Markdown: the name, the first paragraph of the docstring, the reference."""
    heading, registry = TABLES[key]
    rows = [f"| {heading} | what it is | reference |", "|---|---|---|"]
    rows += [f"| `{name}` | {cell(summary(part))} | {reference(part)} |" for name, part in registry.items()]
    return "\n".join(rows)


def cell(text: str) -> str:
    """`text` for a cell of a table, where a bar would end it."""
    return text.replace("|", "\\|")


def solver_table() -> str:
    """Every solver with its defaults: order, noise and cost as the code declares them."""
    rows = ["| solver | order | noise | evaluations | steps it takes | reference |", "|---|---|---|---|---|---|"]
    for name, row in SOLVERS.items():
        solver = row()
        on_grid = isinstance(solver, GridSolver)
        cost = f"{solver.evaluations} a step" if on_grid else "by its tolerance"
        steps = f"{solver.steps}, `{name_of(GRIDS, solver.grid)}`" if on_grid else "its own"
        noise = "yes" if solver.stochastic else "no"
        rows.append(f"| `{name}` | {solver.order} | {noise} | {cost} | {steps} | {reference(row)} |")
    return "\n".join(rows)


def name_of(registry: Mapping[str, Callable[..., Any]], value: object) -> str:
    """The row that a value is of."""
    return next(name for name, part in registry.items() if type(value) is part)


def replaced(text: str, key: str, found: str) -> str:
    """`text` with what stands between a pair of table marks written anew."""
    begin, end = f"<!-- table: {key} -->", "<!-- end -->"
    assert begin in text, f"there is no table {key}"
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{found}\n{end}{rest.partition(end)[2]}"


def with_tables(text: str) -> str:
    """The README's `text` with its tables written anew."""
    for key in TABLES:
        text = replaced(text, key, table(key))
    return text


def with_solvers(text: str) -> str:
    """The `text` of docs/numerics.md with its table written anew."""
    return replaced(text, "solvers", solver_table())


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
    NUMERICS.write_text(with_solvers(NUMERICS.read_text()))
