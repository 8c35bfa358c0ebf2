"""Between two latents: along a great circle, for the norms of Gaussian vectors in many dimensions hardly differ."""

import torch
from torch import Tensor

from sde_diffusion.errors import require

SMALLEST = 1e-12  # part of a unit vector that is taken for rounding


def slerp(z1: Tensor, z2: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation, along the shorter great circle at constant speed, the norm going linearly:

        z(w) = ((1 − w) |z₁| + w |z₂|) (cos(wΩ) u + sin(wΩ) v),    Ω = ∠(z₁, z₂),

    with u = z₁/|z₁| and v the unit vector orthogonal to u in the plane of both. Of opposite vectors, between which all
    great circles are as short, one is chosen that depends on z₁ alone; between parallel ones the line is straight.

    Args:
        z1, z2: Ends, (B, *D) floating point.
        weights: w, 0 at `z1` and 1 at `z2`, (F,).

    Returns:
        (B, F, *D), in the dtype of `z1`; computed in float64.

    Raises:
        InputError: Ends of different shapes.

    Reference: Shoemake 1985, doi:10.1145/325165.325242.
    """
    require(z1.shape == z2.shape, f"`z2` must have the shape {tuple(z1.shape)} of `z1`, got {tuple(z2.shape)}")
    (u, norm1), (u2, norm2) = _polar(z1), _polar(z2)
    along = (u * u2).sum(1, keepdim=True)
    across, height = _unit(u2 - along * u)
    opposite = (height < SMALLEST) & (along < 0)
    height = torch.where(opposite, 0.0, height)
    across = torch.where(opposite, _orthogonal(u), across)
    w = weights.to(u).reshape(1, -1, 1)
    turn = w * torch.atan2(height, along)[:, None]
    radius = (1 - w) * norm1[:, None] + w * norm2[:, None]
    path = radius * (turn.cos() * u[:, None] + turn.sin() * across[:, None])
    return path.reshape(len(z1), -1, *z1.shape[1:]).to(z1)


def angle(z1: Tensor, z2: Tensor) -> Tensor:
    """The angle Ω between the vectors of each pair, (B, *D) twice -> (B,) float64 in [0, π]."""
    (u, _), (u2, _) = _polar(z1), _polar(z2)
    return 2 * torch.atan2((u - u2).norm(dim=1), (u + u2).norm(dim=1))


def _polar(z: Tensor) -> tuple[Tensor, Tensor]:
    return _unit(z.flatten(1).double())


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Directions, (B, D), and norms, (B, 1); the direction of 0 is 0."""
    norm = rows.norm(dim=1, keepdim=True)
    return rows / norm.clamp(min=torch.finfo(rows.dtype).tiny), norm


def _orthogonal(u: Tensor) -> Tensor:
    """For each unit vector a unit vector orthogonal to it, (B, D): of the axis that is nearest to that."""
    axis = torch.nn.functional.one_hot(u.abs().argmin(1), u.shape[1]).to(u)
    return _unit(axis - (axis * u).sum(1, keepdim=True) * u)[0]
