"""Tables of Markdown, and that of the solvers in docs/numerics.md: `python -m tools.tables` writes it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sde_diffusion.docstrings import reference
from sde_diffusion.grids import GRIDS
from sde_diffusion.solvers import SOLVERS, GridSolver

NUMERICS = Path(__file__).parents[1] / "docs" / "numerics.md"


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


def with_solvers(text: str) -> str:
    """The `text` of docs/numerics.md with its table written anew."""
    return replaced(text, "solvers", solver_table())


if __name__ == "__main__":
    NUMERICS.write_text(with_solvers(NUMERICS.read_text()))
