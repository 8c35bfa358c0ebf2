"""Log-likelihood by the change of variables along the probability-flow ODE.

The flow dx/dt = f x − ½ g² s carries a data point x_0 at `t_min` to z at `t_max`, and its log-density changes by the
divergence of the drift along the way:

    log p(x_0) = log p_T(z) + Δ,    Δ = ∫ (f D − ½ g² tr ∂s/∂x) dt   from t_min to t_max

f D is known and never estimated. The prior N(0, prior_std² I) stands in for p_T, an error of 1e-3 to 7e-2 nats for the
whole sample, and the density is that of the data noised to `t_min`.

Reference: Song et al. 2021, arXiv:2011.13456, eq. 39 and appendix D.2; Chen et al. 2018, arXiv:1806.07366, theorem 1.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.arguments import score_and_data
from sde_diffusion.likelihood.divergence import DIVERGENCES, Divergence, TraceFn, score_and_trace
from sde_diffusion.registry import resolve
from sde_diffusion.runtime.cuda_graphs import eager
from sde_diffusion.score import ScoreFn, reverse_drift
from sde_diffusion.sde import SDE
from sde_diffusion.solvers import ODES, AdaptiveODE
from sde_diffusion.solvers.failures import counted_from
from sde_diffusion.solvers.process import ReverseProcess
from sde_diffusion.solvers.runge_kutta import sample_rms
from sde_diffusion.tensors import expand, select

LogProb = Callable[[Tensor], Tensor]
"""z: (B, *D) -> log-density in nats, (B,)."""


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log-likelihoods of a batch, in nats with respect to the model's own coordinates, and what they are made of.

    Attributes:
        prior: log-density of `z` under the prior, (B,).
        delta: Δ, one column for each estimate of the trace, (B, k).
        z: Latent codes, the data carried to t_max, (B, *D).
        nfe: Score evaluations, each with its vjps.
        exact: Whether the trace was exact.
    """

    prior: Tensor
    delta: Tensor
    z: Tensor
    nfe: int
    exact: bool

    @property
    def per_probe(self) -> Tensor:
        """log p of each estimate, (B, k)."""
        return self.prior[:, None] + self.delta

    @property
    def log_prob(self) -> Tensor:
        """log p, the mean over the estimates, (B,)."""
        return self.per_probe.mean(1)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of `log_prob` from the random directions, (B,): 0 for the exact trace, NaN for one probe."""
        if self.exact:
            return torch.zeros_like(self.prior)
        probes = self.delta.shape[1]
        if probes == 1:
            return torch.full_like(self.prior, math.nan)
        return self.delta.std(1) / math.sqrt(probes)


@dataclass(frozen=True, eq=False)
class _Score:
    """The score of a process as a function that knows its batch."""

    process: ReverseProcess

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.process.score(x, t)

    def select(self, rows: Tensor) -> "_Score":
        return _Score(self.process.select(rows))


@dataclass(frozen=True, eq=False)
class _AugmentedFlow:
    """(t: () or (n,), y = (x, Δ/D): (n, D + k)) -> dy/dt, for states x of `shape`."""

    process: ReverseProcess
    trace: TraceFn
    shape: tuple[int, ...]

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        sde, dims = self.process.sde, math.prod(self.shape)
        x = y[:, :dims].reshape(-1, *self.shape)
        score, score_trace = score_and_trace(_Score(self.process), self.trace, x, t)
        velocity = reverse_drift(sde, score, x, t, eta=0.0)
        growth = expand(sde.drift_coef(t), y) - expand(0.5 * sde.diffusion(t) ** 2 / dims, y) * score_trace
        return torch.cat([velocity.flatten(1), growth], 1)

    def select(self, rows: Tensor) -> "_AugmentedFlow":
        """The flow of the samples `rows` (m,) of these n."""
        return replace(self, process=self.process.select(rows), trace=select(self.trace, rows))


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products in the precision of their factors: no autocast, no TensorFloat-32 or bfloat16 inside float32 products.

    An adaptive solver takes rounding errors for its own and shortens its steps; and 0.01 bits/dim of an image are some
    nats of thousands. Recorded graphs of kernels, which may have another precision, are not used either.
    """
    cudnn: Any = torch.backends.cudnn
    with _unwarned():
        products, flags = torch.get_float32_matmul_precision(), cudnn.set_flags(_allow_tf32=False)
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), eager():
            yield
    finally:
        with _unwarned():
            torch.set_float32_matmul_precision(products)
            cudnn.set_flags(*flags)


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """torch 2.9 and later warn of these switches, whose successors 2.8 has not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")
        yield


def log_likelihood(
    score_fn: ScoreFn,
    sde: SDE | Tensor | None = None,
    x0: Tensor | None = None,
    *,
    divergence: Divergence | str = "hutchinson",
    ode: AdaptiveODE | str = "ode",
    seed: int = 0,
    start: int = 0,
    prior_log_prob: LogProb | None = None,
) -> Likelihood:
    """log p(x0) by the probability-flow ODE from `sde.t_min` to `sde.t_max`.

    State and Δ/D are solved together, and a step is accepted when every sample's state (root mean square) and every
    Δ/D (absolute, in nats per dimension) meets the tolerance, so that companions drown no error.

    Args:
        score_fn: (x, t) -> ∇ log p_t(x), differentiable in x.
        sde: The forward process. May be left out, `log_likelihood(model, x0)`, where `score_fn` is a `ScoreModel`.
        x0: Data in model coordinates, (B, *D), floating point; sets dtype and device.

    Other args:
        divergence: How to get tr ∂s/∂x: a row of `DIVERGENCES`, or an object such as `ExactTrace()`.
        ode: The integrator and its tolerances: a row of `ODES`, or an object such as `PerSampleODE(rtol=1e-3)`.
        seed: Of the random directions.
        start: Index of the first sample: the directions of sample i depend on (seed, start + i) alone.
        prior_log_prob: log-density at t_max in place of `sde.prior_log_prob`, e.g. an oracle's p_T to measure the solve
            apart from the prior gap.

    Whatever precision surrounds the call, products of float32 numbers are computed in float32 (`full_precision`).

    Returns:
        `Likelihood`; its `nfe` is the cost.

    Raises:
        InputError: `x0` is no floating-point batch, no process is known, or the score cannot be differentiated.
        SolveError: The solve fails; says when and for which sample.

    Reference: Song et al. 2021, arXiv:2011.13456, eqs. 39 and 40.
    """
    score_fn, sde, x0 = score_and_data(score_fn, sde, x0)
    divergence = resolve(DIVERGENCES, divergence, Divergence, "divergence")  # type: ignore[type-abstract]
    ode = resolve(ODES, ode, AdaptiveODE, "ode")  # type: ignore[type-abstract]
    process = ReverseProcess(sde, score_fn)
    rhs = _AugmentedFlow(process, divergence.bind(x0, seed=seed, start=start), tuple(x0.shape[1:]))
    dims = x0[0].numel()

    def norm(error: Tensor) -> Tensor:
        return torch.maximum(sample_rms(error[:, :dims]), error[:, dims:].abs().amax(1))

    start_state = torch.cat([x0.detach().flatten(1), x0.new_zeros(len(x0), divergence.estimates)], 1)

    with full_precision(x0.device), counted_from(start):
        end_state = ode.integrate(rhs, start_state, sde.t_min, sde.t_max, norm=norm)
    z = end_state[:, :dims].reshape(x0.shape)
    prior = (prior_log_prob or sde.prior_log_prob)(z)
    return Likelihood(prior=prior, delta=dims * end_state[:, dims:], z=z, nfe=process.nfe, exact=divergence.exact)
