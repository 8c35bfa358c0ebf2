"""The trace of the score's Jacobian, tr ∂s/∂x: exact, or estimated from random directions (Hutchinson).

    tr J = E[vᵀ J v]  for any v with E[v vᵀ] = I

One forward pass gives the score, and one reverse pass (vjp) on its graph gives vᵀ J v: reverse mode is the cheapest
(2.4 forwards of a U-Net for score and trace together, against 3.9 in forward mode) and runs through fused attention.
Forward mode (jvp) keeps no graph, so its memory does not grow with the depth of the network.

Reference: Hutchinson 1990; Grathwohl et al. 2019 (FFJORD), arXiv:1810.01367, section 3.1.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import one_hot

from sde_diffusion.errors import InputError, require, require_one_of, require_positive
from sde_diffusion.rng import SampleStream
from sde_diffusion.score import ScoreFn

Distribution = Literal["rademacher", "gaussian"]
Mode = Literal["reverse", "forward"]

TraceFn = Callable[[ScoreFn, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(score_fn, x: (B, *D), t) -> score (B, *D) and k estimates of tr ∂score/∂x for each sample, (B, k)."""

MOST_PROBES = 65536  # of which each keeps a direction as large as the sample
_PROBE_STREAM = 0x70726F6265  # "probe": keeps these draws apart from every other use of the same seed


def quadratic_forms(score: Tensor, x: Tensor, directions: Tensor) -> Tensor:
    """vᵀ (∂score/∂x) v for c directions at once.

    Args:
        score: (B, *D), computed from `x`; its graph is kept.
        x: (B, *D), requires grad.
        directions: v, (c, B, *D).

    Returns:
        (B, c). Costs one vjp per direction; c > 1 vectorises them and holds c of them in memory.
    """
    if len(directions) == 1:  # without vmap, which not every operation supports
        products = torch.autograd.grad(score, x, directions[0], retain_graph=True)[0][None]
    else:
        products = torch.autograd.grad(score, x, directions, retain_graph=True, is_grads_batched=True)[0]
    return (products * directions).flatten(2).sum(2).T


def reverse_pass(
    score_fn: ScoreFn, x: Tensor, t: Tensor, trace: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The score at x, (B, *D), and `trace(score, x)` of it with its graph, which is released on return.

    Raises:
        InputError: `score_fn` cannot be differentiated.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        score = score_fn(x, t)
        require(
            score.requires_grad,
            "`score_fn` must be differentiable in x, got a score without a graph; "
            "use no torch.no_grad() inside it and no torch.inference_mode() around it",
        )
        return score.detach(), trace(score, x).detach()


def forward_pass(score_fn: ScoreFn, x: Tensor, t: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The score at x, (B, *D), and vᵀ (∂score/∂x) v for c directions v (c, B, *D) at once, (B, c), by jvps.

    Costs one evaluation with c tangents. Attention runs unfused, for the fused kernels have no forward mode.

    Raises:
        InputError: `score_fn` has an operation without forward mode, or for c > 1 one that cannot be vectorised.
    """

    def push(v: Tensor) -> tuple[Tensor, Tensor]:
        score, product = torch.func.jvp(lambda y: score_fn(y, t), (x,), (v,))[:2]
        return score, product

    _prepare_forward_mode()
    try:
        with sdpa_kernel(SDPBackend.MATH):
            if len(directions) == 1:  # without vmap, which not every operation supports
                score, product = push(directions[0])
                products = product[None]
            else:
                scores, products = torch.func.vmap(push)(directions)
                score = scores[0]
    except (NotImplementedError, RuntimeError) as error:
        if not any(word in str(error) for word in ("forward AD", "forward-mode", "jvp", "vmap", "batching rule")):
            raise
        raise InputError(
            f"the score cannot be differentiated in forward mode ({str(error).splitlines()[0]}); use mode: reverse"
        ) from None
    return score.detach(), (products.detach() * directions).flatten(2).sum(2).T


@cache
def _prepare_forward_mode() -> None:
    """The first jvp makes torch load decompositions, whose warnings of its own deprecations are of no use here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


def score_and_trace(score_fn: ScoreFn, trace: TraceFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The score and the trace of its Jacobian, together.

    No gradient reaches the parameters behind `score_fn`, and a surrounding `torch.no_grad()` does not matter.

    Args:
        score_fn: A score function.
        trace: From `Divergence.bind`.
        x: (B, *D).
        t: As `score_fn` takes it.

    Returns:
        Score (B, *D) and trace (B, k). Costs one score evaluation and the derivatives of `trace`.

    Raises:
        InputError: `score_fn` cannot be differentiated.
    """
    return trace(score_fn, x.detach(), t)


@dataclass(frozen=True, kw_only=True)
class Divergence(ABC):
    """A way to get tr ∂s/∂x.

    Attributes:
        exact: Whether the trace has no random error.
    """

    exact: ClassVar[bool]

    @property
    def probe_cost(self) -> float:
        """Of one more random direction, in score evaluations of a U-Net: a reverse pass on the graph of the score."""
        return 1.4

    @property
    @abstractmethod
    def estimates(self) -> int:
        """The number k of estimates for each sample."""

    @abstractmethod
    def bind(self, x: Tensor, *, seed: int, start: int) -> TraceFn:
        """The estimator for one batch, whose random directions are drawn here and then stay fixed along the solve.

        Args:
            x: Data of the batch, (B, *D): tells shape, dtype and device.
            seed, start: The directions of sample i depend on `seed` and `start` + i alone.
        """


@dataclass(frozen=True, kw_only=True)
class Hutchinson(Divergence):
    """k unbiased estimates vᵀ J v, each from one random direction v.

    With symmetric J the variance is 2 (‖J‖² − Σ J_ii²) for Rademacher directions and 2 ‖J‖² for Gaussian ones:
    Rademacher is never worse, and exact when J is diagonal. The j-th direction of a sample does not depend on `probes`.

    Attributes:
        probes: Directions per sample, k.
        distribution: Of v: ±1 or N(0, I).
        mode: `reverse` takes vᵀ J by vjps on the graph of one evaluation, `forward` J v by jvps, without a graph, where
            every operation of the network has a forward mode.
        chunk: Directions of one pass: 1 asks the least of the network and of the memory.

    Cost: one evaluation and one vjp per probe; in forward mode an evaluation with its tangents per chunk.

    Reference: Hutchinson 1990; Song et al. 2021, arXiv:2011.13456, eq. 40.
    """

    exact = False

    probes: int = 1
    distribution: Distribution = "rademacher"
    mode: Mode = "reverse"
    chunk: int = 1

    def __post_init__(self) -> None:
        require_positive(probes=self.probes, chunk=self.chunk)
        require(self.probes <= MOST_PROBES, f"`probes` must be ≤ {MOST_PROBES}, got {self.probes}")
        require_one_of("distribution", self.distribution, get_args(Distribution))
        require_one_of("mode", self.mode, get_args(Mode))

    @property
    def estimates(self) -> int:
        return self.probes

    @property
    def probe_cost(self) -> float:
        return 3.9 if self.mode == "forward" else super().probe_cost  # forward mode evaluates the score anew

    def bind(self, x: Tensor, *, seed: int, start: int) -> TraceFn:
        stream = SampleStream(seed, _PROBE_STREAM, start=start, count=len(x))  # on the CPU: the same on every device
        draw = stream.rademacher if self.distribution == "rademacher" else stream.normal
        directions = torch.stack([draw(tuple(x.shape[1:]), x.dtype) for _ in range(self.probes)]).to(x.device)
        return Probes(directions, mode=self.mode, chunk=self.chunk)


@dataclass(frozen=True, eq=False)
class Probes:
    """A `TraceFn` along given directions, (k, B, *D)."""

    directions: Tensor
    mode: Mode = "reverse"
    chunk: int = 1

    def __call__(self, score_fn: ScoreFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        chunks = torch.split(self.directions, self.chunk)
        if self.mode == "forward":
            passes = [forward_pass(score_fn, x, t, v) for v in chunks]
            return passes[0][0], torch.cat([trace for _, trace in passes], 1)
        return reverse_pass(
            score_fn, x, t, lambda score, x: torch.cat([quadratic_forms(score, x, v) for v in chunks], 1)
        )

    def select(self, rows: Tensor) -> "Probes":
        """The probes of the samples `rows` (n,)."""
        return replace(self, directions=self.directions[:, rows])


@dataclass(frozen=True, kw_only=True)
class ExactTrace(Divergence):
    """The trace itself, Σ_i e_iᵀ J e_i over all D unit vectors.

    Attributes:
        chunk: Unit vectors per reverse pass. 1 is fastest where a batch fills the machine (a CPU, or many samples) and
            asks nothing of the network; more fills a GPU when samples are few. Besides the graph of one evaluation
            a pass holds `chunk` times the gradients of one reverse pass, whatever D.

    Cost: D vjps.

    Reference: Chen et al. 2018, arXiv:1806.07366, theorem 1.
    """

    exact = True

    chunk: int = 1

    def __post_init__(self) -> None:
        require_positive(chunk=self.chunk)

    @property
    def estimates(self) -> int:
        return 1

    def bind(self, x: Tensor, *, seed: int, start: int) -> TraceFn:
        return lambda score_fn, x, t: reverse_pass(score_fn, x, t, self._trace)

    def _trace(self, score: Tensor, x: Tensor) -> Tensor:
        dims = x[0].numel()
        trace = x.new_zeros(len(x), 1)
        for first in range(0, dims, self.chunk):
            indices = torch.arange(first, min(first + self.chunk, dims), device=x.device)
            units = one_hot(indices, dims).to(x).reshape(-1, 1, *x.shape[1:])
            trace += quadratic_forms(score, x, units.expand(-1, *x.shape)).sum(1, keepdim=True)
        return trace
