"""Shapes: coefficients of time against states of any event shape `(B, *D)`, and functions that know their batch."""

from collections.abc import Callable
from typing import Any, Protocol, overload, runtime_checkable

import torch
from torch import Tensor
from torch.autograd import forward_ad


@overload
def expand(coef: float, x: Tensor) -> float: ...
@overload
def expand(coef: Tensor, x: Tensor) -> Tensor: ...
def expand(coef: Tensor | float, x: Tensor) -> Tensor | float:
    """View a coefficient of time so that it broadcasts against `x`, without changing the dtype of `x`.

    Args:
        coef: (), (B,) or a number. A 0-dim tensor passes through, as a number does: it may live on the CPU in float64
            and neither upcasts a float32 `x` nor forces a synchronisation.
        x: (B, *D).

    Returns:
        () as given, or (B, 1, …, 1) in the dtype and on the device of `x`.
    """
    if isinstance(coef, float) or coef.ndim == 0:
        return coef
    return coef.to(x).reshape(-1, *(1,) * (x.ndim - 1))


def flat_sum(x: Tensor) -> Tensor:
    """Sum over the event dimensions, (B, *D) -> (B,)."""
    return x.flatten(1).sum(1)


def flat_mean(x: Tensor) -> Tensor:
    """Mean over the event dimensions, (B, *D) -> (B,)."""
    return x.flatten(1).mean(1)


def transformed(x: Tensor) -> bool:
    """Whether a transformation of functions sees `x`: forward mode or vmap, which know no operations of our own."""
    dual = forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
    return dual or bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


@runtime_checkable
class PerSample(Protocol):
    """A function that keeps something for each sample of its batch, e.g. random directions."""

    def select(self, rows: Tensor) -> Callable[..., Any]:
        """The same function for the samples `rows` (n,) of its batch."""


def select(function: Callable[..., Any], rows: Tensor) -> Callable[..., Any]:
    """`function` for the samples `rows` of its batch: itself, unless it keeps something `PerSample`."""
    return function.select(rows) if isinstance(function, PerSample) else function
