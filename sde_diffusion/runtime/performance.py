"""How a model is run on a device: choices of speed and memory that leave every result what it is, up to rounding.

A choice is `auto` or named by the user. What `auto` stands for is a function of the config and the device's kind alone,
never of a timing, so that a run resumes bit for bit; the measurements behind it are in docs/performance.md.
"""

import ctypes
import functools
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sde_diffusion.errors import require, require_one_of
from sde_diffusion.runtime.cpu import bfloat16_instructions, bfloat16_slowdown, instruction_set
from sde_diffusion.tensors import transformed

logger = logging.getLogger(__name__)

MemoryFormat = Literal["auto", "contiguous", "channels_last"]
Choice = Literal["auto", "always", "never"]
Precision = Literal["auto", "float32", "bfloat16"]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
BACKEND: str | Callable[..., Any] = "inductor"  # of torch.compile
LARGE = 16  # a side from which channels_last is faster on the CPU, in use: 28 and 32 by 1.1 times, 8 is slower
USUAL = ("TensorFloat32 tensor cores", "Please use the new API settings to control TF32")  # the compiler on float32
MANY = 1000  # steps of training in which compilation, a minute or two, pays on CUDA


@dataclass(frozen=True, kw_only=True)
class Perf:
    """The choices for one device, none of them `auto`.

    Attributes:
        channels_last: Whether images lie in memory pixel by pixel rather than channel by channel.
        compile: Whether the network is compiled.
        checkpointing: Whether training computes the inside of blocks twice rather than keep it.
        cuda_graphs: Whether a trained network's kernels are recorded for each shape of its inputs, to sample by them.
        keep_memory: Whether the process keeps the memory that a step frees, for the next.
    """

    channels_last: bool = False
    compile: bool = False
    checkpointing: bool = False
    cuda_graphs: bool = False
    keep_memory: bool = False

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        blocks = ", activation checkpointing" if self.checkpointing else ""
        kept = ", freed memory kept" if self.keep_memory else ""
        return f"{layout}, {'compiled' if self.compile else 'not compiled'}{blocks}{kept}"


@dataclass(frozen=True, kw_only=True)
class PerfConfig:
    """The section `perf`.

    Attributes:
        memory_format: Layout of images and filters in memory: channel by channel (`contiguous`) or pixel by pixel
            (`channels_last`).
        compile: Whether `torch.compile` compiles the network.
        checkpointing: Whether training computes the inside of each block a second time for the gradient instead of
            keeping it (activation checkpointing). It saves much memory and costs one more forward pass a step.
        cuda_graphs: Whether a trained network is recorded as a CUDA graph for each shape of its inputs.
        keep_memory: Whether the process keeps the memory that it frees (Linux with glibc). Otherwise each step asks the
            system for its memory again, which costs an eighth of the training time on a CPU and a quarter of a
            divergence's.

    Raises:
        InputError: Another value.
    """

    memory_format: MemoryFormat = "auto"
    compile: Choice = "auto"
    checkpointing: bool = False
    cuda_graphs: Choice = "auto"
    keep_memory: Choice = "auto"

    def __post_init__(self) -> None:
        require_one_of("memory_format", self.memory_format, get_args(MemoryFormat))
        require_one_of("compile", self.compile, get_args(Choice))
        require_one_of("cuda_graphs", self.cuda_graphs, get_args(Choice))
        require_one_of("keep_memory", self.keep_memory, get_args(Choice))

    def resolve(self, device: torch.device, *, steps: int = 0, side: int = 0) -> Perf:
        """The choices for `device`.

        Args:
            device: Where the model runs.
            steps: Of the training ahead; 0 for a model in use.
            side: The smallest of an image's sides; 0 for what is no image.

        Raises:
            InputError: `cuda_graphs` = always for another device.
        """
        cuda, cpu = device.type == "cuda", device.type == "cpu"
        require(
            cuda or self.cuda_graphs != "always",
            f"`perf.cuda_graphs` = always needs a CUDA device, got {device.type}; take auto",
        )
        by_pixels = cuda or (cpu and steps == 0 and side >= LARGE)
        return Perf(
            channels_last=by_pixels if self.memory_format == "auto" else self.memory_format == "channels_last",
            compile=cuda and steps >= MANY if self.compile == "auto" else self.compile == "always",
            checkpointing=self.checkpointing,
            cuda_graphs=cuda and self.cuda_graphs != "never",
            keep_memory=cpu if self.keep_memory == "auto" else self.keep_memory == "always",
        )


def prepare(model: nn.Module, perf: Perf) -> None:
    """Bring a model into the form that `perf` asks, in place; its weights keep their names and values.

    What is compiled is the part `net` of a model, if it has one.
    """
    if perf.keep_memory:
        keep_freed_memory()
    if perf.channels_last:
        lay_by_pixels(model)
    if perf.checkpointing:
        recompute(model)
    if perf.compile:
        for message in USUAL:
            warnings.filterwarnings("ignore", message=message)
        net = getattr(model, "net", model)
        net.compile(backend=BACKEND)
        net._compiled_call_impl = Compiled(cast(Callable[..., Tensor], net._compiled_call_impl), net._call_impl)


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc's allocator give no memory back to the system, where there is one; for the whole process."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        if not mallopt(M_MMAP_THRESHOLD, 2**30):
            mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that older versions take


def lay_by_pixels(model: nn.Module) -> None:
    """Lay the filters of images in memory channels_last; what they make of an image follows them."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            outputs, inputs, height, width = parameter.shape
            by_pixels = parameter.data.new_empty(outputs, height, width, inputs).permute(0, 3, 1, 2)
            parameter.data = by_pixels.copy_(parameter.data)  # `contiguous` would not touch a single channel


class Compiled:
    """A compiled network, or the plain one where that cannot serve: derivatives by its input, and a failed compiler.

    Args:
        compiled, plain: The two, called alike.
    """

    def __init__(self, compiled: Callable[..., Tensor], plain: Callable[..., Tensor]) -> None:
        self.compiled, self.plain, self.failed = compiled, plain, False

    def __call__(self, x: Tensor, *more: Tensor | None) -> Tensor:
        derived = (torch.is_grad_enabled() and x.requires_grad) or transformed(x)  # once more, batched, forward …
        if self.failed or derived:
            return self.plain(x, *more)
        try:
            return self.compiled(x, *more)
        except Exception as error:
            out = self.plain(x, *more)  # an error of the network's own is told as it is
            self.failed = True
            reason = " ".join(str(error).split("\n")[:2])  # which backend, and what it said
            logger.warning("the network could not be compiled and runs as it is: %s", reason)
            return out


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
    """What `training.precision` stands for on `device`: `auto` is bfloat16 where the device has instructions for it."""
    if precision != "auto":
        return precision
    return "bfloat16" if computes_in_bfloat16(device) else "float32"


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for products in bfloat16: CUDA from 8.0, and some CPUs (`cpu`)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bfloat16_instructions() != ""


def precision_advice(precision: Precision, device: torch.device, *, asked: Precision) -> str | None:
    """What a user should know of a precision on this CPU: that it is emulated, or that a faster one is at hand.

    The factor in it is measured on the spot, for one convolution with its gradients. None where there is nothing to
    say, for `auto`, and for float32 that was asked for.
    """
    if device.type != "cpu" or precision == "auto":
        return None
    if precision == "bfloat16" and not computes_in_bfloat16(device):
        return (
            f"this CPU has no instructions for bfloat16 ({instruction_set()}) and emulates it: a convolution takes "
            f"{bfloat16_slowdown():.1f} times as long as in float32. Use --set training.precision=float32"
        )
    if precision == "float32" and asked == "auto" and computes_in_bfloat16(device) and bfloat16_slowdown() < 1:
        return (
            f"this CPU has instructions for bfloat16 ({bfloat16_instructions()}): a convolution takes "
            f"{bfloat16_slowdown():.2f} of its time in float32. --set training.precision=bfloat16 uses them"
        )
    return None


def like(stored: Tensor, parameter: Tensor) -> Tensor:
    """`stored` on the device of `parameter`, and, if it has its shape, in its memory format, as fused kernels want."""
    if stored.shape != parameter.shape:
        return stored.to(parameter.device)
    return torch.empty_like(parameter, dtype=stored.dtype, requires_grad=False).copy_(stored)
