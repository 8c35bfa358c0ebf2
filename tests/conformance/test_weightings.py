"""What every weighting must satisfy, for every process."""

import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sde_diffusion.losses import WEIGHTINGS
from sde_diffusion.sde import SDE, VPSDE
from tests.conftest import f64

FORMULAS: dict[str, Callable[[SDE, Tensor], Tensor]] = {  # λ(t)
    "simple": lambda sde, t: sde.std(t) ** 2,
    "likelihood": lambda sde, t: sde.diffusion(t) ** 2,
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
    """Two coefficients of the process, each within 4e-6 and squared at most twice."""
    weighting = WEIGHTINGS[name]()
    value, exact = weighting.of_eps(sde, TIMES.float()), weighting.of_eps(sde, TIMES.float().double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1.6e-5, atol=0)


def test_likelihood_weighting_of_vp_is_beta() -> None:
    torch.testing.assert_close(WEIGHTINGS["likelihood"]()(VPSDE(), TIMES), VPSDE().beta.rate(TIMES), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_is_a_value(name: str) -> None:
    weighting = WEIGHTINGS[name]()
    assert pickle.loads(pickle.dumps(weighting)) == weighting
    assert {weighting: 1}[replace(weighting)] == 1
    assert type(weighting).__name__ in repr(weighting)
