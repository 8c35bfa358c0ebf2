"""Reverse diffusion and predictor–corrector sampling against published implementations (golden files 03).

Conventions of the peer, reproduced by the adapters here: chains step by their index while the score is that of the
continuous process at t; sub-VP has no chain, and its reverse diffusion is Euler–Maruyama by 1/N; a probability-flow
predictor uses up a draw; Langevin's norms are means over the batch.
"""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.solvers import (
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    GridSolver,
    Langevin,
    NoiseSource,
    ReverseDiffusion,
    ReverseProcess,
)
from tests.chains import Chain, ddpm_chain, smld_chain
from tests.conftest import f64, golden_sde
from tests.solvers.reference import GivenNoise, golden_file, golden_oracle

FILES = {data: golden_file(f"03_samplers_{data}") for data in ("gaussian", "mixture")}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # the files' tolerance


def cases(kind: str) -> list[Any]:
    return [
        pytest.param(data, case, id=f"{data}-{case['id']}")
        for data, file in FILES.items()
        for case in file["cases"]
        if case["id"].startswith(kind)
    ]


@dataclass(frozen=True)
class LevelWithStd(Chain):
    """A chain of which a corrector sees the std of the continuous process."""

    told: float = 1.0

    def std(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.told)


@dataclass(frozen=True)
class Peer:
    """One update of the peer at time t, by our solvers."""

    oracle: GaussianMixture
    params: dict[str, Any]
    t: float

    @property
    def chain(self) -> Chain:
        if self.params["sde"] == "ve":
            return smld_chain(self.params["sigma_min"], self.params["sigma_max"], self.params["N"])
        return ddpm_chain(self.params["beta_min"], self.params["beta_max"], self.params["N"])

    def predict(self, name: str, flow: bool, x: Tensor, noise: NoiseSource) -> Tensor:
        if name == "none":
            return x
        eta = 0.0 if flow else 1.0
        if name == "euler_maruyama" or self.params["sde"] == "subvp":
            solver: GridSolver = EulerMaruyama(eta=eta)
            sde, t, t_next = self.oracle.sde, f64(self.t), f64(self.t - 1 / self.params["N"])
        else:
            solver = ReverseDiffusion(eta=eta) if name == "reverse_diffusion" else self._ancestral()
            sde, (t, t_next) = self.chain, self._levels()
        x = solver.step(ReverseProcess(sde, self._score, noise=noise), x, t, t_next, None)[0]
        if flow:
            noise(x, t, t_next)
        return x

    def correct(self, name: str, snr: float, repeats: int, x: Tensor, noise: NoiseSource) -> Tensor:
        if name == "none":
            return x
        options = {"snr": snr, "repeats": repeats}
        corrector = Langevin(norm="batch", **options) if name == "langevin" else AnnealedLangevin(**options)
        chain, std = self.chain, float(self.oracle.sde.std(f64(self.t)))
        process = ReverseProcess(LevelWithStd(**vars(chain), told=std), self._score, noise=noise)
        return corrector.correct(process, x, *self._levels())

    def _ancestral(self) -> Ancestral:
        return Ancestral(variance="small" if self.params["sde"] == "ve" else "large")

    def _levels(self) -> tuple[Tensor, Tensor]:
        i = math.floor(self.t * (self.params["N"] - 1))
        return self.chain.level(i + 1), self.chain.level(i)

    def _score(self, x: Tensor, t: Tensor) -> Tensor:
        return self.oracle.score(x, f64(self.t))


@pytest.mark.parametrize(("data", "case"), cases("pc-"))
def test_runs(data: str, case: dict[str, Any]) -> None:
    params, expected = case["params"], case["outputs"]
    sde = golden_sde(params, t_min=params["eps"])
    oracle = golden_oracle(FILES[data]["data_distribution"], sde)
    noise = GivenNoise(f64(z) for z in FILES[data]["noise_pool"][: expected["n_noise"]])
    x = sde.prior_std * noise.prior(())
    for t, after in zip(expected["t_grid"], expected["x_after_each_step"], strict=True):
        peer = Peer(oracle, params, t)
        before = peer.correct(params["corrector"], params["snr"], params["n_corrector_steps"], x, noise)
        x = peer.predict(params["predictor"], params["probability_flow"], before, noise)
        torch.testing.assert_close(x, f64(after), **CLOSE)
    silent = GivenNoise([torch.zeros_like(x)])
    mean = peer.predict(params["predictor"], params["probability_flow"], before, silent)
    torch.testing.assert_close(mean, f64(expected["x_final_denoised"]), **CLOSE)
    assert next(noise.draws, None) is None


@pytest.mark.parametrize(("data", "case"), cases("one-"))
def test_single_updates(data: str, case: dict[str, Any]) -> None:
    params, x = case["params"], f64(case["inputs"]["x"])
    oracle = golden_oracle(FILES[data]["data_distribution"], golden_sde(params))
    peer, draws = Peer(oracle, params, params["t"]), [f64(z) for z in case["inputs"]["z"]]
    seen = set()
    for row in case["outputs"]["updates"]:
        seen.add(row["update"])
        if row["update"] in ("langevin", "ald"):
            found = peer.correct(row["update"], row["snr"], row["n_corrector_steps"], x, GivenNoise(draws))
        else:
            found = peer.predict(row["update"], row["probability_flow"], x, GivenNoise(draws))
        torch.testing.assert_close(found, f64(row["x_new"]), **CLOSE)
    published = {"euler_maruyama", "reverse_diffusion", "ancestral", "langevin", "ald"}
    assert seen == (published if params["sde"] != "subvp" else {"euler_maruyama", "reverse_diffusion"})


@pytest.mark.parametrize(("data", "case"), cases("ode-"))
def test_a_last_step_without_noise(data: str, case: dict[str, Any]) -> None:
    params, expected = case["params"], case["outputs"]
    oracle = golden_oracle(FILES[data]["data_distribution"], golden_sde(params))
    x = f64(expected["x_eps"])
    silent = GivenNoise([torch.zeros_like(x)])
    found = Peer(oracle, params, params["eps"]).predict("reverse_diffusion", False, x, silent)
    torch.testing.assert_close(found, f64(expected["x_eps_after_one_noise_free_reverse_diffusion_step"]), **CLOSE)
