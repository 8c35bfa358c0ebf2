"""Dequantisation: continuous noise q(x | n) inside the bin of a discrete value n, so that densities can score it.

A density p of x gives the discrete data P(n) = ∫ p(x) dx over the bin, and for x ~ q(x | n) in the bin

    P(n) = E[p(x)/q(x | n)],        −log P(n) ≤ E[log q(x | n) − log p(x)]

Equality holds where q ∝ p in the bin, so noise that is shaped like p loses less. The bin of n is
[2n/L − 1, 2(n + 1)/L − 1) in model coordinates.

Reference: Theis et al. 2016, arXiv:1511.01844, section 3.1; Ho et al. 2019 (Flow++), arXiv:1902.00275, section 3.1.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from sde_diffusion.data import DataSpec
from sde_diffusion.data.loader import dequantisation_stream
from sde_diffusion.errors import require, require_one_of, require_positive
from sde_diffusion.rng import SampleStream
from sde_diffusion.sde import SDE

Coupling = Literal["independent", "antithetic", "stratified"]

_PERMUTATIONS = 0x5712A7A  # purpose of random numbers: which stratum a draw falls in
_BELOW_ONE = 1 - 2**-24  # the largest float32 below 1: on the grid of float32 uniforms, u ↦ this − u is a bijection


class Dequantised(NamedTuple):
    """m draws of x for each of B examples.

    x: Model coordinates, (m, B, *D) float32. log_q: log q(x | n) in nats and model coordinates, (m, B) float64.
    """

    x: Tensor
    log_q: Tensor


@dataclass(frozen=True, kw_only=True)
class Dequantisation(ABC):
    """A density q(x | n) in the bin of n, drawn from uniform numbers u ∈ [0, 1), one for each dimension.

    Attributes:
        needs_bins: Whether it has no meaning for continuous data.
        noise: How u is drawn, in words.
        coupling: How the draws of one example hang together. `independent`; `antithetic`: u, then 1 − u, then the next
            pair; `stratified`: one draw in each of m equal strata of every dimension (a Latin hypercube). Each draw
            alone is distributed as if it were independent, so means stay unbiased.

    Reference: Owen 2013, "Monte Carlo theory, methods and examples", sections 8.2 and 10.3.
    """

    needs_bins: ClassVar[bool] = False
    noise: ClassVar[str] = "uniform in [0, 1)"

    coupling: Coupling = "independent"

    def __post_init__(self) -> None:
        require_one_of("coupling", self.coupling, get_args(Coupling))

    def bind(self, parts: Mapping[str, nn.Module]) -> "Dequantisation":
        """The same with what it needs of the modules that were trained beside a model; itself if that is nothing.

        Raises:
            InputError: They lack it.
        """
        return self

    def check(self, spec: DataSpec) -> None:
        """Refuse data that cannot have it.

        Raises:
            InputError: They are continuous, and it has no meaning for them.
        """
        require(
            spec.levels is not None or not self.needs_bins,
            f"`dequantisation` must be uniform for {spec.name}: its values are continuous and have no bins to shape "
            "noise in",
        )

    def draw(
        self, spec: DataSpec, sde: SDE, values: Tensor, *, seed: int, start: int = 0, draws: int = 1
    ) -> Dequantised:
        """`draws` dequantisations of each example; they depend on (seed, start + i, draw) and not on companions.

        The first independent draw is that of `data.sweep`. Strata also depend on the number of draws.

        Args:
            spec: What the values mean.
            sde: The process; its noise at `t_min` shapes some densities.
            values: n, or y of continuous data, (B, *spec.shape).
            seed, start: Keys of the random numbers; `start` is the index of the first example.
            draws: m.

        Returns:
            `Dequantised`. Continuous data are only scaled and have log_q = 0.

        Raises:
            InputError: `draws` < 1, or noise that continuous data cannot have.
        """
        require_positive(draws=draws)
        if spec.levels is None:
            self.check(spec)
            x = spec.to_model(values)
            return Dequantised(x.expand(draws, *x.shape), x.new_zeros(draws, len(x), dtype=torch.float64))
        u = uniform_draws(self.coupling, values, seed=seed, start=start, draws=draws)
        return self.transform(spec, sde, values, u)

    @abstractmethod
    def transform(self, spec: DataSpec, sde: SDE, values: Tensor, u: Tensor) -> Dequantised:
        """x at the quantiles `u` (m, B, *D) of q(x | n), dimension by dimension, and log q."""


@dataclass(frozen=True, kw_only=True)
class UniformDequantisation(Dequantisation):
    """q uniform in the bin: x = 2(n + u)/L − 1 and log q = D log(L/2).

    Fits models that were trained on n + u.

    Reference: Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """

    def transform(self, spec: DataSpec, sde: SDE, values: Tensor, u: Tensor) -> Dequantised:
        assert spec.levels is not None
        density = torch.full(u.shape[:2], spec.dims * math.log(spec.levels / 2), dtype=torch.float64, device=u.device)
        return Dequantised(spec.to_model(values, u), density)


@dataclass(frozen=True, kw_only=True)
class TruncatedNormal(Dequantisation):
    """q the noise of the process at `t_min` cut off at the bin: N(a c, σ² I) on it, c its centre.

    Fits models that were trained on the centres of the bins, for which x_t at `t_min` is just that; the edges are at
    ±(1/L)/σ standard deviations, for 256 levels about 3.9 (VP) or 0.4 (VE). On a model of n + u it loses against the
    uniform density, the more the smaller σ is.

    Raises:
        InputError: The data are continuous and have no bins.

    Reference: Zheng et al. 2023 (i-DODE), arXiv:2305.03935, section 4.2.
    """

    needs_bins = True
    noise = "truncated normal in [0, 1), plus the mean of log₂ of its density"

    def transform(self, spec: DataSpec, sde: SDE, values: Tensor, u: Tensor) -> Dequantised:
        assert spec.levels is not None
        half, centre = 1 / spec.levels, (2 * values.double() + 1) / spec.levels - 1
        t = torch.tensor(sde.t_min, dtype=torch.float64, device=values.device)
        std = sde.std(t)
        # a c left inside the bin: then no tail is ever cancelled, and a is 1 to 1e-6 anyway
        mean = (sde.mean_coef(t) * centre).clamp(centre - half, centre + half)
        low, high = (((centre + edge - mean) / std) for edge in (-half, half))
        below, above = torch.erf(low / math.sqrt(2)), torch.erf(high / math.sqrt(2))  # 2Φ − 1, ≤ 0 and ≥ 0
        quantile = below + (u.double() + 2**-25) * (above - below)  # the middle of a cell of float32's grid
        noise = torch.special.erfinv(quantile) * math.sqrt(2)
        x = (mean + std * torch.minimum(torch.maximum(noise, low), high)).float()
        noise = (x.double() - mean) / std  # of x as it was rounded
        log_mass = (0.5 * (above - below)).log() + std.log()
        return Dequantised(x, (-0.5 * (noise**2 + math.log(2 * math.pi)) - log_mass).flatten(2).sum(2))


def uniform_draws(coupling: Coupling, values: Tensor, *, seed: int, start: int, draws: int) -> Tensor:
    """Numbers u ∈ [0, 1) of every draw, example and dimension, (draws, *values.shape) float32 on `values`' device."""
    shape = tuple(values.shape[1:])
    stream = dequantisation_stream(seed, start=start, count=len(values), device=values.device)
    if coupling == "antithetic":
        pairs = (stream.uniform(shape) for _ in range((draws + 1) // 2))
        return torch.stack([half for u in pairs for half in (u, (_BELOW_ONE - u).clamp(min=0))][:draws])
    u = torch.stack([stream.uniform(shape) for _ in range(draws)])
    if coupling == "independent" or draws == 1:
        return u
    order = SampleStream(seed, _PERMUTATIONS, start=start, count=len(values), device=values.device)
    stratum = torch.stack([order.uniform(shape, torch.float64) for _ in range(draws)]).argsort(0)
    return ((stratum + u) / draws).clamp(max=_BELOW_ONE)
