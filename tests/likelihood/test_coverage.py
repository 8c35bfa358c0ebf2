"""The stated intervals of log-likelihoods by the flow hold the true mean as often as they say.

1,000 data sets of 64 draws from an oracle are scored along two probes, and each gives its interval. What a
sample gets does not depend on its companions, so all data sets are solved together and cut apart afterwards. The solve
is closed with the oracle's own density at the end, and is loose: its error has to be small only against a half-width,
which is the spread over images by √64. `BIAS` of a half-width would cost 0.95 − P(|t + 1.96 BIAS| < 1.96) < 0.001.
"""

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.likelihood import Cells, Hutchinson, log_likelihood, mean_interval, nested_split
from sde_diffusion.likelihood.divergence import Distribution
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sde import VPSDE
from sde_diffusion.solvers import PerSampleODE
from tests.conftest import f64

REPEATS, IMAGES, PROBES, BATCH = 1000, 64, 2, 4000
BIAS = 0.05
LOOSE, TIGHT = PerSampleODE(rtol=1e-2, atol=1e-2), PerSampleODE(rtol=1e-5, atol=1e-5)
SDE = VPSDE()


def oracle_of(kind: str, dims: int) -> GaussianMixture:
    """Like data: mean near 0 and variance near 1."""
    means = torch.randn(3, dims, generator=generator(1), dtype=torch.float64)
    if kind == "gaussian":
        return GaussianMixture.gaussian(SDE, means[0], 0.5)
    return GaussianMixture(SDE, f64([0.2, 0.5, 0.3]), means, f64([0.3, 0.6, 0.4]))


def truth(oracle: GaussianMixture) -> tuple[float, float]:
    """E log p(x0) under p at t_min, and its standard error: closed form for the Gaussian, 10⁶ draws of the mixture."""
    t = f64(SDE.t_min)
    if len(oracle.means) == 1:
        a, mean, s2 = float(SDE.mean_coef(t)), oracle.means[0], float(oracle.stds[0]) ** 2
        v, dims = a**2 * s2 + float(SDE.std(t)) ** 2, mean.numel()
        square = dims * s2 + (1 - a) ** 2 * float(mean.square().sum())
        return -0.5 * (dims * math.log(2 * math.pi * v) + square / v), 0.0
    pieces = range(0, 10**6, 20_000)
    values = torch.cat([oracle.log_prob(oracle.sample(20_000, generator=generator(2, i)), t) for i in pieces])
    return float(values.mean()), float(values.std()) / 1e3


def scores(oracle: GaussianMixture, x: Tensor, ode: PerSampleODE) -> Tensor:
    """log p along each probe, (n, k); the trace of a single Gaussian is exact along Rademacher probes."""
    distribution: Distribution = "gaussian" if len(oracle.means) == 1 else "rademacher"
    divergence = Hutchinson(probes=PROBES, distribution=distribution)
    t = f64(SDE.t_max)
    return torch.cat(
        [
            log_likelihood(
                oracle.score,
                SDE,
                part,
                divergence=divergence,
                ode=ode,
                start=i * BATCH,
                prior_log_prob=lambda z: oracle.log_prob(z, t),
            ).per_probe
            for i, part in enumerate(x.split(BATCH))  # type: ignore[no-untyped-call]
        ]
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dims", [2, 64, 784])
@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_95_percent_intervals_cover_93_to_97(kind: str, dims: int) -> None:
    oracle = oracle_of(kind, dims)
    x = oracle.sample(REPEATS * IMAGES, generator=generator(3, dims)).float()
    values = scores(oracle, x, LOOSE).double()
    expected, error = truth(oracle)
    half_width = 1.96 * float(values.mean(1).std()) / math.sqrt(IMAGES)
    assert error < BIAS * half_width
    few = slice(0, 512)
    bias = (values[few] - scores(oracle, x[few], TIGHT)).mean(1)
    assert abs(float(bias.mean())) < BIAS * half_width
    hits = {"mean_interval": 0, "nested_split": 0}
    image = torch.arange(IMAGES)
    for repeat in values.split(IMAGES):  # type: ignore[no-untyped-call]
        split = nested_split(Cells.of(image, repeat), dequantised=False)
        mean, width = mean_interval(repeat.mean(1))
        hits["nested_split"] += abs(split.mean - expected) <= split.half_width
        hits["mean_interval"] += abs(mean - expected) <= width
    assert all(930 <= count <= 970 for count in hits.values()), hits
