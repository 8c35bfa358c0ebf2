"""Discrete chains against published implementations (golden file 02), against the process and by their algebra.

Conventions of the peer, reproduced by the adapters here: t = k − 1, and no noise is added by the step to clean data.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.grids import LevelsGrid, LogSNRGrid
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.projections import Clip
from sde_diffusion.sampling import sample
from sde_diffusion.score import eps_from_score
from sde_diffusion.sde import BETA_SEQUENCES, DDPM, SDE, VPSDE, BetaSequence, CosineBetas, LinearBetas
from sde_diffusion.sde.chain import DiscreteChain, FixedVariance
from sde_diffusion.solvers import Ancestral, ReverseProcess, SeededNoise
from tests.conftest import f64, golden
from tests.solvers.reference import GivenNoise

CASES = golden("02_ddpm")
CLOSE = {"rtol": 1e-10, "atol": 1e-14}  # the file's tolerance


def betas_of(params: dict[str, Any]) -> BetaSequence:
    schedule = params["schedule"]
    assert (params["beta_start"], params["beta_end"]) == (1e-4, 0.02), "the defaults of the published chains"
    if schedule == "cosine_clip_1e-4_0.9999":
        return CosineBetas(floor=1e-4, cap=0.9999)
    return BETA_SEQUENCES[schedule]()


def chain_of(params: dict[str, Any]) -> DiscreteChain:
    return DiscreteChain.from_betas(betas_of(params)(params["T"]))


@pytest.fixture(params=CASES, ids=lambda case: case["id"])
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param  # type: ignore[no-any-return]


def test_golden_coefficients(case: dict[str, Any]) -> None:
    chain, rows = chain_of(case["params"]), case["outputs"]["per_t"]
    assert chain.steps == case["params"]["T"]
    alpha_bar = chain.mean_coef**2
    found = {
        "beta": chain.added,
        "alpha_bar": alpha_bar,
        "alpha_bar_prev": torch.cat([torch.ones(1), alpha_bar[:-1]]),
        "sqrt_alpha_bar": chain.mean_coef,
        "sqrt_one_minus_alpha_bar": chain.std,
        "posterior_variance": chain.posterior.variance,
        "posterior_log_variance_clipped": chain.clipped_log_variance,
        "posterior_mean_coef_x0": chain.posterior.x0_coef,
        "posterior_mean_coef_xt": chain.posterior.x_coef,
        "snr": chain.snr,
    }
    t = torch.tensor([row["t"] for row in rows])
    for name, values in found.items():
        torch.testing.assert_close(values[t], f64([row[name] for row in rows]), **CLOSE, msg=name)
    assert set(rows[0]) - set(found) == {
        "t", "posterior_variance_diffusers_float32_info", "posterior_variance_diffusers_float64"
    }  # fmt: skip
    torch.testing.assert_close(chain.added.sum(), f64(case["outputs"]["sum_beta"]), **CLOSE)
    torch.testing.assert_close(alpha_bar.sum(), f64(case["outputs"]["sum_alpha_bar"]), **CLOSE)


def test_golden_ancestral_steps(case: dict[str, Any]) -> None:
    """By the chain's own coefficients, and by the solver `Ancestral` on the process that has its levels."""
    chain = chain_of(case["params"])
    process = DDPM(steps=case["params"]["T"], beta=betas_of(case["params"]))
    x, eps, z = (f64(case["inputs"][name]) for name in ("x_t", "eps_hat", "z"))
    seen = set()
    for row in case["outputs"]["ancestral_steps"]:
        level, kind = row["t"] + 1, row["variance"].removeprefix("fixed_")
        clip = Clip() if row["clip_x0_to_pm1"] else None
        seen.add((kind, clip is None))
        x0 = chain.x0(x, eps, level)
        x0 = clip(x0) if clip else x0
        torch.testing.assert_close(x0, f64(row["x0_hat"]), **CLOSE)
        noise = z if row["t"] > 0 else torch.zeros_like(z)
        after = chain.posterior_mean(x, x0, level) + chain.variance(kind)[level - 1].sqrt() * noise
        torch.testing.assert_close(after, f64(row["x_prev"]), **CLOSE)
        reverse = ReverseProcess(
            process, lambda _, t: -eps / process.std(t)[:, None], noise=GivenNoise([noise]), project=clip
        )
        t, t_next = f64(level / chain.steps), f64((level - 1) / chain.steps)
        found, _ = Ancestral(variance=kind).step(reverse, x, t, t_next, None)
        torch.testing.assert_close(found, f64(row["x_prev"]), rtol=1e-9, atol=1e-10)  # through the score, ε̂/σ
    assert seen == {(kind, clipped) for kind in ("small", "large") for clipped in (True, False)}


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("project", [None, Clip()], ids=["as-it-is", "clipped"])
def test_the_published_sampler_is_ancestral_on_all_levels_and_the_final_denoising(
    variance: FixedVariance, project: Clip | None
) -> None:
    """x_T, T − 1 noisy steps and a last one without noise: T evaluations, step by step as in Ho et al., algorithm 2."""
    steps = 12
    sde = DDPM(steps=steps)
    chain, oracle, noise = DiscreteChain.of_levels(sde), golden_mixture(sde), SeededNoise(3, dtype=torch.float64)
    x = noise.prior((4, 2))
    for level in range(steps, 0, -1):
        t = f64(level / steps)
        x0 = chain.x0(x, eps_from_score(sde, oracle.score(x, t.expand(4)), t), level)
        x0 = x0 if project is None else project(x0)
        z = noise(x, t, t) if level > 1 else torch.zeros_like(x)
        x = chain.posterior_mean(x, x0, level) + chain.variance(variance)[level - 1].sqrt() * z
    solver = Ancestral(steps=steps - 1, grid=LevelsGrid(), variance=variance)
    found = sample(oracle.score, sde, solver, (4, 2), noise=SeededNoise(3, dtype=torch.float64), project=project)
    assert found.nfe == steps
    torch.testing.assert_close(found.x, x, rtol=1e-9, atol=1e-10)


def golden_mixture(sde: SDE) -> GaussianMixture:
    return GaussianMixture(sde, f64([0.4, 0.6]), f64([[1.5, 0.2], [-0.4, -1.3]]), f64([0.3, 0.5]))


def chain_at(sde: SDE, steps: int) -> DiscreteChain:
    return DiscreteChain.from_sde(sde, LogSNRGrid()(sde, sde.t_min, sde.t_max, steps - 1))


def test_the_steps_compose_to_the_levels(sde: SDE) -> None:
    """ρ_k a_{k−1} = a_k and ρ_k² σ_{k−1}² + v_k = σ_k², by the process at the chain's times."""
    chain = chain_at(sde, 30)
    a, std, times = torch.tensor(1.0), torch.tensor(0.0), f64(chain.times)[1:]
    for k, (ratio, added) in enumerate(zip(chain.mean_coef, chain.added, strict=True)):
        step = ratio / (chain.mean_coef[k - 1] if k else 1.0)
        a, std = step * a, (step**2 * std**2 + added).sqrt()
        torch.testing.assert_close(a, sde.mean_coef(times[k]), rtol=1e-10, atol=0)
        torch.testing.assert_close(std, sde.std(times[k]), rtol=1e-10, atol=0)


def test_the_posterior_is_bayes_rule(sde: SDE) -> None:
    """log q(x_{k−1} | x_0) + log q(x_k | x_{k−1}) − log q(x_k | x_0), as a function of x_{k−1}."""
    chain, rows = chain_at(sde, 10), torch.linspace(-2, 2, 5, dtype=torch.float64)
    x0, x = f64(0.3), f64(-0.4)

    def log_normal(value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return -0.5 * (value - mean) ** 2 / variance - 0.5 * variance.log()

    for k in range(1, chain.steps):  # levels k and k + 1
        a, a_next, std, std_next = chain.mean_coef[k - 1], chain.mean_coef[k], chain.std[k - 1], chain.std[k]
        before = a * x0 + std * rows
        expected = log_normal(before, a * x0, std**2) + log_normal(x, a_next / a * before, chain.added[k])
        expected = expected - log_normal(x, a_next * x0, std_next**2)
        found = log_normal(before, chain.posterior_mean(x, x0, k + 1), chain.posterior.variance[k])
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_the_published_chain_tends_to_the_process() -> None:
    """N β_k → β(t): DDPM's 1000 steps are the linear β of 0.1 … 20 to the order 1/N."""
    chain = DiscreteChain.from_betas(LinearBetas()(1000))
    times = f64(chain.times)[1:]
    gap = (chain.half_log_snr - VPSDE().half_log_snr(times))[10:].abs().max()
    assert gap < 20 / 1000 * 2


def test_it_is_a_value() -> None:
    one, other = (DiscreteChain.from_betas(LinearBetas()(7)) for _ in range(2))
    assert {one: 1}[other] == 1
    assert repr(one) == "DiscreteChain(steps=7, stds=0.01 … 0.2616)"
    assert all(a < b for a, b in pairwise(one.times))


@pytest.mark.parametrize("betas", [[0.1, 0.0], [0.1, 1.0], [0.1, -0.2], [0.1, float("nan")]])
def test_a_beta_outside_its_range_is_refused(betas: list[float]) -> None:
    with pytest.raises(InputError, match=r"`betas` of a chain must be in \(0, 1\), got \["):
        DiscreteChain.from_betas(f64(betas))


def test_errors() -> None:
    with pytest.raises(InputError, match="a chain must have `steps` ≥ 2, got 1"):
        DiscreteChain.from_betas(f64([0.1]))
    with pytest.raises(InputError, match="must fall from level to level; use increasing times"):
        DiscreteChain.from_sde(VPSDE(), f64([0.1, 0.3, 0.2]))
    with pytest.raises(InputError, match=r"one mean, std and time for each level, got \(3, 3, 2\)"):
        DiscreteChain((0.0, -0.1, -0.2), (0.0, 0.1, 0.2), (0.0, 1.0))
    with pytest.raises(InputError, match="level 0 of a chain must be clean data"):
        DiscreteChain((0.0, -0.1, -0.2), (0.1, 0.2, 0.3), (0.0, 0.5, 1.0))
    with pytest.raises(InputError, match="`steps` must be > 0, got 0"):
        CosineBetas()(0)
    with pytest.raises(InputError, match="a chain needs a process with levels, such as ddpm, and this one has none"):
        DiscreteChain.of_levels(VPSDE())
