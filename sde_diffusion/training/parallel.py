"""How several ranks train one model: each with its rows of the batch, and gradients that are the mean over all.

`ddp` keeps the whole model on every rank; `fsdp` keeps of every weight, moment and average a share, and gathers a
block's weights where they are used.

Reference: Li et al. 2020, arXiv:2006.15704 (DDP); Zhao et al. 2023, arXiv:2304.11277 (FSDP).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sde_diffusion.errors import InputError
from sde_diffusion.losses import DSMLoss
from sde_diffusion.model import ScoreModel
from sde_diffusion.runtime.ranks import Ranks
from sde_diffusion.training.step import StepLoss


class Engine(NamedTuple):
    """What calls the loss, and makes the gradients of the ranks one."""

    call: Callable[..., DSMLoss]
    """As `StepLoss.forward`."""
    no_sync: Callable[[], AbstractContextManager[None]]
    """Around forward and backward of a piece that others follow: the ranks do not meet there."""


def make_engine(loss: StepLoss, ranks: Ranks, *, sharded: bool) -> Engine:
    """What calls `loss`, which has been through `shard` if `sharded`. All ranks call this to compare their models."""
    if sharded:
        return Engine(loss, partial(_without_sync, loss))
    if ranks.alone:
        return Engine(loss, nullcontext)
    # in bfloat16 the CPU gives the gradient of a 1×1 filter other strides of the same layout
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():  # torch ≥ 2.15 has another name for an option that 2.6 has not
        warnings.simplefilter("ignore", FutureWarning)
        replica = DistributedDataParallel(loss, broadcast_buffers=False, gradient_as_bucket_view=True)
    return Engine(replica, replica.no_sync)


@contextmanager
def _without_sync(loss: Any) -> Iterator[None]:
    """`no_sync` of a loss that has been through `shard`."""
    loss.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        loss.set_requires_gradient_sync(True)


def shard(module: nn.Module, ranks: Ranks, device: torch.device) -> None:
    """Keep of every weight this rank's share alone, on `device`, and gather those of a block where it is called.

    A block is an entry of a `ModuleList` that holds no further list: a stage of a U-Net, a block of DiT. What is in
    none is gathered for the whole pass.

    Raises:
        InputError: A torch that cannot.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError:
        raise InputError(
            f"`training.parallel` fsdp needs torch 2.6 or newer, this is {torch.__version__}; take ddp"
        ) from None
    mesh = init_device_mesh(device.type, (ranks.size,))
    parts = module.parts.values() if isinstance(module, StepLoss) else ()  # which are called by themselves too
    for block in [*blocks(module), *parts]:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    if isinstance(module, ScoreModel):
        register_fsdp_forward_method(module, "score_and_fraction")


def blocks(module: nn.Module) -> list[nn.Module]:
    """The entries of its `ModuleList`s that hold weights and no further list."""
    entries = [entry for held in module.modules() if isinstance(held, nn.ModuleList) for entry in held]
    return [
        entry
        for entry in entries
        if next(entry.parameters(), None) is not None and not any(isinstance(m, nn.ModuleList) for m in entry.modules())
    ]
