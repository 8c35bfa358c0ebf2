"""A trained model against what can be known of it: consistency with itself, and a Gaussian that it must beat.

Its score has no closed form. What has: an exact trace is the mean of Hutchinson's, a tighter tolerance gives the same
bits/dim, decoding undoes encoding, companions change nothing. And the error of ε̂ on held-out data has a bound from
above, the best denoiser that is linear in x_t, which is that of the Gaussian N(m, C) fitted to the training data:

    ε̂ = σ (a² C + σ²)⁻¹ (x_t − a m)

A network that does not beat it at some noise level has learnt less there than a covariance tells. Since a bound on
−log p is ∫ E‖ε̂ − ε‖² dλ and what both have in common, the area between the two curves is a gain in nats. The bound from
below, the error of the data's true score, is unknown and above 0; where the error of the network stops falling with
more training and size it is near, but no number here says so.

Reference: Kingma et al. 2021, arXiv:2107.00630, eq. 11, for the integral (there over log SNR = 2λ, with a factor ½).
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.config.build import Trained
from sde_diffusion.grids import LogSNRGrid
from sde_diffusion.likelihood import (
    ExactTrace,
    GaussianReference,
    Hutchinson,
    Interval,
    Likelihood,
    log_likelihood,
    mean_interval,
)
from sde_diffusion.likelihood.divergence import score_and_trace
from sde_diffusion.rng import generator
from sde_diffusion.sampling import encode, sample
from sde_diffusion.score import eps_from_score
from sde_diffusion.solvers import PerSampleODE, SeededNoise
from sde_diffusion.tensors import flat_mean
from sde_diffusion.verify.check import STANDARD_ERRORS, Check, Measured, NotShown, worst

_NOISE = 0x5C0E  # purpose of random numbers
LEVELS, PROBES = 10, 32
TRACED, SOLVED = 2, 16  # examples of the exact trace and of the ODE
EXACT_DIMS = 4096  # one reverse pass for each
BITS = 0.01  # error of the ODE that a comparison of models bears [bits/dim]


@dataclass(frozen=True, eq=False)
class Level:
    """The error of ε̂ at one noise level, mean over held-out examples and dimensions.

    Attributes:
        half_log_snr, t: The level.
        error, gaussian: Of the network and of the linear denoiser, on the same draws.
        gain: By how much the network is better, paired, for each example, (N,).
    """

    half_log_snr: float
    t: float
    error: Interval
    gaussian: Interval
    gain: Tensor


@dataclass(frozen=True)
class Solve:
    """Bits/dim at one tolerance, and what is missing to the tightest."""

    tolerance: float
    bits: Interval
    off: Interval
    nfe: int


@dataclass(eq=False)
class Examination:
    """A model with the data it is held against; numbers are found when they are first asked for.

    Attributes:
        trained: The model.
        held_out, training: Examples in model coordinates, dequantised, (N, *D), on the model's device.
    """

    trained: Trained
    held_out: Tensor
    training: Tensor

    def checks(self) -> Iterator[Check]:
        """All checks of this area."""
        yield Check("a score in any batch", "held-out", self._batch)
        for level in range(LEVELS):
            case = f"level {level + 1} of {LEVELS}"
            yield Check("Hutchinson's mean is the exact trace", case, partial(self._trace, level))
        yield Check("decode inverts encode, in levels of grey or 1 %", f"{SOLVED} held-out examples", self._round_trip)
        yield Check("bits/dim at a tenth of the tolerance", f"{SOLVED} held-out examples", self._ode)
        yield Check("evaluations are counted", "sampling and likelihood", self._evaluations)
        yield Check("denoises better than a Gaussian", f"{len(self.held_out)} held-out examples", self._better)

    @cached_property
    def times(self) -> Tensor:
        """Noise levels, equally spaced in λ from t_max to t_min, (LEVELS,) float64 on the CPU."""
        sde = self.trained.model.sde
        return LogSNRGrid()(sde, sde.t_max, sde.t_min, LEVELS - 1)

    @cached_property
    def levels(self) -> list[Level]:
        """The error by noise level; one score evaluation each for all held-out examples."""
        fitted = GaussianReference.fit(self.training.cpu())
        variances, basis = torch.linalg.eigh(fitted.cholesky @ fitted.cholesky.T)
        return [self._level(t, fitted.mean, variances, basis) for t in self.times]

    @torch.no_grad()
    def _level(self, t: Tensor, mean: Tensor, variances: Tensor, basis: Tensor) -> Level:
        model, x0 = self.trained.model, self.held_out
        sde = model.sde
        eps = torch.randn(x0.shape, generator=generator(_NOISE)).to(x0)
        a, std = float(sde.mean_coef(t)), float(sde.std(t))
        x = a * x0 + std * eps
        time = t.to(x).expand(len(x))
        parts = (x[first : first + 128] for first in range(0, len(x), 128))
        found = torch.cat([eps_from_score(sde, model(part, time[: len(part)]), t) for part in parts])
        off = flat_mean((found - eps) ** 2).double().cpu()
        rows = (x.double().cpu().flatten(1) - a * mean) @ basis
        linear = (std * rows / (a**2 * variances + std**2)) @ basis.T
        reference = ((linear - eps.double().cpu().flatten(1)) ** 2).mean(1)
        return Level(math.log(a / std), float(t), mean_interval(off), mean_interval(reference), reference - off)

    @property
    def gain(self) -> Interval:
        """The area between the curves of Gaussian and network over λ, by the trapezoidal rule [bits/dim]."""
        gains = torch.stack([level.gain for level in self.levels], 1)
        x = torch.tensor([level.half_log_snr for level in self.levels], dtype=torch.float64)
        return mean_interval(torch.trapezoid(gains, x) / math.log(2))

    @cached_property
    def solves(self) -> list[Solve]:
        """Bits/dim from loose to tight, the same examples and probes."""
        tolerance = self.trained.config.likelihood.ode.rtol
        tolerances = [100 * tolerance, 10 * tolerance, tolerance, 0.1 * tolerance]
        results = [self._score(tolerance) for tolerance in tolerances]
        bits = [self.trained.spec.bits_per_dim(result.log_prob.double()) for result in results]
        return [
            Solve(tolerance, mean_interval(values), mean_interval(values - bits[-1]), result.nfe)
            for tolerance, values, result in zip(tolerances, bits, results, strict=True)
        ]

    def as_dict(self) -> dict[str, Any]:
        """All numbers, as JSON values; a mean beside the half-width of its 95 % interval."""
        return {
            "held_out": len(self.held_out),
            "levels": [asdict(level) | {"gain": mean_interval(level.gain)} for level in self.levels],
            "gain_bits_per_dim": self.gain,
            "solves": [asdict(solve) for solve in self.solves],
            "round_trip": self.round_trip.tolist(),
        }

    def _score(self, tolerance: float) -> Likelihood:
        model, ode = self.trained.model, PerSampleODE(rtol=tolerance, atol=tolerance)
        return log_likelihood(model, model.sde, self.held_out[:SOLVED], divergence=Hutchinson(), ode=ode)

    @torch.no_grad()
    def _batch(self) -> Measured:
        """To rounding, which convolutions of other shapes do in another order: 1e-4 of the score's size."""
        x, model = self.held_out[:8], self.trained.model
        t = self.times[LEVELS // 2].to(x).expand(len(x))
        whole, alone = model(x, t), model(x[3:4], t[3:4])
        return Measured(worst(alone, whole[3:4].double(), scale=float(whole.abs().max())), 1e-4)

    def _trace(self, level: int) -> Measured:
        x0, model, t = self.held_out[:TRACED], self.trained.model, self.times[level]
        if self.trained.spec.dims > EXACT_DIMS:
            raise NotShown(f"an exact trace in {self.trained.spec.dims} dimensions takes too long")
        eps = torch.randn(x0.shape, generator=generator(_NOISE, level)).to(x0)
        x, time = model.sde.perturb(x0, t, eps), t.to(x0).expand(len(x0))
        exact, estimates = (
            score_and_trace(model, divergence.bind(x, seed=level, start=0), x, time)[1].double()
            for divergence in (ExactTrace(), Hutchinson(probes=PROBES))
        )
        error = (estimates.mean(1) - exact[:, 0]).abs()
        rounding = 1e-4 * exact[:, 0].abs()
        bound = STANDARD_ERRORS * estimates.std(1) / math.sqrt(PROBES) + rounding
        return Measured(float((error / bound).max()), 1.0)

    @cached_property
    def round_trip(self) -> Tensor:
        """The largest error of each example's return from the latent, (SOLVED,) in model coordinates."""
        model, ode = self.trained.model, PerSampleODE(rtol=1e-5, atol=1e-5)
        x = self.held_out[:SOLVED]
        latent = encode(model, model.sde, ode, x)
        noise = SeededNoise(0, device=x.device)
        back = sample(model, model.sde, ode, tuple(x.shape), noise=noise, x_init=latent.x, denoise=False)
        off: Tensor = (back.x - x).abs().flatten(1).amax(1)
        return off

    def _round_trip(self) -> Measured:
        levels = self.trained.spec.levels
        return Measured(float(self.round_trip.max()), 0.01 if levels is None else 2 / levels)

    def _ode(self) -> Measured:
        off = self.solves[-2].off
        return Measured(abs(off.mean) + off.half_width, BITS)

    def _evaluations(self) -> Measured:
        model, calls, loose = self.trained.model, [], PerSampleODE(rtol=1e-2, atol=1e-2)

        def score(x: Tensor, t: Tensor) -> Tensor:
            calls.append(len(x))
            found: Tensor = model(x, t)
            return found

        x = self.held_out[:2]
        drawn = sample(score, model.sde, loose, tuple(x.shape), noise=SeededNoise(0, device=x.device)).nfe
        off = abs(drawn - len(calls))
        calls.clear()
        result = log_likelihood(score, model.sde, x, divergence=Hutchinson(), ode=loose)
        return Measured(float(off + abs(result.nfe - len(calls))), 0.0)

    def _better(self) -> Measured:
        """By how much it is worse over all levels, if it is, beyond what the examples explain."""
        return Measured(-self.gain.mean, STANDARD_ERRORS / 1.96 * self.gain.half_width)
