"""What a variational bound codes, and how the last latent variable is decoded into it.

A bound starts at noise x_s = a x_0 + σ ε around the model coordinates x_0 of an example and ends with a decoder
p(example | x_s), which is given the mean of x_0 and a width.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sde_diffusion.bin_mass import log_bin_mass, log_density
from sde_diffusion.data import DataSpec
from sde_diffusion.errors import require, require_one_of
from sde_diffusion.tensors import flat_sum


class Target(ABC):
    """A batch to be coded.

    Attributes:
        x0: Where its noise is centred, model coordinates, (B, *D).
    """

    x0: Tensor

    @abstractmethod
    def log_prob(self, mean: Tensor, std: Tensor) -> Tensor:
        """log p(example | x_s) in nats by the decoder of mean (B, *D) and width > 0, () or (B, *D); (B,) float64."""


@dataclass(frozen=True, eq=False)
class Points(Target):
    """Points x_0 by their density: the decoder is N(x_0; mean, std² I).

    Attributes:
        x0: (B, *D), e.g. dequantised data.
    """

    x0: Tensor

    def log_prob(self, mean: Tensor, std: Tensor) -> Tensor:
        return flat_sum(log_density(self.x0.double(), mean, std))


class Levels(Target):
    """Discrete values n by their probability, coded from the centres of their bins.

    The decoder `gaussian` gives n the mass of N(mean, std²) in its bin, where the first and the last bin reach to ∓∞
    (Ho et al. 2020, arXiv:2006.11239, eq. 13, with bins [2n/L − 1, 2(n + 1)/L − 1)); `softmax` gives it p(n) ∝
    N(mean; c_n, std²) over the centres c of all levels, the right posterior for mean = x_s/a and data on the centres
    (Kingma et al. 2021, arXiv:2107.00630, section 3.2), at L times the arithmetic.

    Args:
        spec: Of discrete data.
        values: n, (B, *spec.shape).
        decoder: One of the two.

    Raises:
        InputError: The data are continuous, or an unknown decoder.
    """

    def __init__(self, spec: DataSpec, values: Tensor, decoder: Literal["gaussian", "softmax"] = "gaussian") -> None:
        require(
            spec.levels is not None,
            f"a decoder of discrete values cannot be used for {spec.name}: its values are continuous; use `Points`",
        )
        require_one_of("decoder", decoder, ("gaussian", "softmax"))
        assert spec.levels is not None
        self.x0, self.decoder = spec.to_model(values), decoder
        self._values, self._levels = values.long(), spec.levels

    def log_prob(self, mean: Tensor, std: Tensor) -> Tensor:
        if self.decoder == "softmax":
            return flat_sum(self._log_softmax(mean.double(), std))
        return flat_sum(log_bin_mass(self._values, self._levels, mean.double(), std))

    def _log_softmax(self, mean: Tensor, std: Tensor) -> Tensor:
        total = torch.full_like(mean, -math.inf)
        for n in range(self._levels):  # one level at a time: (B, *D, L) would not fit
            centre = (2 * n + 1) / self._levels - 1
            total = torch.logaddexp(total, -0.5 * ((mean - centre) / std) ** 2)
        centre_of_n = (2 * self._values.double() + 1) / self._levels - 1
        return -0.5 * ((mean - centre_of_n) / std) ** 2 - total
