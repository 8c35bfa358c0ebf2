"""How a model is run on a device: choices of speed and memory that leave every result what it is, up to rounding.

A choice is `auto` or named by the user. What `auto` stands for is a function of the config and the device's kind alone,
never of a timing, so that a run resumes bit for bit; the measurements behind it are in docs/performance.md.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sde_diffusion.errors import require_one_of

MemoryFormat = Literal["auto", "contiguous", "channels_last"]
Choice = Literal["auto", "always", "never"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Perf:
    """The choices for one device, none of them `auto`.

    Attributes:
        channels_last: Whether images lie in memory pixel by pixel rather than channel by channel.
        compile: Whether the network is compiled.
    """

    channels_last: bool = False
    compile: bool = False

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{layout}, {'compiled' if self.compile else 'not compiled'}"


@dataclass(frozen=True, kw_only=True)
class PerfConfig:
    """The section `perf`.

    Attributes:
        memory_format: Of images and filters: `contiguous` (channel by channel) or `channels_last` (pixel by pixel).
        compile: Whether the network is compiled by `torch.compile`.

    Raises:
        InputError: Another value.
    """

    memory_format: MemoryFormat = "auto"
    compile: Choice = "auto"

    def __post_init__(self) -> None:
        require_one_of("memory_format", self.memory_format, get_args(MemoryFormat))
        require_one_of("compile", self.compile, get_args(Choice))

    def resolve(self, device: torch.device) -> Perf:
        """The choices for `device`."""
        cuda = device.type == "cuda"
        return Perf(
            channels_last=cuda if self.memory_format == "auto" else self.memory_format == "channels_last",
            compile=self.compile == "always",
        )


def prepare(model: nn.Module, perf: Perf) -> None:
    """Bring a model into the form that `perf` asks, in place; its weights keep their names and values."""
    if perf.channels_last:
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def resolve_precision(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """What `training.precision` stands for on `device`: `auto` is bfloat16 where CUDA computes in it."""
    if precision != "auto":
        return precision
    computes = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if computes else "float32"


def like(stored: Tensor, parameter: Tensor) -> Tensor:
    """`stored` on the device of `parameter`, and, if it has its shape, in its memory format, as fused kernels want."""
    if stored.shape != parameter.shape:
        return stored.to(parameter.device)
    return torch.empty_like(parameter, dtype=stored.dtype, requires_grad=False).copy_(stored)
