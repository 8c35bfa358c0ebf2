"""The reverse SDE by adaptive steps, every sample with its own."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import SolveError, require_positive
from sde_diffusion.solvers.base import Solver
from sde_diffusion.solvers.process import ReverseProcess
from sde_diffusion.tensors import expand, flat_mean


class BrownianPath:
    """The Brownian motion ahead of each sample, as far as it is known: a stack of increments, the nearest on top.

    After a rejected step the shorter one is drawn from the bridge, given the increment that was too long; what is left
    of that waits below. So the path does not depend on what is rejected, where fresh noise would favour small draws.

    Reference: Rackauckas & Nie 2017, doi:10.3934/dcdsb.2017133 (rejection sampling with memory).
    """

    def __init__(self, x: Tensor) -> None:
        self._depth = torch.zeros(len(x), dtype=torch.long)
        self._lengths = torch.zeros(1, len(x), dtype=torch.float64)
        self._increments = torch.zeros_like(x)[None]
        self._rows = torch.arange(len(x))

    def next(self, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The next increment of each sample, of length `h` or nearly or less if a shorter one is known.

        Args:
            h: Wanted lengths, (B,) float64 on the CPU; 0 for none.
            z: Fresh noise, (B, *D).

        Returns:
            Lengths, (B,), and increments, (B, *D).
        """
        if int(self._depth.max()) == len(self._lengths):
            self._lengths = torch.cat([self._lengths, torch.zeros_like(self._lengths[:1])])
            self._increments = torch.cat([self._increments, torch.zeros_like(self._increments[:1])])
        top = (self._depth - 1).clamp(min=0), self._rows
        length, known = self._lengths[top], self._increments[top]
        empty = (self._depth == 0) & (h > 0)
        split = (self._depth > 0) & (h < 0.9 * length)
        share = torch.where(split, h / length, torch.zeros_like(h))
        spread = torch.sqrt(h * (1 - share))
        drawn = expand(share, z) * known + expand(spread, z) * z
        self._lengths[top] = torch.where(split, length - h, length)
        self._increments[top] = torch.where(_at(split, z), known - drawn, known)
        self._depth += empty | split
        top = (self._depth - 1).clamp(min=0), self._rows
        fresh = empty | split
        self._lengths[top] = torch.where(fresh, h, self._lengths[top])
        self._increments[top] = torch.where(_at(fresh, z), drawn, self._increments[top])
        none = self._depth == 0
        return self._lengths[top].masked_fill(none, 0.0), self._increments[top].masked_fill(_at(none, z), 0.0)

    def drop(self, used: Tensor) -> None:
        """Take the nearest increment of the samples `used`, (B,) bool, off the stack."""
        self._depth -= used.long()


@dataclass(frozen=True, kw_only=True)
class AdaptiveSDE(Solver):
    """The reverse SDE by the stochastic improved Euler method; its distance from Euler–Maruyama sets the step.

    Every sample has its own time, step and verdict, so companions change nothing. A rejected step keeps its noise, as a
    Brownian bridge; the paper draws anew. Steps are powers of 2^¼, or rounding errors would grow through their choice.
    The observer sees the start and the end, between which samples share no time.

    Attributes:
        rtol, atol: Tolerated error of a step, relative to the state and absolute; 2/256 is one grey level in [−1, 1].
        first: Length of the first step.
        safety, exponent: A step h with the error E is followed by safety · h / E^exponent.
        max_steps: Steps tried, accepted or not, before the solve is given up.

    Cost: two score evaluations per step tried, of the sample that needs most.

    Reference: Jolicoeur-Martineau et al. 2021, arXiv:2105.14080, Algorithm 1.
    """

    order = 2
    stochastic = True

    rtol: float = 0.01
    atol: float = 0.0078
    first: float = 0.01
    safety: float = 0.9
    exponent: float = 0.9
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        require_positive(rtol=self.rtol, atol=self.atol, first=self.first, max_steps=self.max_steps)
        require_positive(safety=self.safety, exponent=self.exponent)

    def solve(self, process: ReverseProcess, x: Tensor, t_from: float, t_to: float) -> Tensor:
        """See `Solver.solve`.

        Raises:
            SolveError: A step size fell to zero, which it does where the score is not finite, or `max_steps` was
                reached; the message names the sample and its time.
        """
        t, path, previous = torch.full((len(x),), t_from, dtype=torch.float64), BrownianPath(x), x
        wanted = torch.full_like(t, self.first)
        process.observe(x, t_from)
        for _ in range(self.max_steps):
            if bool((t <= t_to).all()):
                break
            h, increment = path.next(torch.minimum(wanted, t - t_to), process.noise(x, t, t))
            t_next = torch.where(h >= t - t_to, t_to, t - h).clamp(min=t_to)
            euler, improved = self.trial(process, x, t, t_next, increment)
            error = self.error(euler, improved, previous).double().cpu()
            accepted = (error <= 1) & (t > t_to)
            x, previous = (torch.where(_at(accepted, x), *pair) for pair in ((improved, x), (euler, previous)))
            t = torch.where(accepted, t_next, t)
            path.drop(accepted)
            scaled = h * (self.safety * error**-self.exponent).nan_to_num(nan=0.0).clamp(0.1, 10.0)
            scaled = torch.exp2(torch.floor(4 * torch.log2(scaled)) / 4)
            wanted = torch.where(accepted & (h < wanted), torch.maximum(wanted, scaled), scaled)
            self._check(wanted, t, t_to, "the step size fell to zero; look for non-finite scores there")
        else:
            left = torch.where(t > t_to, 0.0, math.inf)
            self._check(left, t, t_to, f"`max_steps` = {self.max_steps} were not enough; loosen `rtol` and `atol`")
        process.observe(x, t_to)
        return x

    def trial(
        self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor, increment: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x' = x + F(x, t) h + g(t) ΔW,    x'' = ½ (x' + x + F(x', t_n) h + g(t_n) ΔW),    h = t_n − t.

        Args:
            x: (B, *D).
            t, t_next: (B,) or () float64.
            increment: ΔW, (B, *D).

        Returns:
            Euler's x' and the improved x'', (B, *D).
        """
        h, sde = expand(t_next - t, x), process.sde
        euler = x + h * process.drift(x, t, 1.0) + expand(sde.diffusion(t), x) * increment
        other = x + h * process.drift(euler, t_next, 1.0) + expand(sde.diffusion(t_next), x) * increment
        return euler, 0.5 * (euler + other)

    def error(self, euler: Tensor, improved: Tensor, previous: Tensor) -> Tensor:
        """rms of (x'' − x') / max(atol, rtol |x'|, rtol |x'_prev|) for each sample, (B,)."""
        scale = (self.rtol * torch.maximum(euler.abs(), previous.abs())).clamp(min=self.atol)
        return flat_mean(((improved - euler) / scale) ** 2).sqrt()

    def _check(self, h: Tensor, t: Tensor, t_to: float, reason: str) -> None:
        """Raise if an unfinished sample has a step too short to move its time."""
        stuck = (t > t_to) & (t - h == t)
        if bool(stuck.any()):
            rows = stuck.nonzero()[:, 0].tolist()
            raise SolveError("the adaptive SDE solve", reason, t=float(t[rows[0]]), samples=rows)


def _at(mask: Tensor, x: Tensor) -> Tensor:
    """A mask of samples, (B,), as it selects rows of `x`, (B, *D)."""
    return mask.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))
