"""Preconditioning, signal-to-noise ratios and discrete losses of EDM and VDM (golden file 07)."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.losses import LikelihoodWeighting, denoising_error
from sde_diffusion.model import ScoreModel
from sde_diffusion.score import x0_from_score
from sde_diffusion.sde import SDE, VESDE, VPSDE, CosineBeta, LinearBeta
from sde_diffusion.sde.chain import DiscreteChain
from sde_diffusion.solvers import Ancestral, ReverseProcess
from tests.conftest import f64, golden
from tests.solvers.reference import GivenNoise

CASES = golden("07_edm_vdm")
CLOSE = {"rtol": 1e-10, "atol": 0.0}  # the file's tolerance


@dataclass(frozen=True)
class LinearGamma(SDE):
    """γ = −log SNR = γ_min + (γ_max − γ_min) t with a² + std² = 1, as VDM's fixed schedule."""

    gamma_min: float = -13.3
    gamma_max: float = 5.0

    def gamma(self, t: Tensor) -> Tensor:
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t

    def log_mean_coef(self, t: Tensor) -> Tensor:
        return 0.5 * nn.functional.logsigmoid(-self.gamma(t))

    def std(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self.gamma(t)).sqrt()

    def drift_coef(self, t: Tensor) -> Tensor:
        return -0.5 * (self.gamma_max - self.gamma_min) * torch.sigmoid(self.gamma(t))

    def diffusion(self, t: Tensor) -> Tensor:
        return (-2 * self.drift_coef(t)).sqrt()

    @property
    def prior_std(self) -> float:
        return 1.0


def process_of(params: dict[str, Any]) -> SDE:
    if params["schedule"] == "vp_linear":
        return VPSDE(LinearBeta(params["beta_min"], params["beta_max"]))
    if params["schedule"] == "cosine":
        return VPSDE(CosineBeta(offset=params["offset_s"], max=1e9))  # the file has no cap
    assert params["schedule"] == "linear_gamma"
    return LinearGamma(gamma_min=params["gamma_min"], gamma_max=params["gamma_max"])


def cases(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["id"]) for case in CASES if case["id"].startswith(kind)]


def test_every_case_is_used() -> None:
    assert len(cases("edm-")) + len(cases("snr-")) == len(CASES)


class Affine(nn.Module):
    """F(u, c) = a u + b c + k."""

    def __init__(self, a: float = 0.0, b: float = 0.0, k: float = 0.0) -> None:
        super().__init__()
        self.a, self.b, self.k = a, b, k

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        return self.a * x + self.b * c_noise[:, None] + self.k


@pytest.mark.parametrize("case", cases("edm-"))
def test_edm_is_the_score_model_over_ve(case: dict[str, Any]) -> None:
    """D = x + σ² s; its coefficients by what D makes of simple networks."""
    inputs, sd = case["inputs"], case["params"]["sigma_data"]
    x, x0, z = (f64(inputs[name]) for name in ("x", "x0", "z"))
    sde = VESDE(sigma_min=1e-4, sigma_max=1e4)
    for row in case["outputs"]["per_sigma"]:
        sigma = row["sigma"]
        t = f64([math.log(sigma / 1e-4) / math.log(1e8)])

        def denoised(net: nn.Module, y: Tensor, t: Tensor = t) -> Tensor:
            model = ScoreModel(net, sde, prediction="edm", sigma_data=sd)
            return x0_from_score(sde, model(y, t), y, t)

        zero, one = f64([[0.0]]), f64([[1.0]])
        c_skip, c_out = denoised(Affine(), one), denoised(Affine(k=1), zero)
        affine = Affine(inputs["inner_a"], inputs["inner_b"])
        found = {
            "c_skip": c_skip,
            "c_out": c_out,
            "c_in": (denoised(Affine(a=1), one) - c_skip) / c_out,
            "c_noise": denoised(Affine(b=1), zero) / c_out,
            "loss_weight": 1 / c_out**2,
            "D_of_sigma_times_x": denoised(affine, sigma * x),
        }
        assert set(row) == {"sigma", "loss_mean_over_coordinates", *found}
        for name, value in found.items():
            # D = x − σ ε̂ cancels where the data are far smaller than the noise: the digits of x are what counts
            tolerance = {"rtol": 1e-10, "atol": 1e-14 * max(1, sigma)}
            torch.testing.assert_close(value, f64(row[name]).reshape(value.shape), **tolerance, msg=name)
        model = ScoreModel(affine, sde, prediction="edm", sigma_data=sd)
        loss = row["loss_weight"] * sigma**2 * denoising_error(model, sde, x0, t, z)
        torch.testing.assert_close(loss, f64([row["loss_mean_over_coordinates"]]), **CLOSE)


@pytest.mark.parametrize("case", cases("snr-"))
def test_signal_to_noise_ratios(case: dict[str, Any]) -> None:
    sde, rows = process_of(case["params"]), case["outputs"]["per_t"]
    t = f64([row["t"] for row in rows])
    log_snr = 2 * sde.half_log_snr(t)
    found = {
        "log_snr": log_snr,
        "gamma": -log_snr,
        "snr": log_snr.exp(),
        "alpha": sde.mean_coef(t),
        "sigma": sde.std(t),
        "dgamma_dt": (sde.diffusion(t) / sde.std(t)) ** 2,
        "continuous_loss_weight_eps": 0.5 * LikelihoodWeighting().of_eps(sde, t),
    }
    assert set(rows[0]) == {"t", *found}
    for name, values in found.items():
        # where log SNR crosses 0 (t = 0.5 of the cosine) only an absolute tolerance means anything
        tolerance = {"rtol": 1e-10, "atol": 1e-14 if "gamma" in name or "log" in name else 0.0}
        torch.testing.assert_close(values, f64([row[name] for row in rows]), **tolerance, msg=name)
    for row in case["outputs"].get("sigma_over_alpha", []):
        t = f64(row["t"])
        torch.testing.assert_close(sde.std(t) / sde.mean_coef(t), f64(row["sigma_edm"]), **CLOSE)


@pytest.mark.parametrize("case", cases("snr-"))
def test_discrete_losses_and_ancestral_steps(case: dict[str, Any]) -> None:
    """By the solver `Ancestral` and by the chain of the two times."""
    sde = process_of(case["params"])
    one, zero = f64([[1.0]]), f64([[0.0]])

    def ancestral(s: float, t: float, *, x: Tensor, eps: Tensor, noise: Tensor) -> Tensor:
        process = ReverseProcess(sde, lambda _, t: -eps / sde.std(t)[:, None], noise=GivenNoise([noise]))
        return Ancestral().step(process, x, f64(t), f64(s), None)[0].squeeze()

    for row in case["outputs"]["per_pair"]:
        s, t = row["s"], row["t"]
        chain = DiscreteChain.from_sde(sde, f64([s, t]))
        x0_coef, x_coef, variance = (part[1] for part in chain.posterior)
        step = {
            "ancestral_coef_z": (x0_coef / chain.mean_coef[1] + x_coef, ancestral(s, t, x=one, eps=zero, noise=zero)),
            "ancestral_coef_eps": (
                -x0_coef * chain.std[1] / chain.mean_coef[1],
                ancestral(s, t, x=zero, eps=one, noise=zero),
            ),
            "ancestral_noise_std": (variance.sqrt(), ancestral(s, t, x=zero, eps=zero, noise=one)),
        }
        loss = {
            "expm1_gamma_t_minus_gamma_s": 2 * chain.eps_weight[0],
            "half_snr_s_minus_snr_t": 0.5 * (chain.snr[0] - chain.snr[1]),
        }
        assert set(row) == {"s", "t", *step, *loss}
        for name, values in step.items():
            for value in values:
                torch.testing.assert_close(value, f64(row[name]), **CLOSE, msg=name)
        for name, value in loss.items():
            torch.testing.assert_close(value, f64(row[name]), **CLOSE, msg=name)
