"""What every weighting must satisfy, for every process."""

import math
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.losses import (
    WEIGHTINGS,
    EDMWeighting,
    MinSNRWeighting,
    P2Weighting,
    SoftMinSNRWeighting,
    UncertaintyWeighting,
)
from sde_diffusion.model import PREDICTIONS
from sde_diffusion.sde import SDE, VESDE, VPSDE
from tests.conftest import f64


def snr(sde: SDE, t: Tensor) -> Tensor:
    return (2 * sde.half_log_snr(t)).exp()


def edm(sde: SDE, t: Tensor, mean: float, std: float) -> Tensor:
    """λ of EDM: its density of ln(σ/a) by autograd of λ, cut by the error function, times its weight of ε."""
    ends = -sde.half_log_snr(f64([sde.t_min, sde.t_max]))
    low, high = (0.5 * math.erfc(-(float(end) - mean) / std / math.sqrt(2)) for end in ends)
    at = t.clone().requires_grad_()
    level = -sde.half_log_snr(at)
    (slope,) = torch.autograd.grad(level.sum(), at)
    normal = torch.distributions.Normal(f64(mean), f64(std))
    density = normal.log_prob(level.detach()).exp() * slope / (high - low)  # type: ignore[no-untyped-call]
    sigma = snr(sde, t) ** -0.5
    return density * sde.std(t) ** 2 * sigma**2 * (sigma**2 + 0.25) / (sigma * 0.5) ** 2


FORMULAS: dict[str, Callable[[SDE, Tensor], Tensor]] = {  # λ(t)
    "simple": lambda sde, t: sde.std(t) ** 2,
    "likelihood": lambda sde, t: sde.diffusion(t) ** 2,
    "min_snr": lambda sde, t: sde.std(t) ** 2 * snr(sde, t).clamp(max=5) / snr(sde, t),
    "soft_min_snr": lambda sde, t: sde.std(t) ** 2 * 4 / (4 + snr(sde, t)),
    "truncated_snr": lambda sde, t: sde.std(t) ** 2 * snr(sde, t).clamp(min=1) / snr(sde, t),
    "snr_plus_one": lambda sde, t: sde.std(t) ** 2 * (1 + snr(sde, t)) / snr(sde, t),
    "p2": lambda sde, t: sde.std(t) ** 2 / (1 + snr(sde, t)),
    "edm": lambda sde, t: edm(sde, t, -1.2, 1.2),
    "uncertainty": lambda sde, t: edm(sde, t, -0.4, 1.0),
}
TIMES = f64([1e-5, 1e-4, 1e-2, 0.3, 0.7, 1.0])


def test_every_weighting_has_its_formula_here() -> None:
    assert FORMULAS.keys() == WEIGHTINGS.keys()


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("t", [TIMES, TIMES[3]], ids=["(B,)", "()"])
def test_formula(sde: SDE, name: str, t: Tensor) -> None:
    weighting = WEIGHTINGS[name]()
    expected = FORMULAS[name](sde, t)
    assert (expected > 0).all()
    torch.testing.assert_close(weighting(sde, t), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(weighting.of_eps(sde, t), expected / sde.std(t) ** 2, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_float32_is_exact_down_to_t_min(sde: SDE, name: str) -> None:
    """Two coefficients of the process, each within 4e-6 and squared at most twice; positive and finite.

    λ itself, which no loss asks for, may be less than the smallest float32: σ² is 1e-12 for sub-VP.
    """
    weighting, t, tiny = WEIGHTINGS[name](), TIMES.float(), torch.finfo(torch.float32).tiny
    for function, least in ((weighting.of_eps, 0.0), (weighting.proposal, 0.0), (weighting, -tiny)):
        value, exact = function(sde, t), function(sde, t.double())
        assert value.dtype == torch.float32
        assert value.shape == t.shape
        assert bool((value > least).all() and value.isfinite().all())
        torch.testing.assert_close(value.double(), exact, rtol=1.6e-5, atol=tiny if least else 0)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_proposal_is_a_density_of_times(sde: SDE, name: str) -> None:
    """By the trapezoidal rule in log t: half the squared step, 1e-4, times the integrand's curvature, below 1e2."""
    u = torch.linspace(math.log(sde.t_min), 0, 100_001, dtype=torch.float64)
    density = WEIGHTINGS[name]().proposal(sde, u.exp())
    assert float(torch.trapezoid(density * u.exp(), u)) == pytest.approx(1, abs=1e-6)


def test_likelihood_weighting_of_vp_is_beta() -> None:
    torch.testing.assert_close(WEIGHTINGS["likelihood"]()(VPSDE(), TIMES), VPSDE().beta.rate(TIMES), rtol=1e-10, atol=0)


def test_options_move_the_weights_as_their_formulas_say(sde: SDE) -> None:
    ratio = snr(sde, TIMES)
    for weighting, expected in (
        (MinSNRWeighting(gamma=0.5), ratio.clamp(max=0.5) / ratio),
        (SoftMinSNRWeighting(gamma=0.5), 0.5 / (0.5 + ratio)),
        (P2Weighting(k=2.0, gamma=0.5), (2 + ratio) ** -0.5),
    ):
        torch.testing.assert_close(weighting.of_eps(sde, TIMES), expected, rtol=1e-10, atol=0)
    soft, prioritised = SoftMinSNRWeighting(gamma=3.0), P2Weighting(k=3.0, gamma=1.0)
    torch.testing.assert_close(soft.of_eps(sde, TIMES), 3 * prioritised.of_eps(sde, TIMES), rtol=1e-10, atol=0)


def test_edm_weighs_the_error_of_its_network_alike_at_all_levels(sde: SDE) -> None:
    """λ/σ² over the proposal is 1/c_out² of the prediction `edm`, whose network has targets of unit scale."""
    weighting = EDMWeighting(sigma_data=0.7)
    _, c_out = PREDICTIONS["edm"](sde.mean_coef(TIMES), sde.std(TIMES), 0.7)
    weight = weighting.of_eps(sde, TIMES) / weighting.proposal(sde, TIMES)
    torch.testing.assert_close(weight * c_out**2, torch.ones_like(TIMES), rtol=1e-10, atol=0)


def test_uncertainty_is_its_base(sde: SDE) -> None:
    base = MinSNRWeighting()
    weighting = UncertaintyWeighting(base=base)
    for name in ("of_eps", "__call__", "proposal"):
        assert torch.equal(getattr(weighting, name)(sde, TIMES), getattr(base, name)(sde, TIMES))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("min_snr", {"gamma": 0.0}, "`gamma` must be > 0, got 0.0"),
        ("soft_min_snr", {"gamma": -1.0}, "`gamma` must be > 0, got -1.0"),
        ("p2", {"gamma": 0.0}, "`gamma` must be > 0, got 0.0"),
        ("p2", {"k": 0.0}, "`k` must be > 0, got 0.0"),
        ("edm", {"p_std": 0.0}, "`p_std` must be > 0, got 0.0"),
        ("edm", {"sigma_data": 0.0}, "`sigma_data` must be > 0, got 0.0"),
        ("uncertainty", {"features": 3}, "`features` must be even and ≥ 2, got 3"),
        ("uncertainty", {"base": UncertaintyWeighting()}, "`base` must be a weighting without a learned part"),
    ],
)
def test_options_that_cannot_work(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WEIGHTINGS[kind](**options)


@pytest.mark.parametrize("weighting", [EDMWeighting(p_mean=9.0), UncertaintyWeighting(base=EDMWeighting(p_mean=9.0))])
def test_a_law_beside_the_process_is_refused(weighting: EDMWeighting | UncertaintyWeighting) -> None:
    message = r"`p_mean` = 9 with `p_std` = 1.2 must put at least 1% .* got 1.1e-05; ln\(σ/a\) goes from -4.61 to 3.91:"
    with pytest.raises(InputError, match=message):
        weighting.check(VESDE())
    for name in WEIGHTINGS:
        WEIGHTINGS[name]().check(VESDE())


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_is_a_value(name: str) -> None:
    weighting = WEIGHTINGS[name]()
    assert pickle.loads(pickle.dumps(weighting)) == weighting
    assert {weighting: 1}[replace(weighting)] == 1
    assert type(weighting).__name__ in repr(weighting)
    assert all(field.name in repr(weighting) for field in fields(weighting))
