"""The optimizer of a run, and its moments as tensors of a checkpoint."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sde_diffusion.runtime.performance import like
from sde_diffusion.training.options import TrainingConfig
from sde_diffusion.training.shares import fill, local


def make_optimizer(config: TrainingConfig, trained: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Adam or AdamW on the weights `trained`."""
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(trained.values(), betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True)


def moments_of(optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What it remembers of each weight, as `moment.name of the weight`."""
    return {
        f"{key}.{name}": value
        for name, parameter in trained.items()
        for key, value in optimizer.state[parameter].items()
    }


def restore_moments(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter], stored: Mapping[str, Tensor]
) -> None:
    """Take up `moments_of` an earlier process, whose weights may have been shared otherwise."""
    keys = dict.fromkeys(name.partition(".")[0] for name in stored)

    def fitted(value: Tensor, parameter: nn.Parameter) -> Tensor:
        if local(parameter) is parameter or value.shape != parameter.shape:
            return like(value, parameter)
        return fill(torch.zeros_like(parameter, dtype=value.dtype, requires_grad=False), value)

    for name, parameter in trained.items():
        optimizer.state[parameter] = {key: fitted(stored[f"{key}.{name}"], parameter) for key in keys}
