"""The conditional flow on the unit cube: inverse, density, and what it may depend on."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError
from sde_diffusion.networks import CouplingFlow

SHAPES = [(1,), (2,), (5,), (1, 3, 2), (2, 2, 2), (2, 3)]


def flow_of(shape: tuple[int, ...], *, layers: int = 4, spread: float = 0.15) -> CouplingFlow:
    """A flow in float64 whose every weight is random, so that nothing is at its start."""
    flow = CouplingFlow(shape, width=6, layers=layers).double()
    draws = torch.Generator().manual_seed(0)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=spread, generator=draws)
    return flow.requires_grad_(False)


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_inverse_inverts(shape: tuple[int, ...]) -> None:
    flow, u, condition = flow_of(shape), uniform(7, *shape), 2 * uniform(7, *shape, seed=2) - 1
    v, _ = flow(u, condition)
    assert (v - u).abs().max() > 0.05, "it moves"
    torch.testing.assert_close(flow.inverse(v, condition), u, rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_density_is_the_inverse_of_the_jacobian(shape: tuple[int, ...]) -> None:
    """log q(v) = −log |det ∂v/∂u|, the Jacobian by autograd."""
    flow, u, condition = flow_of(shape), uniform(3, *shape), uniform(3, *shape, seed=2)
    _, log_density = flow(u, condition)
    dims = math.prod(shape)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda x, i=i: flow(x[None], condition[i : i + 1])[0][0], u[i])
        torch.testing.assert_close(
            log_density[i], -torch.linalg.slogdet(jacobian.reshape(dims, dims)).logabsdet, rtol=1e-10, atol=1e-10
        )


def test_the_density_integrates_to_one() -> None:
    """Over the unit square, by the trapezoidal rule in w = logit v, where q dv/dw is smooth and falls as e^{−|w|/s}."""
    flow, step = flow_of((2,)), 0.125
    w = torch.arange(-20, 20 + step, step, dtype=torch.float64)
    v = torch.sigmoid(torch.cartesian_prod(w, w))
    condition = torch.tensor([[0.3, -0.8]], dtype=torch.float64).expand_as(v)
    _, log_density = flow(flow.inverse(v, condition), condition)
    assert log_density.exp().std() > 0.1, "it is not flat"
    slope = (v * (1 - v)).prod(1)
    assert float((log_density.exp() * slope).sum() * step**2) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_starts_as_uniform_noise(shape: tuple[int, ...]) -> None:
    flow, u = CouplingFlow(shape).double(), uniform(4, *shape)
    v, log_density = flow(u, torch.ones_like(u))
    torch.testing.assert_close(v, u, rtol=1e-10, atol=0)
    torch.testing.assert_close(log_density, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(5,), (1, 3, 2)])
def test_an_example_does_not_depend_on_its_companions(shape: tuple[int, ...]) -> None:
    flow, u, condition = flow_of(shape), uniform(6, *shape), uniform(6, *shape, seed=2)
    whole, alone = flow(u, condition), flow(u[2:3], condition[2:3])
    for of_whole, of_one in zip(whole, alone, strict=True):
        torch.testing.assert_close(of_whole[2:3], of_one, rtol=1e-10, atol=1e-14)


def test_every_dimension_depends_on_every_condition_and_on_its_neighbours_of_either_parity() -> None:
    shape, dims = (1, 3, 2), 6
    flow, u, condition = flow_of(shape), uniform(1, *shape), uniform(1, *shape, seed=2)
    by_noise = torch.autograd.functional.jacobian(lambda u: flow(u, condition)[0], u).reshape(dims, dims)
    by_condition = torch.autograd.functional.jacobian(lambda c: flow(u, c)[0], condition).reshape(dims, dims)
    assert (by_noise != 0).all()
    assert (by_condition != 0).all()


def test_without_couplings_dimensions_are_independent() -> None:
    flow, u = flow_of((4,), layers=0), uniform(1, 4)
    jacobian = torch.autograd.functional.jacobian(lambda u: flow(u, torch.ones_like(u))[0], u).reshape(4, 4)
    assert torch.equal(jacobian, jacobian.diag().diag())


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((), {}, r"`shape` must be one or more sizes > 0, got \(\)"),
        ((2, 0), {}, r"`shape` must be one or more sizes > 0, got \(2, 0\)"),
        ((2,), {"width": 0}, "`width` must be > 0, got 0"),
        ((2,), {"layers": -1}, "`layers` must be ≥ 0, got -1"),
    ],
)
def test_a_bad_option_is_an_error(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CouplingFlow(shape, **options)
