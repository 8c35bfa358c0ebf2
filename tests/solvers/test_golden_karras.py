"""The samplers of k-diffusion (golden file 06b). Its noise levels σ are the times of a process with a = 1, std = t."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sde_diffusion.grids import KarrasGrid
from sde_diffusion.sde import SDE
from sde_diffusion.solvers import Ancestral, GridSolver, NoiseSource, ReverseProcess
from sde_diffusion.solvers.ddim import DDIM
from sde_diffusion.solvers.dpmpp_2m import DPMpp2M
from sde_diffusion.solvers.heun import Heun
from tests.conftest import f64, golden
from tests.solvers.reference import golden_oracle

CASES = golden("06b_kdiffusion")
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # the file's tolerance


@dataclass(frozen=True)
class NoiseLevel(SDE):
    t_max: ClassVar[float] = 200.0

    def log_mean_coef(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def std(self, t: Tensor) -> Tensor:
        return t

    def drift_coef(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return (2 * t).sqrt()

    @property
    def prior_std(self) -> float:
        return self.t_max


class StepNoise(NoiseSource):
    """The stored draw of the step that starts at t; zeros for the last one, which adds no noise."""

    def __init__(self, times: list[float], draws: list[Any]) -> None:
        self.draws = dict(zip(times, map(f64, draws), strict=False))

    def prior(self, shape: tuple[int, ...]) -> Tensor:
        raise AssertionError("the start is given")

    def __call__(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return self.draws[float(t)] if t_next > 0 else self.draws.get(float(t), torch.zeros_like(x))


def solvers_of(name: str, params: dict[str, Any]) -> list[GridSolver]:
    """Every solver that takes the steps of a case."""
    if name == "heun_churn":
        churn = {key: params[key] for key in ("s_churn", "s_tmin", "s_tmax", "s_noise")}
        return [Heun(steps=params["n"], **churn)]
    return {
        "euler": [DDIM()],
        "heun": [Heun()],
        "dpmpp_2m": [DPMpp2M()],
        "euler_ancestral": [DDIM(eta=1.0), Ancestral()],
        "euler_ancestral_eta0.6": [DDIM(eta=0.6)],
    }[name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_runs(case: dict[str, Any]) -> None:
    name, params, expected = case["id"].split("-")[2], case["params"], case["outputs"]
    sde = NoiseLevel()
    grid = KarrasGrid(params["rho"])(sde, params["sigma_max"], params["sigma_min"], params["n"] - 1)
    torch.testing.assert_close([*grid.tolist(), 0.0], expected["sigmas"], **CLOSE)
    oracle = golden_oracle(case["data_distribution"], sde)
    for solver in solvers_of(name, params):
        calls: list[Tensor] = []

        def score(x: Tensor, t: Tensor, calls: list[Tensor] = calls) -> Tensor:
            calls.append(x)
            return oracle.score(x, t)

        process = ReverseProcess(sde, score, noise=StepNoise(expected["sigmas"], case["inputs"]["noise"]))
        x, state, first_stage = f64(case["inputs"]["x_init"]), None, []
        for t, t_next in pairwise(f64(expected["sigmas"])):
            first_stage.append(len(calls))
            x, state = solver.step(process, x, t, t_next, state if t_next > 0 else None)
        torch.testing.assert_close(x, f64(expected["x_final"]), **CLOSE)
        assert process.nfe == expected["n_model_calls"]
        for call, at in zip(first_stage, expected["x_at_each_model_call_first_stage"], strict=True):
            torch.testing.assert_close(calls[call], f64(at), **CLOSE)
