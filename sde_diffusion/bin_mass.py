"""Decoders of a chain's last latent variable: the data by a Gaussian around the mean that the model predicts.

Reference: Ho et al. 2020, arXiv:2006.11239, section 3.3.
"""

import math

import torch
from torch import Tensor
from torch.special import log_ndtr


def log_density(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std²) of each coordinate [nats], (B, *D); `std` broadcasts."""
    return -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)


def log_bin_mass(n: Tensor, levels: int, mean: Tensor, std: Tensor) -> Tensor:
    """log of the mass that N(mean, std²) has in bin n of each coordinate [nats], (B, *D), with finite gradients.

    Bin n of L `levels` is [2n/L − 1, 2(n + 1)/L − 1); the first and the last reach to ∓∞.

    Args:
        n: 0 … L − 1, (B, *D).
        mean: (B, *D) float64.
        std: Broadcasts against it.

    Reference: Ho et al. 2020, arXiv:2006.11239, eq. 13.
    """
    edge = 2 * n.to(mean) / levels - 1
    low, high = (edge - mean) / std, (edge + 2 / levels - mean) / std
    inner = torch.where(n == levels - 1, log_ndtr(-low), log_normal_mass(low, high))
    return torch.where(n == 0, log_ndtr(high), inner)


def log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """log(Φ(high) − Φ(low)) for low < high, float64, right to rounding in both tails and in the narrowest interval."""
    right = low > 0  # mirrored into the left tail, where log Φ keeps its digits
    low, high = torch.where(right, -high, low), torch.where(right, -low, high)
    above: Tensor = log_ndtr(high)
    return above + torch.log(-torch.expm1(log_ndtr(low) - above))
