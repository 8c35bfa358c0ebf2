"""Tensors of which every rank may hold a share alone (FSDP's), beside plain ones: for both the same few words."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.runtime.ranks import Ranks


@contextmanager
def released(module: nn.Module) -> Iterator[None]:
    """Use a model without training it; afterwards its weights are in shares again, if they were."""
    yield
    for part in module.modules():
        reshard = getattr(part, "reshard", None)
        if reshard is not None:
            reshard()


def local(value: Tensor) -> Tensor:
    """This rank's share of a tensor; of one that is not shared, itself."""
    share: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return share


def full(value: Tensor) -> Tensor:
    """A tensor put together on every rank; one that is not shared, itself."""
    found: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return found


def whole(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The tensors put together, one by one; those that are shared go to the CPU of rank 0, the other ranks get none."""
    found = {}
    for name, value in sorted(tensors.items(), key=lambda item: item[0]):  # in one order on all ranks
        together = full(value)
        if together is value:
            found[name] = value
        elif ranks.main:
            found[name] = together.cpu()
    return found


@torch.no_grad()
def fill(target: Tensor, stored: Tensor) -> Tensor:
    """Copy a whole tensor into one that may be shared; returns the target."""
    if not hasattr(target, "to_local"):
        return target.copy_(stored)
    mesh: Any = target.device_mesh  # type: ignore[attr-defined]
    shares = stored.chunk(mesh.size())
    own: Tensor = target.to_local()
    if own.numel():
        own.copy_(shares[mesh.get_local_rank()])
    return target


def load_whole(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict` for a module whose weights may be shared."""
    own = module.state_dict()
    if not any(hasattr(value, "to_local") for value in own.values()):
        module.load_state_dict(tensors)
        return
    missing = own.keys() ^ tensors.keys()
    assert not missing, f"weights of another model: {sorted(missing)[:3]}"
    for name, value in own.items():
        fill(value, tensors[name])
