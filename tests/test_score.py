"""What the score says: posterior means and the drift of the reverse process, by hand."""

import pytest
import torch
from torch import Tensor

from sde_diffusion.rng import generator
from sde_diffusion.score import eps_from_score, reverse_drift, score_from_x0, x0_from_score
from sde_diffusion.sde import SDE
from tests.conftest import f64

ALGEBRA = {"rtol": 1e-10, "atol": 1e-12}
TIMES = [f64(0.4), f64([0.01, 0.3, 1.0])]


def known(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0, ε, x_t and ∇ log p(x_t | x0)."""
    x0, eps = torch.randn(2, 3, 2, 2, generator=generator(0), dtype=torch.float64)
    std = sde.std(t).reshape(-1, 1, 1)
    return x0, eps, sde.perturb(x0, t, eps), -eps / std


@pytest.mark.parametrize("t", TIMES, ids=["()", "(B,)"])
def test_posterior_means_of_a_point(sde: SDE, t: Tensor) -> None:
    x0, eps, x, score = known(sde, t)
    a = float(sde.mean_coef(t).min())
    torch.testing.assert_close(eps_from_score(sde, score, t), eps, **ALGEBRA)
    torch.testing.assert_close(x0_from_score(sde, score, x, t), x0, rtol=1e-10, atol=1e-14 / a)
    torch.testing.assert_close(score_from_x0(sde, x0, x, t), score, **ALGEBRA)


@pytest.mark.parametrize("t", TIMES, ids=["()", "(B,)"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_reverse_drift(sde: SDE, t: Tensor, eta: float) -> None:
    _, _, x, score = known(sde, t)
    f, g = sde.drift_coef(t).reshape(-1, 1, 1), sde.diffusion(t).reshape(-1, 1, 1)
    share = {0.0: 0.5, 0.5: 0.625, 1.0: 1.0}[eta]
    torch.testing.assert_close(reverse_drift(sde, score, x, t, eta), f * x - share * g**2 * score, **ALGEBRA)


@pytest.mark.parametrize("t", [f64(0.4), f64([0.4, 0.5, 0.6])], ids=["()", "(B,)"])
def test_float32_stays(sde: SDE, t: Tensor) -> None:
    x = torch.ones(3, 2)
    for value in (
        eps_from_score(sde, x, t),
        x0_from_score(sde, x, x, t),
        score_from_x0(sde, x, x, t),
        reverse_drift(sde, x, x, t, 1.0),
    ):
        assert value.dtype == torch.float32
