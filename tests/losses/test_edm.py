"""EDM's recipe: weighting and proposal together are the published loss."""

import math
from typing import Any

import pytest
import torch

from sde_diffusion.errors import InputError
from sde_diffusion.losses import EDMWeighting, LogNormalTime, SimpleWeighting, dsm_loss
from sde_diffusion.losses.edm import _time_of
from sde_diffusion.model import ScoreModel
from sde_diffusion.rng import generator
from sde_diffusion.sde import SDE, VESDE, VPSDE
from tests.conftest import f64, golden
from tests.test_golden_edm_vdm import Affine

EDM = [pytest.param(case, id=case["id"]) for case in golden("07_edm_vdm") if case["id"].startswith("edm-")]


@pytest.mark.parametrize("law", [(-1.2, 1.2), (-0.4, 1.0), (0.5, 2.0)])
def test_each_draw_weighs_as_edms(sde: SDE, law: tuple[float, float]) -> None:
    """λ/(σ² r) = 1 + σ²/(a² σ_d²), the constant being 1: both are normalised over the same times."""
    mean, std = law
    weighting, sampler = EDMWeighting(mean, std, 0.7), LogNormalTime(mean, std)
    t, density = sampler.draw(sde, weighting, torch.rand(500, generator=generator(0), dtype=torch.float64))
    ratio = weighting.of_eps(sde, t) / density
    q = (-2 * sde.half_log_snr(t)).exp()
    torch.testing.assert_close(ratio, 1 + q / 0.49, rtol=1e-10, atol=0)


@pytest.mark.parametrize("case", EDM)
def test_golden_weights_and_losses(case: dict[str, Any]) -> None:
    """Karras et al.'s weight of the error of x0 and their loss at given noise levels."""
    inputs, sd = case["inputs"], case["params"]["sigma_data"]
    sde, weighting = VESDE(sigma_min=1e-4, sigma_max=1e4), EDMWeighting(sigma_data=sd)
    model = ScoreModel(Affine(inputs["inner_a"], inputs["inner_b"]), sde, prediction="edm", sigma_data=sd)
    x0, z = f64(inputs["x0"]), f64(inputs["z"])
    for row in case["outputs"]["per_sigma"]:
        t = f64([math.log(row["sigma"] / 1e-4) / math.log(1e8)])
        weight = weighting.of_eps(sde, t) / weighting.proposal(sde, t)
        torch.testing.assert_close(weight / row["sigma"] ** 2, f64([row["loss_weight"]]), rtol=1e-10, atol=0)
        error = (sde.std(t)[:, None] * model(sde.perturb(x0, t, z), t) + z).square().mean(1)
        torch.testing.assert_close(weight * error, f64([row["loss_mean_over_coordinates"]]), rtol=1e-10, atol=0)


def test_levels_are_normal_where_the_process_has_them_all() -> None:
    """Mean and variance of ln(σ/a), of 10⁴ draws at equal quantiles: each within its cells' width, 1e-3."""
    sde, u = VESDE(sigma_min=1e-6, sigma_max=1e6), (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    t, _ = LogNormalTime(0.3, 1.5).draw(sde, SimpleWeighting(), u)
    level = -sde.half_log_snr(t)
    assert float(level.mean()) == pytest.approx(0.3, abs=1e-3)
    assert float(level.std()) == pytest.approx(1.5, rel=1e-3)


def test_the_inverse_is_that_of_the_process(sde: SDE) -> None:
    """To the rounding of ln(σ/a), 1e-15 of at most 14, over its slope, at least 1/2 per e-fold of t."""
    t = torch.logspace(math.log10(sde.t_min), 0, 1000, dtype=torch.float64)
    torch.testing.assert_close(_time_of(sde, -sde.half_log_snr(t)), t, rtol=1e-10, atol=0)


def test_the_density_is_none_of_the_samplers_doing() -> None:
    """A draw of the loss by another sampler is divided by that one's density: the mean is the same integral."""
    sde, weighting, x0 = VPSDE(t_min=1e-3), EDMWeighting(), torch.zeros(20_000, 2)
    losses = [
        dsm_loss(
            lambda x, t: torch.zeros_like(x),
            sde,
            x0,
            weighting=weighting,
            time_sampler=LogNormalTime(mean, 1.2),
            generator=generator(3),
        ).loss.double()
        for mean in (-1.2, -0.6)
    ]
    error = math.hypot(*(float(loss.std()) / math.sqrt(len(loss)) for loss in losses))
    assert abs(float(losses[0].mean() - losses[1].mean())) < 4 * error


def test_a_law_beside_the_process_is_refused() -> None:
    sde, u = VPSDE(), torch.rand(3, dtype=torch.float64)
    for sampler in (LogNormalTime(p_mean=-40.0), LogNormalTime(p_mean=30.0)):
        message = r"`p_mean` = (-40|30) with `p_std` = 1.2 must put at least 1% of the noise levels .*choose `p_mean`"
        with pytest.raises(InputError, match=message):
            sampler.check(sde, SimpleWeighting(), draws=100)
        with pytest.raises(InputError, match=message):
            sampler.draw(sde, SimpleWeighting(), u)
    LogNormalTime().check(sde, SimpleWeighting(), draws=1)
    with pytest.raises(InputError, match=r"`p_std` must be > 0, got 0"):
        LogNormalTime(p_std=0.0)
