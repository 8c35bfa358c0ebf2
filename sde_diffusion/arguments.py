"""What a caller gives to a public function, made sure of: the process, the batch and its labels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError, require, shown_type
from sde_diffusion.sde import SDE

ScoreFn = Callable[[Tensor, Tensor], Tensor]  # as in score.py

Data = Tensor | Sequence[Tensor | None]
"""A batch (B, *D); or a pair of one and its labels, (B,) or None, as data loaders give it."""


def as_process(value: Any) -> SDE:
    """`value`, which must be a process.

    Raises:
        InputError: It is anything else, such as the class of one.
    """
    if isinstance(value, type) or not hasattr(value, "log_mean_coef"):
        raise InputError(f"`sde` must be a process such as VPSDE(), got {shown_type(value)}")
    process: SDE = value
    return process


def process_of(score_fn: ScoreFn, sde: SDE | None) -> SDE:
    """`sde`, or, where it is not given, that of `score_fn`: a `ScoreModel` has one, and so has a closed form's method.

    Raises:
        InputError: There is none.
    """
    if not callable(score_fn) or isinstance(score_fn, type):
        raise InputError(f"`score_fn` must be a function (x, t) -> score, got {shown_type(score_fn)}")
    if sde is not None:
        return as_process(sde)
    owners: tuple[Any, ...] = (score_fn, getattr(score_fn, "__self__", None))
    found = next((owner.sde for owner in owners if hasattr(owner, "sde")), None)
    if found is None:
        raise InputError("`sde` must be given, such as VPSDE(): this score function has no process of its own")
    return as_process(found)


def batch_for(score_fn: ScoreFn, name: str, x: object) -> Tensor:
    """`x`, which must be a floating-point batch (B, *D) that suits the network of `score_fn`, where it has one.

    Raises:
        InputError: It is anything else; `name` is what the message calls it.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"`{name}` must be a tensor (B, *D), got {shown_type(x)}; convert it by torch.as_tensor")
    require(
        x.is_floating_point() and x.ndim > 1 and len(x) > 0,
        f"`{name}` must be a floating-point batch (B, *D) with B > 0, got {x.dtype} of shape {tuple(x.shape)}",
    )
    net = getattr(score_fn, "net", None)
    if isinstance(net, nn.Module):
        _require_dtype(net, name, x)
        _require_channels(net, name, tuple(x.shape))
    return x


def _require_dtype(net: nn.Module, name: str, x: Tensor) -> None:
    kind = next((weight.dtype for weight in net.parameters() if weight.is_floating_point()), x.dtype)
    require(
        x.dtype == kind or torch.is_autocast_enabled(x.device.type),
        f"`{name}` must be {kind} as the network's weights are, got {x.dtype}; convert one of them, {name}.to({kind})",
    )


def _require_channels(net: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """The first side of an event must be the network's; convolutions may take others of the rest."""
    own = getattr(net, "shape", None)
    if isinstance(own, Sequence):
        require(
            len(shape) == len(own) + 1 and shape[1] == own[0],
            f"`{name}` must have the shape (B, {', '.join(map(str, own))}) of the network, got {shape}",
        )


def score_and_data(score_fn: ScoreFn, sde: SDE | Data | None, x0: Data | None) -> tuple[ScoreFn, SDE, Tensor]:
    """What a call stands for that is written f(score_fn, sde, x0), or f(score_fn, x0) for short.

    Returns:
        The score function for the labels of `x0`, if it is a pair with labels and the network knows classes; the
        process; and the batch.

    Raises:
        InputError: There is no process, or no floating-point batch that suits the network of `score_fn`.
    """
    given: Any = (None, sde) if x0 is None else (sde, x0)
    process, data = process_of(score_fn, given[0]), given[1]
    label = None
    if isinstance(data, tuple | list) and 1 <= len(data) <= 2:
        data, label = (*data, None)[:2]
    batch = batch_for(score_fn, "x0", data)
    if label is None or not getattr(getattr(score_fn, "net", None), "classes", 0):
        return score_fn, process, batch
    bind: Any = getattr(score_fn, "bind", None)
    return bind(label), process, batch
