"""DDIM and DPM-Solver++ on published discrete chains (golden file 06a).

Conventions of the peers, reproduced by the adapters here: DDIM steps to t − T//n, which with linspace spacing is not
the next time of the list; the last steps of DPM-Solver++ fall back to lower orders; its third order takes half of the
quadratic term and leaves the first step at order 1.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.grids import LevelsGrid
from sde_diffusion.sde import BETA_SEQUENCES, DDPM
from sde_diffusion.sde.chain import DiscreteChain
from sde_diffusion.solvers import Ancestral, ReverseProcess
from sde_diffusion.solvers.base import Walk
from sde_diffusion.solvers.ddim import DDIM
from sde_diffusion.solvers.dpmpp_2m import DPMpp2M
from sde_diffusion.solvers.dpmpp_3m import DPMpp3M
from sde_diffusion.solvers.exponential import moments
from tests.chains import Chain, as_process
from tests.conftest import f64, golden
from tests.solvers.reference import GivenNoise, golden_oracle

CASES = {case["id"]: case for case in golden("06a_ddim_dpmsolver")}
CLOSE = {"rtol": 1e-8, "atol": 1e-10}  # the file's tolerance; states are of size 1


def chain_of(schedule: str, length: int = 1000) -> Chain:
    return as_process(DiscreteChain.from_betas(BETA_SEQUENCES[schedule]()(length)))


def process_of(case: dict[str, Any], noise: list[Any]) -> tuple[Chain, ReverseProcess]:
    chain = chain_of(case["params"]["schedule"])
    oracle = golden_oracle(case["data_distribution"], chain)
    return chain, ReverseProcess(chain, oracle.score, noise=GivenNoise(f64(z) for z in noise))


def is_subset(case: dict[str, Any]) -> bool:
    """Whether DDIM goes through equally spaced levels, down to clean data."""
    params = case["params"]
    return case["id"].startswith("ddim") and params["spacing"] != "linspace" and params["final_alpha_bar"] == "1"


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("ddim")])
def test_ddim(name: str) -> None:
    params, inputs, expected = (CASES[name][key] for key in ("params", "inputs", "outputs"))
    chain, process = process_of(CASES[name], inputs["z_per_step"])
    final = {"1": 0, "alpha_bar_0": 1}[params["final_alpha_bar"]]
    solver, x = DDIM(eta=params["eta"]), f64(inputs["x_T"])
    for k, previous, after in zip(
        expected["timesteps"], expected["previous_timesteps"], expected["x_after_each_step"], strict=True
    ):
        level = previous + 1 if previous >= 0 else final
        x, _ = solver.step(process, x, chain.level(k + 1), chain.level(level), None)
        torch.testing.assert_close(x, f64(after), **CLOSE)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if is_subset(case)])
def test_ddim_and_ancestral_on_a_subset_of_the_levels(name: str) -> None:
    """As a user calls them: the solver on the grid `levels` between two levels, then the final denoising."""
    params, inputs, expected = (CASES[name][key] for key in ("params", "inputs", "outputs"))
    sde = DDPM(steps=params["T"], beta=BETA_SEQUENCES[params["schedule"]]())
    oracle = golden_oracle(CASES[name]["data_distribution"], sde)
    first, last = ((k + 1) / params["T"] for k in (expected["timesteps"][0], expected["timesteps"][-1]))
    steps, grid = params["n_steps"] - 1, LevelsGrid()
    for solver in [DDIM(eta=params["eta"], steps=steps, grid=grid), Ancestral(steps=steps, grid=grid)]:
        if solver.stochastic != (params["eta"] == 1) and isinstance(solver, Ancestral):
            continue
        process = ReverseProcess(sde, oracle.score, noise=GivenNoise(f64(z) for z in inputs["z_per_step"]))
        x = solver.solve(process, f64(inputs["x_T"]), first, last)
        torch.testing.assert_close(x, f64(expected["x_after_each_step"][-2]), **CLOSE)
        torch.testing.assert_close(process.x0(x, f64(last)), f64(expected["x_after_each_step"][-1]), **CLOSE)
        assert process.nfe == params["n_steps"]


def half_quadratic(chain: Chain, walk: Walk) -> Tensor:
    """½ a_n m_2 D₂ of the last step, what the published third order leaves out."""
    *_, first, before, now, after = map(chain.half_log_snr, walk.times)
    x0, x0_before, x0_first = walk.state.predictions[:3]
    second = ((x0 - x0_before) / (now - before) - (x0_before - x0_first) / (before - first)) / (now - first)
    h = after - now
    return 0.5 * chain.mean_coef(walk.times[-1]) * moments(h, 3)[2] * h**2 * second


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("dpmpp")])
def test_dpm_solver(name: str) -> None:
    params, expected = CASES[name]["params"], CASES[name]["outputs"]
    chain, process = process_of(CASES[name], [])
    levels = [k + 1 for k in expected["timesteps"]] + [0 if params["final_sigma"] == "zero" else 1]
    steps = len(levels) - 1
    second, third = DPMpp2M(rule=params["second_order_rule"]), DPMpp3M()
    x, state2, state3 = f64(CASES[name]["inputs"]["x_T"]), None, None
    for i, (level, after) in enumerate(zip(pairwise(levels), expected["x_after_each_step"], strict=True)):
        t, t_next = map(chain.level, level)
        left = steps - i if steps < 15 or (params["final_sigma"] == "zero" and i == steps - 1) else 3
        order = min(params["order"], i + 1, left)
        if order == 1:
            state2 = None
        if order < 3:
            state3 = third.step(process, x, t, t_next, state3)[1] if i < steps - 1 else None
            x, state2 = second.step(process, x, t, t_next, state2)
        else:
            state2 = second.step(process, x, t, t_next, state2)[1]
            x, state3 = third.step(process, x, t, t_next, state3)
            x = x - half_quadratic(chain, state3)
        torch.testing.assert_close(x, f64(after), **CLOSE)
