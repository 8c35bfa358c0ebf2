"""The likelihood of a Gaussian with full covariance: the simplest density model, to hold others against."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.tensors import flat_sum

RIDGE = 1e-9
"""In mean variances: a Cholesky pivot below it counts as singular, and then it is added to every variance."""


@dataclass(frozen=True, eq=False)
class GaussianReference:
    """N(m, C) with C = L Lᵀ, fitted by maximum likelihood; float64 throughout.

    Attributes:
        mean: m, (d,) with d the number of dimensions.
        cholesky: L, lower triangular, (d, d).
    """

    mean: Tensor
    cholesky: Tensor

    @classmethod
    def fit(cls, x: Tensor) -> Self:
        """Mean and covariance of `x`, (N, *D), in model coordinates and dequantised as the data to be scored.

        A singular covariance (N ≤ d, or a dimension without variance) gets a ridge of 1e-9 mean variances; its
        log-likelihoods then depend on the ridge. Costs O(N d² + d³).

        Raises:
            InputError: Fewer than two samples, non-finite values or no variance at all.
        """
        require(x.ndim > 1 and len(x) > 1, f"`x` must hold at least two samples (N, *D), got shape {tuple(x.shape)}")
        rows = x.flatten(1).double()
        mean = rows.mean(0)
        centred = rows - mean
        covariance = centred.T @ centred / len(rows)
        ridge = RIDGE * covariance.diagonal().mean()
        require(bool(ridge > 0) and bool(ridge.isfinite()), "`x` must be finite and vary to fit a Gaussian")
        cholesky, failed = torch.linalg.cholesky_ex(covariance)
        if failed or cholesky.diagonal().min() ** 2 < ridge:
            cholesky = torch.linalg.cholesky(covariance + ridge * torch.eye(len(mean)).to(covariance))
        return cls(mean, cholesky)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; m, C) in nats, (B, *D) -> (B,) float64. Costs O(B d²)."""
        rows = x.flatten(1).to(self.mean)
        whitened = torch.linalg.solve_triangular(self.cholesky, (rows - self.mean).T, upper=False).T
        log_det = 2 * self.cholesky.diagonal().log().sum()
        return -0.5 * (flat_sum(whitened**2) + log_det + rows.shape[1] * math.log(2 * math.pi))
