"""The continuity equation, with no solver: a drift v carries p_t if and only if ∂_t log p + ∇·v + v·∇log p = 0.

It ties a, std, f, g and the sign and factor of the score's term together. Everything is float64 algebra.
"""

import pytest
import torch
from torch import Tensor

from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.score import reverse_drift
from sde_diffusion.sde import SDE
from tests.conftest import f64

TIMES = [0.01, 0.1, 0.3, 0.5, 0.7, 0.9]


def residual(sde: SDE, t: float, eta: float) -> Tensor:
    """∂_t log p + ∇·v + v·∇log p at points drawn from p_t, (B,), for v = f x − ½(1 + η²) g² s of a mixture."""
    means = torch.randn(3, 4, generator=generator(1), dtype=torch.float64)
    oracle = GaussianMixture(sde, f64([0.2, 0.5, 0.3]), means, f64([0.3, 0.6, 0.2]))
    times = torch.full((16,), t, dtype=torch.float64, requires_grad=True)
    x = oracle.sample(16, times.detach(), generator=generator(2)).requires_grad_()

    growth = torch.autograd.grad(oracle.log_prob(x, times).sum(), times)[0]
    score = oracle.score(x, times)
    drift = reverse_drift(sde, score, x, times, eta)
    divergence = sum(torch.autograd.grad(drift[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(4))
    return (growth + divergence + (drift * score).sum(1)).detach()


@pytest.mark.parametrize("t", TIMES)
def test_flow_drift_carries_the_density(sde: SDE, t: float) -> None:
    assert residual(sde, t, eta=0.0).abs().max() <= 1e-10


@pytest.mark.parametrize("t", TIMES[2:])  # where g, and with it the term, is not yet small
def test_a_missing_half_is_seen(sde: SDE, t: float) -> None:
    """η = 1 is the drift of the reverse SDE, f x − g² s: as an ODE it carries another density."""
    assert residual(sde, t, eta=1.0).abs().mean() > 0.1
