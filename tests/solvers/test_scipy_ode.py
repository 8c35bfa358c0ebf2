"""SciPy's integrators as solvers: tolerance, budget and failures."""

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sde import VPSDE
from sde_diffusion.solvers import ReverseProcess, ScipyODE
from sde_diffusion.solvers.scipy_ode import ORDERS
from tests.conftest import f64


def start(count: int = 5) -> Tensor:
    return torch.randn(count, 3, generator=generator(0), dtype=torch.float64)


@pytest.mark.parametrize("method", ORDERS)
def test_follows_the_flow_and_counts(method: str) -> None:
    """n steps within tol each, n < nfe, of the batch's root mean square: √15 of it may fall on one number."""
    oracle, tolerance = GaussianMixture.gaussian(VPSDE(), f64([0.5, -0.3, 0.1]), 0.6), 1e-7
    process = ReverseProcess(oracle.sde, oracle.score)
    solver = ScipyODE(method=method, rtol=tolerance, atol=tolerance)
    x = solver.solve(process, start(), 1.0, 1e-5)
    error = (x - oracle.flow(start(), f64(1.0), f64(1e-5))).abs().max()
    assert error < math.sqrt(15) * process.nfe * tolerance
    assert (process.nfe - 2) % (6 if method == "RK45" else 1) == 0
    assert solver.order == ORDERS[method]


def test_the_state_keeps_its_dtype_and_shape() -> None:
    seen = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.dtype, x.shape))
        return -x

    x = ScipyODE(rtol=1e-2, atol=1e-2).solve(ReverseProcess(VPSDE(), score), start().float()[:, None], 1e-5, 1.0)
    assert {(x.dtype, x.shape), *seen} == {(torch.float32, torch.Size((5, 1, 3)))}


def test_nothing_to_do() -> None:
    process = ReverseProcess(VPSDE(), lambda x, t: x)
    assert torch.equal(ScipyODE().solve(process, start(), 0.3, 0.3), start())
    assert ScipyODE().solve(process, torch.zeros(0, 3), 1.0, 1e-5).shape == (0, 3)
    assert process.nfe == 0


def test_too_many_evaluations() -> None:
    process = ReverseProcess(VPSDE(), lambda x, t: -x)
    with pytest.raises(
        InputError,
        match=r"'RK45' stopped at t = 0\.\d+: max_nfe = 9 were not enough; raise max_nfe, loosen rtol = 1e-05",
    ):
        ScipyODE(max_nfe=9).solve(process, start(), 1.0, 1e-5)
    assert process.nfe == 9


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_turns_non_finite_stops_the_solve_there(value: float) -> None:
    process = ReverseProcess(VPSDE(), lambda x, t: torch.where(t[:, None] < 0.35, value, -x))
    with pytest.raises(InputError, match=r"stopped at t = 0\.35\d*: the step size fell to zero; loosen"):
        ScipyODE().solve(process, start(), 1.0, 1e-5)


@pytest.mark.parametrize("option", ["rtol", "atol", "max_nfe"])
def test_bad_options(option: str) -> None:
    with pytest.raises(InputError, match=f"`{option}` must be > 0, got 0"):
        ScipyODE(**{option: 0})
    with pytest.raises(InputError, match="`method` must be one of RK45, DOP853"):
        ScipyODE(method="LSODA")  # type: ignore[arg-type]
