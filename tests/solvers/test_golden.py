"""The solvers against published implementations (golden files 03).

Conventions of the peer, reproduced by the adapters here: Euler–Maruyama steps by 1/N though its grid is spaced
(1 − t_min)/(N − 1); ancestral steps follow the discrete chain while the score is that of the continuous process at t; a
Langevin corrector comes before the predictor, at the same t, and its step size follows norms averaged over the batch.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.score import ScoreFn
from sde_diffusion.solvers import (
    AdaptiveODE,
    Ancestral,
    EulerMaruyama,
    NoiseSource,
    PerSampleODE,
    ReverseProcess,
    TorchdiffeqODE,
)
from tests.chains import Chain, ddpm_chain, smld_chain
from tests.conftest import f64, golden_sde
from tests.solvers.reference import GivenNoise, golden_file, golden_oracle

FILES = {data: golden_file(f"03_samplers_{data}") for data in ("gaussian", "mixture")}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # the files' tolerance
PREDICTORS = ("euler_maruyama", "ancestral")
ODES: dict[str, AdaptiveODE] = {
    **{f"torchdiffeq {name}": TorchdiffeqODE(method=name, rtol=1e-11, atol=1e-11) for name in ("dopri5", "dopri8")},
    **{f"ode {name}": PerSampleODE(method=name, rtol=1e-11, atol=1e-11) for name in ("tsit5", "dopri5")},
}

Update = Callable[[GaussianMixture, dict[str, Any], Tensor, float, NoiseSource], Tensor]


def cases(kind: str, *predictors: str) -> list[Any]:
    return [
        pytest.param(data, case, id=f"{data}-{case['id']}")
        for data, file in FILES.items()
        for case in file["cases"]
        if case["id"].startswith(kind) and (not predictors or case["params"]["predictor"] in predictors)
    ]


def chain_of(params: dict[str, Any]) -> Chain:
    if params["sde"] == "ve":
        return smld_chain(params["sigma_min"], params["sigma_max"], params["N"])
    return ddpm_chain(params["beta_min"], params["beta_max"], params["N"])


def grid_index(params: dict[str, Any], t: float) -> int:
    return math.floor(t * (params["N"] - 1))


def euler_maruyama(oracle: GaussianMixture, params: dict[str, Any], x: Tensor, t: float, noise: NoiseSource) -> Tensor:
    process = ReverseProcess(oracle.sde, oracle.score, noise=noise)
    return EulerMaruyama().step(process, x, f64(t), f64(t - 1 / params["N"]), None)[0]


def ancestral(oracle: GaussianMixture, params: dict[str, Any], x: Tensor, t: float, noise: NoiseSource) -> Tensor:
    chain, i = chain_of(params), grid_index(params, t)
    score: ScoreFn = lambda x, _: oracle.score(x, f64(t))  # noqa: E731
    process = ReverseProcess(chain, score, noise=noise)
    solver = Ancestral(variance="small" if params["sde"] == "ve" else "large")
    return solver.step(process, x, chain.level(i + 1), chain.level(i), None)[0]


def corrector(oracle: GaussianMixture, params: dict[str, Any], x: Tensor, t: float, noise: NoiseSource) -> Tensor:
    alpha = 1.0
    if params["sde"] == "vp":
        chain, i = chain_of(params), grid_index(params, t)
        alpha = float(torch.exp(2 * (chain.log_mean_coef(chain.level(i + 1)) - chain.log_mean_coef(chain.level(i)))))
    for _ in range(params["n_corrector_steps"]):
        score, z = oracle.score(x, f64(t)), noise(x, f64(t), f64(t))
        ratio = z.norm(dim=1).mean() / score.norm(dim=1).mean()
        size = oracle.sde.std(f64(t)) if params["corrector"] == "ald" else ratio
        h = 2 * alpha * (params["snr"] * size) ** 2
        x = x + h * score + (2 * h).sqrt() * z
    return x


UPDATES: dict[str, Update] = {"euler_maruyama": euler_maruyama, "ancestral": ancestral}


@pytest.mark.parametrize(("data", "case"), cases("pc-", *PREDICTORS))
def test_runs(data: str, case: dict[str, Any]) -> None:
    params, expected = case["params"], case["outputs"]
    sde = golden_sde(params, t_min=params["eps"])
    oracle = golden_oracle(FILES[data]["data_distribution"], sde)
    pool = [f64(z) for z in FILES[data]["noise_pool"][: expected["n_noise"]]]
    predict = UPDATES[params["predictor"]]
    noise = GivenNoise(pool)

    x = sde.prior_std * noise.prior(tuple(pool[0].shape))
    torch.testing.assert_close(x, f64(expected["x_T"]), **CLOSE)
    before = x
    for t, after in zip(expected["t_grid"], expected["x_after_each_step"], strict=True):
        before = corrector(oracle, params, x, t, noise)
        x = predict(oracle, params, before, t, noise)
        torch.testing.assert_close(x, f64(after), **CLOSE)
    torch.testing.assert_close(x, f64(expected["x_final"]), **CLOSE)
    mean = predict(oracle, params, before, t, GivenNoise([torch.zeros_like(x)]))
    torch.testing.assert_close(mean, f64(expected["x_final_denoised"]), **CLOSE)
    assert next(noise.draws, None) is None


@pytest.mark.parametrize(("data", "case"), cases("one-"))
def test_single_updates(data: str, case: dict[str, Any]) -> None:
    params, expected, x = case["params"], case["outputs"], f64(case["inputs"]["x"])
    oracle = golden_oracle(FILES[data]["data_distribution"], golden_sde(params))
    torch.testing.assert_close(oracle.score(x, f64(params["t"])), f64(expected["score"]), **CLOSE)
    updates = {row["update"]: row for row in expected["updates"] if row["update"] in UPDATES}
    assert updates.keys() == {"euler_maruyama"} | ({"ancestral"} if params["sde"] != "subvp" else set())
    for name, row in updates.items():
        for key, z in {"x_new": f64(case["inputs"]["z"][0]), "x_mean": torch.zeros_like(x)}.items():
            result = UPDATES[name](oracle, params, x, params["t"], GivenNoise([z]))
            torch.testing.assert_close(result, f64(row[key]), **CLOSE)


@pytest.mark.parametrize("method", ODES)
@pytest.mark.parametrize(("data", "case"), cases("ode-"))
def test_flow(data: str, case: dict[str, Any], method: str) -> None:
    params = case["params"]
    sde = golden_sde(params, t_min=params["eps"])
    oracle = golden_oracle(FILES[data]["data_distribution"], sde)
    process = ReverseProcess(sde, oracle.score)
    x = ODES[method].solve(process, f64(case["inputs"]["x_T"]), 1.0, params["eps"])
    torch.testing.assert_close(x, f64(case["outputs"]["x_eps"]), rtol=0, atol=1e-7)
