"""Test doubles for solvers: given noise, and the data of golden files 03."""

import json
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.sde import SDE
from sde_diffusion.solvers import NoiseSource
from tests.conftest import GOLDEN, f64


class GivenNoise(NoiseSource):
    """Hands out stored draws in their order."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self.draws = iter(draws)

    def prior(self, shape: tuple[int, ...]) -> Tensor:
        return next(self.draws)

    def __call__(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return next(self.draws)


def golden_file(name: str) -> dict[str, Any]:
    """A whole reference file."""
    content: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return content


def golden_oracle(data: dict[str, Any], sde: SDE) -> GaussianMixture:
    """The `data_distribution` of a reference file under a process."""
    if data["kind"] == "gaussian":
        return GaussianMixture.gaussian(sde, f64(data["m"]), data["s"])
    return GaussianMixture(sde, f64(data["w"]), f64(data["mu"]), f64(data["s"]))
