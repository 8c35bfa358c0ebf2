"""Waves of the input itself beside it, by which a network sees the last bits of discrete data."""

import math

import torch
from torch import Tensor, nn

from sde_diffusion.errors import require
from sde_diffusion.networks.blocks import zeroed
from sde_diffusion.tensors import expand

HIGHEST = 12  # beyond it float32 has too few digits of x to know the phase


class FourierFeatures(nn.Module):
    """x -> (x, sin(2ⁿ π x), cos(2ⁿ π x) for each n), one after another along the first dimension of the event.

    x is what the network is given, c_in · x of `ScoreModel`: at low noise the data over their standard deviation
    `sigma_data`. VDM's n = 7 and 8 of 8-bit data in [−1, 1], where neighbouring levels are 2⁻⁷ apart, are therefore
    6 and 7 at `sigma_data` 0.5. No exponents leave x as it is. The waves are computed in the precision of x, which
    autocast does not lower; the steeper they are, the more steps an adaptive solver takes at low noise.

    Where the noise is longer than a wave, the wave is noise as well. With a gate each wave is multiplied by a number
    that is linear in the embedding of the time and zero at the start, so that a network opens it where it is of use.

    Args:
        exponents: The numbers n, each once, from 0 to 12.
        embedding: Features of the embedding that the gate reads; None for no gate.

    Raises:
        InputError: Exponents that are not.

    Reference: Kingma et al. 2021, "Variational Diffusion Models", arXiv:2107.00630, appendix C.
    """

    def __init__(self, exponents: tuple[int, ...], *, embedding: int | None = None) -> None:
        super().__init__()
        require(
            len(set(exponents)) == len(exponents) and all(0 <= n <= HIGHEST for n in exponents),
            f"`fourier` must be different exponents from 0 to {HIGHEST}, got {list(exponents)}",
        )
        self.exponents = tuple(exponents)
        self.factor = 1 + 2 * len(exponents)  # by which the channels grow
        self.gate = zeroed(nn.Linear(embedding, 2 * len(exponents))) if embedding and exponents else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(B, C, …), and with a gate (B, features) -> (B, factor · C, …)."""
        if not self.exponents:
            return x
        phases = [2**n * math.pi * x for n in self.exponents]
        waves = [wave for phase in phases for wave in (phase.sin(), phase.cos())]
        if self.gate is not None:
            assert embedding is not None
            gates = self.gate(embedding).to(x.dtype).unbind(1)
            waves = [expand(gate, x) * wave for gate, wave in zip(gates, waves, strict=True)]
        return torch.cat([x, *waves], 1)
