"""Spherical interpolation: ends, norms, speed, and the pairs of vectors that span no plane."""

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.rng import generator
from sde_diffusion.slerp import angle, slerp
from tests.conftest import f64

WEIGHTS = torch.linspace(0, 1, 9, dtype=torch.float64)
ALGEBRA = {"rtol": 1e-10, "atol": 1e-10}


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    both = torch.randn(2, *shape, generator=generator(3), dtype=torch.float64)
    return both[0], both[1]


@pytest.mark.parametrize("shape", [(4, 2), (3, 1, 8, 8), (1, 5, 7)])
def test_starts_and_ends_at_the_ends(shape: tuple[int, ...]) -> None:
    z1, z2 = pair(*shape)
    path = slerp(z1, 3 * z2, WEIGHTS)
    assert path.shape == (shape[0], 9, *shape[1:])
    torch.testing.assert_close(path[:, 0], z1, **ALGEBRA)
    torch.testing.assert_close(path[:, -1], 3 * z2, **ALGEBRA)


def test_is_the_published_formula() -> None:
    """sin((1 − w)Ω)/sin Ω z₁ + sin(wΩ)/sin Ω z₂ for vectors of one length."""
    z1, z2 = pair(5, 6)
    z2 *= z1.norm(dim=1, keepdim=True) / z2.norm(dim=1, keepdim=True)
    omega = torch.acos((z1 * z2).sum(1) / z1.norm(dim=1) ** 2)[:, None, None]
    w = WEIGHTS[None, :, None]
    expected = (((1 - w) * omega).sin() * z1[:, None] + (w * omega).sin() * z2[:, None]) / omega.sin()
    torch.testing.assert_close(slerp(z1, z2, WEIGHTS), expected, **ALGEBRA)
    torch.testing.assert_close(angle(z1, z2), omega[:, 0, 0], **ALGEBRA)


def test_the_norm_goes_linearly_and_the_speed_is_constant() -> None:
    z1, z2 = pair(4, 30)
    path = slerp(z1, 2 * z2, WEIGHTS)
    expected = (1 - WEIGHTS) * z1.norm(dim=1)[:, None] + WEIGHTS * 2 * z2.norm(dim=1)[:, None]
    torch.testing.assert_close(path.norm(dim=2), expected, **ALGEBRA)
    for i in range(8):
        torch.testing.assert_close(angle(path[:, i], path[:, i + 1]), angle(z1, z2) / 8, **ALGEBRA)


@pytest.mark.parametrize("distance", [0.0, 1e-14, 1e-10, 1e-5])
def test_vectors_that_are_nearly_parallel(distance: float) -> None:
    z1, other = pair(3, 10)
    z2 = z1 + distance * other
    w = WEIGHTS[None, :, None]
    straight = (1 - w) * z1[:, None] + w * z2[:, None]
    # an arc and its chord differ by a share of Ω² of the radius, Ω being about the distance
    torch.testing.assert_close(slerp(z1, z2, WEIGHTS), straight, rtol=1e-10, atol=1e-10 + 10 * distance**2)


@pytest.mark.parametrize("distance", [0.0, 1e-14, 1e-10, 1e-5])
def test_opposite_vectors_go_round_and_never_through_zero(distance: float) -> None:
    z1, other = pair(3, 10)
    z1[0], z1[1] = 0.0, 0.0
    z1[0, 0], z1[1, 9] = 1.0, -2.0
    z2 = -z1 + distance * other
    path = slerp(z1, z2, WEIGHTS)
    torch.testing.assert_close(path.norm(dim=2), z1.norm(dim=1)[:, None].expand(3, 9), rtol=1e-4, atol=0)
    torch.testing.assert_close(path[:, -1], z2, rtol=1e-10, atol=1e-10)
    for i in range(8):
        torch.testing.assert_close(angle(path[:, i], path[:, i + 1]), f64([math.pi / 8] * 3), rtol=1e-4, atol=0)
    assert torch.equal(path, slerp(z1, z2, WEIGHTS))


def test_zero_has_no_direction_but_is_reached() -> None:
    z1, z2 = torch.zeros(1, 3, dtype=torch.float64), f64([[0.0, 2.0, 0.0]])
    path = slerp(z1, z2, WEIGHTS)
    assert path.isfinite().all()
    torch.testing.assert_close(path[:, [0, -1]], torch.stack([z1, z2], 1), **ALGEBRA)


def test_keeps_the_dtype() -> None:
    z1, z2 = (z.float() for z in pair(2, 3))
    assert slerp(z1, z2, WEIGHTS).dtype == torch.float32


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match=r"`z2` must have the shape \(2, 3\) of `z1`, got \(2, 4\)"):
        slerp(torch.zeros(2, 3), torch.zeros(2, 4), WEIGHTS)
