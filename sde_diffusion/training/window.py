"""What training reports between two lines of the log, gathered without waiting for the device at every step."""

import torch
from torch import Tensor

from sde_diffusion.errors import RunError
from sde_diffusion.losses import DSMLoss
from sde_diffusion.runtime.ranks import ALONE, Ranks

BINS = 10  # equal bins of t in which the error is reported
SUMS = 5 + 3 * BINS
HELD = 64  # steps whose terms stay on the device; then they are summed, which waits for it


class LossWindow:
    """Means over the steps since the last report: the loss, the gradient's norm and the error of ε by t.

    `sums` is all it knows of the steps gone by, so that a run that resumes in the middle of a window reports the same
    numbers: (samples, Σ loss, steps, Σ norm, samples in each bin of t, Σ error in each, Σ loss in each, Σ trained),
    (5 + 3 · 10,) float64.
    """

    def __init__(self, t_max: float, ranks: Ranks = ALONE) -> None:
        self._t_max, self._ranks = t_max, ranks
        self._held: list[tuple[int, DSMLoss, Tensor]] = []
        self._sums = torch.zeros(SUMS, dtype=torch.float64)

    def add(self, step: int, terms: DSMLoss, grad_norm: Tensor) -> None:
        """Take in step `step`, counted from 0: its terms, each (B,), and the gradient's norm before clipping, ().

        Raises:
            RunError: As `sums`, for this step or one of the last 64.
        """
        self._held.append((step, DSMLoss(*(term.detach() for term in terms)), grad_norm.detach()))
        if len(self._held) >= HELD:
            self._fold()

    @property
    def sums(self) -> Tensor:
        """What a checkpoint must carry.

        Raises:
            RunError: A loss or gradient was not finite; says at which step and times.
        """
        self._fold()
        return self._sums.clone()

    @sums.setter
    def sums(self, value: Tensor) -> None:
        self._held.clear()
        value = value.detach().cpu().double()
        older = len(value) < SUMS  # without what was descended, which then was the loss
        self._sums = torch.cat([value, value[1:2]]) if older else value.clone()

    def report(self) -> dict[str, float | list[float | None]]:
        """Means over the window, which is then empty; nothing if it was.

        Raises:
            RunError: As `sums`.
        """
        samples, loss, steps, norm, *bins, trained = self.sums.tolist()
        counts, errors, losses = bins[:BINS], bins[BINS : 2 * BINS], bins[2 * BINS :]
        self._sums.zero_()
        if not steps:
            return {}
        learned = {} if trained == loss else {"trained_loss": trained / samples}
        return learned | {
            "loss": loss / samples,
            "grad_norm": norm / steps,
            "error_by_t": [error / count if count else None for count, error in zip(counts, errors, strict=True)],
            "loss_by_t": [loss / count if count else None for count, loss in zip(counts, losses, strict=True)],
        }

    def _fold(self) -> None:
        """Move what is held to the sums, step by step, so that the rounding does not depend on when this is done."""
        if not self._held:
            return
        held = [torch.stack([terms.loss, terms.error, terms.t, terms.trained], 1) for _, terms, _ in self._held]
        size, lengths = self._ranks.size, [len(rows) for rows in held]
        shares = self._ranks.gather(torch.cat(held)).cpu().chunk(size)
        norms = torch.stack([norm for _, _, norm in self._held]).cpu()
        by_step = zip(*(torch.split(share, lengths) for share in shares), strict=True)
        with self._ranks.agreed():  # all ranks see all rows
            for (step, _, _), rows, norm in zip(self._held, by_step, norms, strict=True):
                self._add(step, torch.cat(rows), norm)
        self._held.clear()

    def _add(self, step: int, rows: Tensor, norm: Tensor) -> None:
        loss, error, t, trained = rows.unbind(1)
        _check_finite(step, loss, t, norm)
        bins = (t * (BINS / self._t_max)).long().clamp(0, BINS - 1)
        self._sums[:4] += torch.stack([torch.tensor(len(t)), loss.double().sum(), torch.tensor(1), norm.double()])
        self._sums[4 : 4 + BINS] += torch.bincount(bins, minlength=BINS)
        self._sums[4 + BINS : 4 + 2 * BINS] += torch.bincount(bins, weights=error.double(), minlength=BINS)
        self._sums[4 + 2 * BINS : -1] += torch.bincount(bins, weights=loss.double(), minlength=BINS)
        self._sums[-1] += trained.double().sum()


def _check_finite(step: int, loss: Tensor, t: Tensor, norm: Tensor) -> None:
    bad = ~loss.isfinite()
    if bad.any():
        times = ", ".join(f"{time:.3g}" for time in t[bad][:5].tolist())
        what = f"the loss of {int(bad.sum())} of {len(bad)} samples was not finite, at t = {times}"
    elif not norm.isfinite():
        what = "the gradient was not finite although the loss was"
    else:
        return
    raise RunError(
        f"training stopped in step {step + 1}: {what}. The last checkpoint, if there is one, is sound. Start a new run "
        f"with a lower training.learning_rate, training.clip = 1, training.precision = float32, or a larger sde.t_min"
    )
