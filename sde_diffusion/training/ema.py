"""Averages of a model's weights over training: exponential ones with warm-up, and ones by a power of time."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from sde_diffusion.errors import require
from sde_diffusion.training.checkpoint import Checkpoint
from sde_diffusion.training.power_profile import decay, exponent
from sde_diffusion.training.shares import fill, load_whole, local

Model = TypeVar("Model", bound=nn.Module)

logger = logging.getLogger(__name__)

MAIN, DECAY, PROFILE = "ema", "ema_decay", "ema_profile"  # prefixes of tensors in a checkpoint


class EMA(Generic[Model]):
    """θ̄ ← d θ̄ + (1 − d) θ with d = min(rate, (1 + k)/(10 + k)) after step k, for each rate; and power profiles.

    The warm-up lets the first, random weights fade: an average of a constant rate would remember them for about
    1/(1 − rate) steps. `model` is a copy of the trained model, in evaluation mode and without gradients, whose weights
    are θ̄ of the first rate; its buffers are those of the model. The other averages are weights alone: each takes as
    much memory as the weights and one pass over them a step. See `power_profile` for those by a power of time.

    Args:
        source: The model that is trained.
        decays: Rates, one or more, each in [0, 1).
        profiles: Lengths σ_rel of averages by a power of time, each in (0, 12^(−½)).

    Raises:
        InputError: No rate, one twice, or one out of range.
    """

    def __init__(self, source: Model, *decays: float, profiles: Sequence[float] = ()) -> None:
        check_averages(decays, profiles)
        self.model = copy.deepcopy(source).eval().requires_grad_(False)
        self._main = decays[0]
        self._decays = {rate: _copies(source) for rate in decays[1:]}
        self._profiles = {length: _copies(source) for length in profiles}
        self._exponents = {length: exponent(length) for length in profiles}

    def spread(self, shard: Callable[[Model], None]) -> None:
        """Keep a share of every average alone; before the first update, when all are the weights."""
        shard(self.model)
        self._decays = {rate: _copies(self.model) for rate in self._decays}
        self._profiles = {length: _copies(self.model) for length in self._profiles}

    @property
    def lengths(self) -> tuple[float, ...]:
        """Of the averages by a power of time."""
        return tuple(self._profiles)

    @torch.no_grad()
    def update(self, source: Model, step: int) -> None:
        """Take in the weights after training step `step`, counted from 0."""
        new = _shares(p.detach() for p in source.parameters())
        torch._foreach_lerp_(_shares(p.detach() for p in self.model.parameters()), new, 1 - _warmed(self._main, step))
        for rate, average in self._decays.items():
            torch._foreach_lerp_(_shares(average), new, 1 - _warmed(rate, step))
        for length, average in self._profiles.items():
            torch._foreach_lerp_(_shares(average), new, 1 - decay(self._exponents[length], step + 1))
        for kept, value in zip(self.model.buffers(), source.buffers(), strict=True):
            kept.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must carry."""
        tensors = {f"{MAIN}.{name}": value for name, value in self.model.state_dict().items()}
        for rate, average in self._decays.items():
            tensors |= {f"{DECAY}.{rate}.{name}": value for name, value in self._named(average)}
        return tensors | self.profiles()

    def profiles(self) -> dict[str, Tensor]:
        """The part of `state` that a snapshot holds: the averages by a power of time."""
        return {
            f"{PROFILE}.{length}.{name}": value
            for length, average in self._profiles.items()
            for name, value in self._named(average)
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up `state()` of an earlier process.

        An average by a power of time that the checkpoint lacks, for it is older than those, is dropped and the user
        told: it cannot be begun in the middle.

        Raises:
            InputError: A checkpoint that lacks an average of another rate.
        """
        load_whole(self.model, checkpoint.group(MAIN))
        for rate, average in self._decays.items():
            stored = checkpoint.group(f"{DECAY}.{rate}")
            require(
                bool(stored), f"the checkpoint has no average of rate {rate}; resume with the run's own `ema_decay`"
            )
            self._fill(average, stored)
        for length in self.lengths:
            if stored := checkpoint.group(f"{PROFILE}.{length}"):
                self._fill(self._profiles[length], stored)
            else:
                logger.warning("the checkpoint has no average of length %s: the run goes on without it", length)
                del self._profiles[length]

    def _named(self, average: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
        names = (name for name, _ in self.model.named_parameters())
        return zip(names, average, strict=True)

    def _fill(self, average: list[Tensor], stored: dict[str, Tensor]) -> None:
        for name, value in self._named(average):
            fill(value, stored[name])


def check_averages(decays: Sequence[float], profiles: Sequence[float]) -> None:
    """Refuse what cannot be averaged.

    Raises:
        InputError: No rate, one twice, or one out of range.
    """
    require(len(decays) > 0, "`ema_decay` must be one or more rates, got none")
    for rate in decays:
        require(0 <= rate < 1, f"`ema_decay` must be in [0, 1), got {rate}")
    for length in profiles:
        exponent(length)
    for name, values in (("ema_decay", decays), ("ema_profiles", profiles)):
        require(len(set(values)) == len(values), f"`{name}` must not name one average twice, got {list(values)}")


def _warmed(rate: float, step: int) -> float:
    """d after training step `step`, counted from 0."""
    return min(rate, (1 + step) / (10 + step))


def _shares(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [local(value) for value in tensors]


def _copies(source: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in source.parameters()]
