"""The learned weighting: what is descended, and what comes of it."""

import math

import pytest
import torch

from sde_diffusion.losses import (
    DSMLoss,
    EDMWeighting,
    LikelihoodWeighting,
    LogNormalTime,
    SimpleWeighting,
    TimeSampler,
    UncertaintyWeighting,
    UniformTime,
    Weighting,
    dsm_loss,
    learned_loss,
)
from sde_diffusion.losses.uncertainty import LogVariance
from sde_diffusion.rng import generator
from sde_diffusion.sde import SDE, VESDE, VPSDE
from tests.conftest import assert_mean


def terms_of(sde: SDE, weighting: Weighting, sampler: TimeSampler, count: int = 4000) -> DSMLoss:
    return dsm_loss(
        lambda x, t: torch.zeros_like(x),  # the error of ε is ε², 1 in the mean
        sde,
        torch.zeros(count, 2),
        weighting=weighting,
        time_sampler=sampler,
        generator=generator(1),
    )


def bumpy(features: int = 16) -> LogVariance:
    part = LogVariance(features)
    torch.nn.init.normal_(part.weight.weight, std=0.3, generator=generator(2))
    torch.nn.init.constant_(part.weight.bias, 0.4)
    return part


def test_at_the_start_it_is_the_loss() -> None:
    weighting = UncertaintyWeighting()
    terms = terms_of(VESDE(), weighting, UniformTime())
    part = weighting.part()
    assert torch.equal(learned_loss(VESDE(), weighting, part, terms), terms.loss)
    assert torch.equal(part(VESDE(), torch.rand(5)), torch.zeros(5))


def test_with_the_proposals_own_sampler_it_is_edm2s_loss() -> None:
    """Per draw e^{−u} w ‖D − x0‖² + u with EDM's weight w: r is the proposal."""
    sde, law = VPSDE(), (-0.4, 1.0)
    weighting, part = UncertaintyWeighting(base=EDMWeighting(*law)), bumpy()
    terms = terms_of(sde, weighting, LogNormalTime(*law))
    u, q = part(sde, terms.t), (-2 * sde.half_log_snr(terms.t)).exp()
    expected = u.neg().exp() * (1 + q / 0.25) * terms.error + u
    torch.testing.assert_close(learned_loss(sde, weighting, part, terms), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("base", [SimpleWeighting(), LikelihoodWeighting(), EDMWeighting()])
def test_every_sampler_gives_the_same_objective(base: Weighting) -> None:
    sde, part, weighting = VPSDE(t_min=1e-2), bumpy(), UncertaintyWeighting(base=base)
    t = torch.linspace(1e-2, 1, 10_001, dtype=torch.float64)
    u = part.double()(sde, t).detach()
    exact = float(torch.trapezoid(u.neg().exp() * base.of_eps(sde, t) + u * base.proposal(sde, t), t))
    part = part.float()
    for sampler in (UniformTime(), LogNormalTime(0.0, 3.0)):
        objective = learned_loss(sde, weighting, part, terms_of(sde, weighting, sampler, 20_000))
        assert_mean(objective.detach(), exact)


def test_it_learns_the_logarithm_of_the_loss() -> None:
    """u → log(λ/σ² E[mean_D ρ] / p) = log g²/σ² for E = 1 and p = 1, a slope that features can bend to.

    The error bound is three times the spread of the estimate's mean in a tenth of time, 1/√(2 · 20000/10), and as much
    again for what is not yet fitted.
    """
    sde = VPSDE(t_min=0.01)
    weighting = UncertaintyWeighting(base=LikelihoodWeighting(), features=16)
    part, terms = weighting.part(), terms_of(sde, weighting, UniformTime(), 20_000)
    optimizer = torch.optim.LBFGS(part.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = learned_loss(sde, weighting, part, terms).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    t = torch.linspace(0.05, 0.95, 10)
    expected = (LikelihoodWeighting().of_eps(sde, t) / weighting.proposal(sde, t)).log()
    assert expected.max() - expected.min() > 1
    assert (part(sde, t) - expected).abs().max() < 6 / math.sqrt(4000)
