"""How a model is run on a device: choices of speed and memory that leave every result what it is, up to rounding.

A choice is `auto` or named by the user. What `auto` stands for is a function of the config and the device's kind alone,
never of a timing, so that a run resumes bit for bit; the measurements behind it are in docs/performance.md.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sde_diffusion.errors import require, require_one_of

MemoryFormat = Literal["auto", "contiguous", "channels_last"]
Choice = Literal["auto", "always", "never"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Perf:
    """The choices for one device, none of them `auto`.

    Attributes:
        channels_last: Whether images lie in memory pixel by pixel rather than channel by channel.
        compile: Whether the network is compiled.
        checkpointing: Whether training computes the inside of blocks twice rather than keep it.
        cuda_graphs: Whether a trained network's kernels are recorded for each shape of its inputs, to sample by them.
    """

    channels_last: bool = False
    compile: bool = False
    checkpointing: bool = False
    cuda_graphs: bool = False

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        blocks = ", activation checkpointing" if self.checkpointing else ""
        return f"{layout}, {'compiled' if self.compile else 'not compiled'}{blocks}"


@dataclass(frozen=True, kw_only=True)
class PerfConfig:
    """The section `perf`.

    Attributes:
        memory_format: Of images and filters: `contiguous` (channel by channel) or `channels_last` (pixel by pixel).
        compile: Whether the network is compiled by `torch.compile`.
        checkpointing: Whether training forgets what is inside the network's blocks and computes it again for the
            gradient (activation checkpointing): a forward more for each step, and much less memory.
        cuda_graphs: Whether a trained network is recorded as a CUDA graph for each shape of its inputs (`graphs`).

    Raises:
        InputError: Another value.
    """

    memory_format: MemoryFormat = "auto"
    compile: Choice = "auto"
    checkpointing: bool = False
    cuda_graphs: Choice = "auto"

    def __post_init__(self) -> None:
        require_one_of("memory_format", self.memory_format, get_args(MemoryFormat))
        require_one_of("compile", self.compile, get_args(Choice))
        require_one_of("cuda_graphs", self.cuda_graphs, get_args(Choice))

    def resolve(self, device: torch.device) -> Perf:
        """The choices for `device`.

        Raises:
            InputError: `cuda_graphs` = always for another device.
        """
        cuda = device.type == "cuda"
        require(
            cuda or self.cuda_graphs != "always",
            f"`perf.cuda_graphs` = always needs a CUDA device, got {device.type}; take auto",
        )
        return Perf(
            channels_last=cuda if self.memory_format == "auto" else self.memory_format == "channels_last",
            compile=self.compile == "always",
            checkpointing=self.checkpointing,
            cuda_graphs=cuda and self.cuda_graphs != "never",
        )


def prepare(model: nn.Module, perf: Perf) -> None:
    """Bring a model into the form that `perf` asks, in place; its weights keep their names and values."""
    if perf.channels_last:
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if perf.checkpointing:
        recompute(model)


def recompute(model: nn.Module) -> None:
    """Have the blocks in `model` that are `recomputable` computed twice in training: their inside need not be kept.

    Gradients stay what they are, bit for bit, for dropout draws the same again. Nothing changes in evaluation, without
    gradients, or for a network that has no such blocks.

    Reference: Chen et al. 2016, arXiv:1604.06174.
    """
    for block in model.modules():
        if getattr(block, "recomputable", False):
            block.forward = functools.partial(_twice, block.forward)  # a bound method, which copies go along with


def _twice(forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    out: Tensor
    block = getattr(forward, "__self__", None)
    assert isinstance(block, nn.Module)
    if block.training and torch.is_grad_enabled():
        out = checkpoint(forward, *inputs, use_reentrant=False)
    else:
        out = forward(*inputs)
    return out


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
