"""The processes against published implementations and 50-digit arithmetic (golden file 01)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.score import reverse_drift
from tests.chains import ddpm_chain, smld_chain
from tests.conftest import f64, golden, golden_sde

CASES = golden("01_sde")
RTOL = 1e-9  # the file's tolerance


def moments(case: dict[str, Any]) -> list[tuple[dict[str, Any], Tensor]]:
    return [(row, f64(row["t"])) for row in case["outputs"]["per_t"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_coefficients(case: dict[str, Any]) -> None:
    sde, x = golden_sde(case["params"]), f64(case["inputs"]["x"])
    for row, t in moments(case):
        torch.testing.assert_close(sde.mean_coef(t), f64(row["mean_coeff_exact"]), rtol=RTOL, atol=0)
        torch.testing.assert_close(sde.std(t), f64(row["std_exact"]), rtol=RTOL, atol=0)
        torch.testing.assert_close(sde.diffusion(t), f64(row["diffusion_exact"]), rtol=RTOL, atol=0)
        torch.testing.assert_close(sde.drift(x, t), f64(row["drift"]), rtol=RTOL, atol=1e-15)
        torch.testing.assert_close(sde.perturb(x, t, torch.zeros_like(x)), f64(row["mean"]), rtol=RTOL, atol=0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_reverse_drifts(case: dict[str, Any]) -> None:
    sde, x = golden_sde(case["params"]), f64(case["inputs"]["x"])
    score = case["inputs"]["score_slope"] * x + case["inputs"]["score_offset"]
    for row, t in moments(case):
        torch.testing.assert_close(reverse_drift(sde, score, x, t, 1), f64(row["reverse_drift"]), rtol=RTOL, atol=1e-12)
        torch.testing.assert_close(reverse_drift(sde, score, x, t, 0), f64(row["pf_ode_drift"]), rtol=RTOL, atol=1e-12)
        torch.testing.assert_close(sde.diffusion(t), f64(row["reverse_diffusion"]), rtol=RTOL, atol=0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_prior(case: dict[str, Any]) -> None:
    sde, z = golden_sde(case["params"]), f64(case["inputs"]["z"])
    torch.testing.assert_close(sde.prior_log_prob(z), f64(case["outputs"]["prior_logp"]), rtol=RTOL, atol=0)


def step_coefficients(params: dict[str, Any], row: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(ρ − 1, added std) of the discrete forward step into grid index i, by the convention of the process."""
    if params["sde"] == "subvp":
        sde, t, n = golden_sde(params), f64(row["t"]), params["N"]
        return sde.drift_coef(t) / n, sde.diffusion(t) / n**0.5
    chain, level = CHAINS[params["sde"]](params), row["grid_index"] + 1
    here, before = chain.level(level), chain.level(level - 1)
    rho = torch.exp(chain.log_mean_coef(here) - chain.log_mean_coef(before))
    return rho - 1, (chain.std(here) ** 2 - rho**2 * chain.std(before) ** 2).sqrt()


CHAINS = {
    "vp": lambda p: ddpm_chain(p["beta_min"], p["beta_max"], p["N"]),
    "ve": lambda p: smld_chain(p["sigma_min"], p["sigma_max"], p["N"]),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_discrete_steps(case: dict[str, Any]) -> None:
    """The chains that later tests run ancestral sampling on. The last bits of 1 − ᾱ by subtraction limit rtol."""
    x = f64(case["inputs"]["x"])
    score = case["inputs"]["score_slope"] * x + case["inputs"]["score_offset"]
    for row, _ in moments(case):
        f, g = step_coefficients(case["params"], row)
        torch.testing.assert_close(f * x, f64(row["disc_f"]), rtol=RTOL, atol=1e-12)
        torch.testing.assert_close(g, f64(row["disc_G"]).flatten()[0], rtol=RTOL, atol=1e-12)
        torch.testing.assert_close(f * x - g**2 * score, f64(row["reverse_disc_f"]), rtol=RTOL, atol=1e-12)
        torch.testing.assert_close(f * x - g**2 * score / 2, f64(row["pf_disc_f"]), rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in CASES if c["outputs"].get("grid")], ids=lambda case: case["id"])
def test_discrete_grids(case: dict[str, Any]) -> None:
    chain, grid = CHAINS[case["params"]["sde"]](case["params"]), case["outputs"]["grid"]
    levels = [chain.level(i + 1) for i in grid["i"]]
    a, std = (torch.stack([f(t) for t in levels]) for f in (chain.mean_coef, chain.std))
    expected_a = f64(grid.get("sqrt_alpha_bar_i", [1.0] * len(levels)))
    torch.testing.assert_close(a, expected_a, rtol=RTOL, atol=0)
    torch.testing.assert_close(std, f64(grid.get("sqrt_one_minus_alpha_bar_i", grid.get("sigma_i"))), rtol=RTOL, atol=0)
