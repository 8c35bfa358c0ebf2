"""The trace of the score's Jacobian, tr ∂s/∂x: exact, or estimated from random directions (Hutchinson).

    tr J = E[vᵀ J v]  for any v with E[v vᵀ] = I

One forward pass gives the score, and one reverse pass (vjp) on its graph gives vᵀ J v, at the price of about another
forward, for no gradient of a weight is computed: reverse mode is the cheapest (docs/performance.md) and runs through
fused attention. Forward mode (jvp) keeps no graph, so its memory does not grow with the depth of the network.

A pass may take several directions, each on a copy of the batch among its rows: so small batches fill the machine, and
the network needs nothing but its rows to be independent.

Reference: Hutchinson 1990; Grathwohl et al. 2019 (FFJORD), arXiv:1810.01367, section 3.1.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import one_hot

from sde_diffusion.errors import InputError, require, require_one_of, require_positive
from sde_diffusion.rng import SampleStream
from sde_diffusion.score import ScoreFn
from sde_diffusion.tensors import select

Distribution = Literal["rademacher", "gaussian"]
Mode = Literal["auto", "reverse", "forward"]
Chunk = Literal["auto"] | int

TraceFn = Callable[[ScoreFn, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(score_fn, x: (B, *D), t) -> score (B, *D) and k estimates of tr ∂score/∂x for each sample, (B, k)."""

MOST_PROBES = 65536  # of which each keeps a direction as large as the sample
FEW = {"cpu": 8, "cuda": 32}  # rows that a pass of probes is filled up to, for their copies are evaluated too
MANY = {"cpu": 32, "cuda": 256}  # rows of a pass of the exact trace, which all its passes share
_PROBE_STREAM = 0x70726F6265  # "probe": keeps these draws apart from every other use of the same seed


def quadratic_forms(score: Tensor, x: Tensor, directions: Tensor) -> Tensor:
    """vᵀ (∂score/∂x) v for c directions at once.

    Args:
        score: Of n ≥ c copies of a batch, (n B, *D), computed from `x`; its graph is kept.
        x: (n B, *D), requires grad.
        directions: v, (c, B, *D).

    Returns:
        (B, c). Costs one vjp.
    """
    v = directions.flatten(0, 1)
    if len(v) < len(x):
        v = torch.cat([v, v.new_zeros(len(x) - len(v), *x.shape[1:])])
    products = torch.autograd.grad(score, x, v, retain_graph=True)[0]
    return (products * v).flatten(1).sum(1).reshape(-1, directions.shape[1])[: len(directions)].T


def reverse_pass(
    score_fn: ScoreFn, x: Tensor, t: Tensor, copies: int, trace: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The score at x, (B, *D), and `trace(score, x)` of `copies` of the batch with their graph, released on return.

    Raises:
        InputError: `score_fn` cannot be differentiated.
    """
    count = len(x)
    if copies > 1:
        rows = torch.arange(count, device=x.device).repeat(copies)
        score_fn, x, t = select(score_fn, rows), x[rows], t if t.ndim == 0 else t[rows]
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        score = score_fn(x, t)
        require(
            score.requires_grad,
            "`score_fn` must be differentiable in x, got a score without a graph; "
            "use no torch.no_grad() inside it and no torch.inference_mode() around it",
        )
        return score[:count].detach(), trace(score, x).detach()


@dataclass(eq=False)
class Copies:
    """How many copies of a batch a reverse pass takes: as asked, or as many as fill the device.

    Where a GPU has no memory for them, half as many, from then on.

    Attributes:
        chunk: What is asked.
        directions: The most that there is a use for.
        rows: How many rows fill a device of each type.
    """

    chunk: Chunk
    directions: int
    rows: Mapping[str, int]
    most: int = field(default=1 << 30, init=False)

    def __call__(
        self, score_fn: ScoreFn, x: Tensor, t: Tensor, blocks: Callable[[int], Iterable[Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """The score, (B, *D), and vᵀ J v, (B, k), along the directions of `blocks(c)`, each of (c, B, *D) or fewer."""
        fill = self.rows.get(x.device.type, 1) // max(1, len(x)) if self.chunk == "auto" else self.chunk
        while True:
            copies = max(1, min(fill, self.directions, self.most))

            def forms(score: Tensor, x: Tensor, copies: int = copies) -> Tensor:
                return torch.cat([quadratic_forms(score, x, v) for v in blocks(copies)], 1)

            try:
                return reverse_pass(score_fn, x, t, copies, forms)
            except torch.OutOfMemoryError:
                if copies == 1:
                    raise
                self.most = copies // 2


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
        return 1.1

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
            every operation of the network has a forward mode. `auto` is reverse, the faster on every device.
        chunk: Directions of one pass, each on its own copy of the batch (tangents, in forward mode): 1 asks the least
            of the memory, more fill the machine when samples are few. `auto` copies batches smaller than 8 samples
            (on a GPU 32). A score function that keeps something for each sample then needs a `select`
            (`tensors.PerSample`).

    Cost: one evaluation and one vjp per probe, and the evaluation of the copies; in forward mode an evaluation with its
    tangents per chunk.

    Reference: Hutchinson 1990; Song et al. 2021, arXiv:2011.13456, eq. 40.
    """

    exact = False

    probes: int = 1
    distribution: Distribution = "rademacher"
    mode: Mode = "auto"
    chunk: Chunk = "auto"

    def __post_init__(self) -> None:
        require_positive(probes=self.probes)
        _check_chunk(self.chunk)
        require(self.probes <= MOST_PROBES, f"`probes` must be ≤ {MOST_PROBES}, got {self.probes}")
        require_one_of("distribution", self.distribution, get_args(Distribution))
        require_one_of("mode", self.mode, get_args(Mode))

    @property
    def estimates(self) -> int:
        return self.probes

    @property
    def probe_cost(self) -> float:
        return 4.6 if self.mode == "forward" else super().probe_cost  # forward mode evaluates the score anew

    def bind(self, x: Tensor, *, seed: int, start: int) -> TraceFn:
        stream = SampleStream(seed, _PROBE_STREAM, start=start, count=len(x))  # on the CPU: the same on every device
        draw = stream.rademacher if self.distribution == "rademacher" else stream.normal
        directions = torch.stack([draw(tuple(x.shape[1:]), x.dtype) for _ in range(self.probes)]).to(x.device)
        if self.mode == "forward":
            return Tangents(directions, 1 if self.chunk == "auto" else self.chunk)
        return Probes(directions, Copies(self.chunk, self.probes, FEW))


@dataclass(frozen=True, eq=False)
class Probes:
    """A `TraceFn` along given directions, (k, B, *D), by reverse passes."""

    directions: Tensor
    copies: Copies = field(default_factory=lambda: Copies(1, 1, FEW))

    def __call__(self, score_fn: ScoreFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.copies(score_fn, x, t, lambda count: torch.split(self.directions, count))

    def select(self, rows: Tensor) -> "Probes":
        """The probes of the samples `rows` (n,)."""
        return replace(self, directions=self.directions[:, rows])


@dataclass(frozen=True, eq=False)
class Tangents:
    """A `TraceFn` along given directions, (k, B, *D), by forward passes of `chunk` of them."""

    directions: Tensor
    chunk: int

    def __call__(self, score_fn: ScoreFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        passes = [forward_pass(score_fn, x, t, v) for v in torch.split(self.directions, self.chunk)]
        return passes[0][0], torch.cat([trace for _, trace in passes], 1)

    def select(self, rows: Tensor) -> "Tangents":
        """The probes of the samples `rows` (n,)."""
        return replace(self, directions=self.directions[:, rows])


@dataclass(frozen=True, kw_only=True)
class ExactTrace(Divergence):
    """The trace itself, Σ_i e_iᵀ J e_i over all D unit vectors.

    Attributes:
        chunk: Unit vectors per reverse pass, each on its own copy of the batch: more fill the machine when samples are
            few. The graph of the copies, computed once, is what they hold in memory. `auto` fills the batch up to 32
            rows, on a GPU to 256, or to what its memory allows. For score functions see `Hutchinson.chunk`.

    Cost: D vjps, and the evaluation of the copies.

    Reference: Chen et al. 2018, arXiv:1806.07366, theorem 1.
    """

    exact = True

    chunk: Chunk = "auto"

    def __post_init__(self) -> None:
        _check_chunk(self.chunk)

    @property
    def estimates(self) -> int:
        return 1

    def bind(self, x: Tensor, *, seed: int, start: int) -> TraceFn:
        dims = x[0].numel()
        copies = Copies(self.chunk, dims, MANY)

        def trace(score_fn: ScoreFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            def units(count: int) -> Iterable[Tensor]:
                for first in range(0, dims, count):
                    indices = torch.arange(first, min(first + count, dims), device=x.device)
                    yield one_hot(indices, dims).to(x).reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)

            score, diagonal = copies(score_fn, x, t, units)
            return score, diagonal.sum(1, keepdim=True)

        return trace


def _check_chunk(chunk: Chunk) -> None:
    if chunk != "auto":
        require_positive(chunk=chunk)


DIVERGENCES: dict[str, type[Divergence]] = {"hutchinson": Hutchinson, "exact": ExactTrace}
