"""EDM's recipe: noise levels by a log-normal law, and the weight that belongs to its network.

EDM draws the noise ln(σ/a) ~ N(m, s²) and means this law to shape its objective. Here every loss is divided by the
density r(t) of its times, so a time sampler shapes nothing. The weighting `edm` therefore carries the law itself, as a
density of times on [t_min, t_max],

    p(t) = N(ln(σ/a); m, s²) · d ln(σ/a)/dt / Z,    d ln(σ/a)/dt = g²/(2σ²),

and the time sampler `log_normal` draws from it. Both together are the published training; with another sampler the
objective is the same and its variance another.

Reference: Karras et al. 2022, arXiv:2206.00364, table 1 and section 5.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sde_diffusion.errors import require, require_positive
from sde_diffusion.losses.time_sampling import TimeSampler, cell_edges, require_worth
from sde_diffusion.losses.weighting import Weighting
from sde_diffusion.sde import SDE

LEAST = 0.01  # of the law that must lie in the range of a process


@dataclass(frozen=True)
class EDMWeighting(Weighting):
    """λ/σ² = p(t) (1 + σ²/(a² σ_d²)), p the law ln(σ/a) ~ N(p_mean, p_std²): EDM's objective, its proposal included.

    (1 + q/σ_d²) of the error of ε, q = σ²/a², is EDM's 1/c_out² = (σ_e² + σ_d²)/(σ_e σ_d)² of that of x0, σ_e = σ/a:
    an error of 1 of its network weighs the same at all noise levels.

    Attributes:
        p_mean, p_std: Of ln(σ/a).
        sigma_data: Standard deviation σ_d of the data.

    Reference: Karras et al. 2022, arXiv:2206.00364, table 1 and section 5.
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require_positive(p_std=self.p_std, sigma_data=self.sigma_data)

    def of_eps(self, sde: SDE, t: Tensor) -> Tensor:
        q = (sde.std(t) / sde.mean_coef(t)) ** 2
        return self.proposal(sde, t) * (1 + q / self.sigma_data**2)

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return self.of_eps(sde, t) * sde.std(t) ** 2

    def proposal(self, sde: SDE, t: Tensor) -> Tensor:
        return log_normal_density(sde, t, self.p_mean, self.p_std)

    def check(self, sde: SDE) -> None:
        _ends(sde, self.p_mean, self.p_std)


@dataclass(frozen=True)
class LogNormalTime(TimeSampler):
    """ln(σ/a) ~ N(p_mean, p_std²), cut to the process's range: the noise levels of EDM.

    With the weighting `edm` of the same law each draw weighs as EDM's; with another the loss is that weighting's.

    Attributes:
        p_mean, p_std: Of ln(σ/a).
        stratified: One draw in each of B strata of equal probability.

    Reference: Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    stratified: bool = False

    def __post_init__(self) -> None:
        require_positive(p_std=self.p_std)

    @property
    def in_strata(self) -> bool:
        return self.stratified

    def draw(self, sde: SDE, weighting: Weighting, u: Tensor) -> tuple[Tensor, Tensor]:
        low, high = _ends(sde, self.p_mean, self.p_std)
        level = self.p_mean + self.p_std * torch.special.ndtri(low + (high - low) * u)
        t = _time_of(sde, level)
        return t, log_normal_density(sde, t, self.p_mean, self.p_std)

    def check(self, sde: SDE, weighting: Weighting, *, draws: int) -> None:
        require_worth(sde, weighting, lambda t: log_normal_density(sde, t, self.p_mean, self.p_std), name="log_normal")


def log_normal_density(sde: SDE, t: Tensor, mean: float, std: float) -> Tensor:
    """The density p(t) of the times at which ln(σ/a) ~ N(mean, std²), cut to [t_min, t_max]; shape and dtype of `t`.

    Raises:
        InputError: Less than a hundredth of the law is in the range of the process.
    """
    low, high = _ends(sde, mean, std)
    exact = t.double()  # z² takes the digits of float32
    z = (-sde.half_log_snr(exact) - mean) / std
    density = torch.exp(-0.5 * z**2) * _rate(sde, exact) / (std * math.sqrt(2 * math.pi) * (high - low))
    return density.to(t.dtype)


@lru_cache(maxsize=32)
def _ends(sde: SDE, mean: float, std: float) -> tuple[float, float]:
    """The shares of N(mean, std²) below ln(σ/a) at t_min and at t_max."""
    levels = -sde.half_log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    low, high = torch.special.ndtr((levels - mean) / std).tolist()
    first, last = levels.tolist()
    require(
        high - low >= LEAST,
        f"`p_mean` = {mean:g} with `p_std` = {std:g} must put at least {LEAST:.0%} of the noise levels in the range of "
        f"the process, got {high - low:.2g}; ln(σ/a) goes from {first:.3g} to {last:.3g}: choose `p_mean` there",
    )
    return low, high


def _rate(sde: SDE, t: Tensor) -> Tensor:
    """d ln(σ/a)/dt = g²/(2σ²), shape of `t`."""
    return 0.5 * (sde.diffusion(t) / sde.std(t)) ** 2


def _time_of(sde: SDE, level: Tensor) -> Tensor:
    """The times at which ln(σ/a) = `level`, (B,) float64: Newton's method inside a cell of a table.

    The same as `sde.time_at` to rounding, at a fifth of its cost: every training step does this.
    """
    edges, levels = _levels(sde, level.device)
    cell = torch.searchsorted(levels, level).clamp(1, len(edges) - 1)
    low, high = edges[cell - 1], edges[cell]
    t = torch.lerp(low, high, ((level - levels[cell - 1]) / levels.diff()[cell - 1]).clamp(0, 1))
    for _ in range(4):
        t = (t + (sde.half_log_snr(t) + level) / _rate(sde, t)).clamp(low, high)
    return t


@lru_cache(maxsize=32)
def _levels(sde: SDE, device: torch.device) -> tuple[Tensor, Tensor]:
    """Times and ln(σ/a) at them, float64, once for a device."""
    edges = cell_edges(sde)
    return edges.to(device), -sde.half_log_snr(edges).to(device)
