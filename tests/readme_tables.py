"""The README's tables, from the registries: `python -m tests.readme_tables` writes them anew."""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sde_diffusion.data import DATASETS
from sde_diffusion.grids import GRIDS
from sde_diffusion.likelihood import DEQUANTISATIONS, DIVERGENCES
from sde_diffusion.losses import TIME_SAMPLERS, WEIGHTINGS
from sde_diffusion.model import PREDICTIONS
from sde_diffusion.networks import NETWORKS
from sde_diffusion.projections import PROJECTIONS
from sde_diffusion.sde import BETAS, SDES
from sde_diffusion.solvers import CORRECTORS, SOLVERS

README = Path(__file__).parents[1] / "README.md"

TABLES: dict[str, tuple[str, Mapping[str, Callable[..., Any]]]] = {
    "sde": ("`sde.name`", SDES),
    "beta": ("`sde.beta.name`", BETAS),
    "solver": ("`sampling.solver.name`", SOLVERS),
    "grid": ("`sampling.solver.grid.name`", GRIDS),
    "corrector": ("`sampling.solver.corrector.name`", CORRECTORS),
    "projection": ("`sampling.project.name`", PROJECTIONS),
    "divergence": ("`likelihood.divergence.name`", DIVERGENCES),
    "dequantisation": ("`likelihood.dequantisation.name`", DEQUANTISATIONS),
    "prediction": ("`model.prediction`", PREDICTIONS),
    "network": ("`model.network.name`", NETWORKS),
    "weighting": ("`loss.weighting.name`", WEIGHTINGS),
    "time_sampler": ("`loss.time_sampler.name`", TIME_SAMPLERS),
    "data": ("`data.name`", DATASETS),
}


def table(key: str) -> str:
    """One registry as Markdown: the name, the first paragraph of the docstring, the reference."""
    heading, registry = TABLES[key]
    rows = [f"| {heading} | what it is | reference |", "|---|---|---|"]
    for name, part in registry.items():
        text = inspect.getdoc(part) or ""
        summary = " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")
        reference = re.search(r"References?: (.*?)(?:\n\n|$)", text, re.DOTALL)
        cited = " ".join(reference[1].split()).rstrip(".") if reference else ""
        rows.append(f"| `{name}` | {summary} | {cited} |")
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """`text` with what stands between each pair of table marks written anew."""
    for key in TABLES:
        begin, end = f"<!-- table: {key} -->", "<!-- end -->"
        assert begin in text, f"README.md has no table {key}"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{table(key)}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
