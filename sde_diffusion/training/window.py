"""What training reports between two lines of the log, gathered without waiting for the device."""

import math

import torch
from torch import Tensor

from sde_diffusion.errors import RunError
from sde_diffusion.losses import DSMLoss

BINS = 10  # equal bins of t in which the error is reported


def mean_by_time(values: Tensor, t: Tensor, t_max: float) -> list[float | None]:
    """Mean of `values` (n,) in each of 10 equal bins of t, None where a bin is empty."""
    bins = (t * (BINS / t_max)).long().clamp(0, BINS - 1)
    counts = torch.bincount(bins, minlength=BINS)
    sums = torch.bincount(bins, weights=values.double(), minlength=BINS)
    return [float(s / c) if c else None for s, c in zip(sums.tolist(), counts.tolist(), strict=True)]


class LossWindow:
    """The terms of the steps since the last report, kept on the device until `report`."""

    def __init__(self, t_max: float) -> None:
        self._t_max = t_max
        self._steps: list[tuple[int, DSMLoss, Tensor]] = []

    def add(self, step: int, terms: DSMLoss, grad_norm: Tensor) -> None:
        """Take in step `step`: its terms, each (B,), and the gradient's norm before clipping, ()."""
        self._steps.append((step, DSMLoss(*(term.detach() for term in terms)), grad_norm.detach()))

    def report(self) -> dict[str, float | list[float | None]]:
        """Means over the window, which is then empty.

        Raises:
            RunError: A loss or gradient was not finite; says at which step and times.
        """
        if not self._steps:
            return {}
        loss, error, t = (
            torch.cat([getattr(terms, name) for _, terms, _ in self._steps]).cpu() for name in DSMLoss._fields
        )
        norms = torch.stack([norm for _, _, norm in self._steps]).cpu()
        if not (loss.isfinite().all() and norms.isfinite().all()):
            self._diagnose()
        self._steps.clear()
        return {
            "loss": float(loss.double().mean()),
            "grad_norm": float(norms.double().mean()),
            "error_by_t": mean_by_time(error, t, self._t_max),
        }

    def _diagnose(self) -> None:
        for step, terms, norm in self._steps:
            bad = ~terms.loss.isfinite()
            if bad.any():
                times = ", ".join(f"{time:.3g}" for time in terms.t[bad][:5].tolist())
                what = f"the loss of {int(bad.sum())} of {len(bad)} samples was not finite, at t = {times}"
            elif not math.isfinite(float(norm)):
                what = "the gradient was not finite although the loss was"
            else:
                continue
            raise RunError(
                f"training stopped at step {step}: {what}. The last checkpoint is sound. Try a lower "
                f"training.learning_rate, training.clip = 1, training.precision = float32, or a larger sde.t_min"
            )
