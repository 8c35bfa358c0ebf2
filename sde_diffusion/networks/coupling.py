"""A conditional flow on the unit cube: an invertible map of uniform numbers whose density is known exactly.

    z = logit u,    z ← e^{s(z', c)} z + b(z', c) dimension by dimension,    v = sigmoid z

In each affine coupling z' are the dimensions of one parity of Σ indices (a checkerboard for images), which stay as they
are while the others move; s and b are a small network of them and of the condition c. The first coupling moves all
dimensions by c alone. With s = b = 0, as at the start, v = u is uniform.

References: Dinh et al. 2017 (Real NVP), arXiv:1605.08803, section 3; Ho et al. 2019 (Flow++), arXiv:1902.00275,
section 3.1, for dequantisation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sde_diffusion.errors import require, require_positive
from sde_diffusion.networks.blocks import zeroed
from sde_diffusion.tensors import flat_sum

STEEPEST = 2.0  # bound of |s|: one coupling stretches by e² at most


class CouplingFlow(nn.Module):
    """u ↦ v on (0, 1)^D given a condition of the same shape; the identity at the start.

    Args:
        shape: Of one event, any. Three sizes are taken to be an image (channels, height, width) and give convolutions,
            others a multi-layer perceptron of the flattened event.
        width: Features of the hidden layers.
        layers: Couplings after the first.

    Raises:
        InputError: An argument outside its range.
    """

    def __init__(self, shape: Sequence[int], *, width: int = 32, layers: int = 4) -> None:
        super().__init__()
        shape = tuple(shape)
        require(min(shape, default=0) > 0, f"`shape` must be one or more sizes > 0, got {shape}")
        require_positive(width=width)
        require(layers >= 0, f"`layers` must be ≥ 0, got {layers}")
        parity = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).sum(0) % 2
        masks = [torch.zeros(shape), *((parity == i % 2).float() for i in range(layers))]
        self.couplings = nn.ModuleList(Coupling(mask, width) for mask in masks)

    def forward(self, u: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Carry uniform numbers over.

        Args:
            u: In (0, 1), (B, *shape).
            condition: Of the scale of 1, (B, *shape).

        Returns:
            v in (0, 1), (B, *shape), and its log-density log q(v | condition) = −log |∂v/∂u| in nats, (B,).
        """
        z = torch.logit(u)
        stretch = -_log_slope(z)
        for coupling in self.couplings:
            log_scale, shift = coupling(z, condition)
            z = z * log_scale.exp() + shift
            stretch = stretch + log_scale
        return torch.sigmoid(z), -flat_sum(stretch + _log_slope(z))

    def inverse(self, v: Tensor, condition: Tensor) -> Tensor:
        """The u that `forward` carries to `v`, (B, *shape)."""
        z = torch.logit(v)
        for coupling in reversed(self.couplings):
            log_scale, shift = coupling(z, condition)
            z = (z - shift) * (-log_scale).exp()
        return torch.sigmoid(z)


class Coupling(nn.Module):
    """(z, condition) -> log-scale s and shift b, both 0 on the dimensions that it reads, all (B, *shape).

    Args:
        read: 1 on the dimensions of z that s and b depend on and that stay, else 0, (*shape).
        width: Features of the hidden layers.
    """

    read: Tensor

    def __init__(self, read: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("read", read, persistent=False)
        self.net = _convolutions(read.shape[0], width) if read.ndim == 3 else _perceptron(read.numel(), width)

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.read * torch.tanh(0.5 * z)  # = 2 sigmoid z − 1: bounded, like the condition
        log_scale, shift = self.net(torch.cat([kept, condition, self.read.expand_as(z)], 1)).chunk(2, 1)
        moved = 1 - self.read
        return moved * STEEPEST * torch.tanh(log_scale.reshape(z.shape) / STEEPEST), moved * shift.reshape(z.shape)


def _convolutions(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3 * channels, width, 3, padding=1), nn.SiLU()),
        *(nn.Conv2d(width, width, 3, padding=1), nn.SiLU()),
        zeroed(nn.Conv2d(width, 2 * channels, 3, padding=1)),
    )


def _perceptron(dims: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(3 * dims, width), nn.SiLU()),
        *(nn.Linear(width, width), nn.SiLU()),
        zeroed(nn.Linear(width, 2 * dims)),
    )


def _log_slope(z: Tensor) -> Tensor:
    """log d sigmoid(z)/dz = log v(1 − v)."""
    return functional.logsigmoid(z) + functional.logsigmoid(-z)
