"""Dequantisation: where the noise lies, what its density is, and what couplings are worth."""

import math
from dataclasses import replace
from typing import Protocol

import pytest
import torch
from torch import Tensor

from sde_diffusion.data import DataSpec, TensorDataset, sweep
from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import DEQUANTISATIONS, Dequantisation, TruncatedNormal, UniformDequantisation
from sde_diffusion.likelihood.audit.learned_noise import PART
from sde_diffusion.likelihood.dequantisation import uniform_draws
from sde_diffusion.sde import SDE, VPSDE
from tests.conftest import assert_mean, f64
from tests.likelihood.flows import rough_flow

COUPLINGS = ("independent", "antithetic", "stratified")
SPEC = DataSpec("arrays", (2, 3), levels=8)
CONTINUOUS = DataSpec("arrays", (2, 3), levels=None, shift=1.0, scale=2.0)
KOLMOGOROV = math.sqrt(-0.5 * math.log(0.5 * 6.3e-5))  # of √n D at the probability of 4 standard errors


def integers(count: int, spec: DataSpec = SPEC) -> Tensor:
    return (torch.arange(count * spec.dims) * 5 % (spec.levels or 1)).reshape(count, *spec.shape).to(torch.uint8)


class Make(Protocol):
    """A row of the registry, ready to draw."""

    def __call__(self, spec: DataSpec = SPEC, *, coupling: str = "independent") -> Dequantisation: ...


@pytest.fixture(params=DEQUANTISATIONS)
def make(request: pytest.FixtureRequest) -> Make:
    def made(spec: DataSpec = SPEC, *, coupling: str = "independent") -> Dequantisation:
        row = DEQUANTISATIONS[request.param](coupling=coupling)  # type: ignore[arg-type]
        return row.bind({PART: rough_flow(spec)})

    return made


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("draws", [1, 2, 5])
def test_a_draw_depends_on_its_keys_alone(make: Make, coupling: str, draws: int) -> None:
    values = integers(70)
    dequantise = make(coupling=coupling)
    whole = dequantise.draw(SPEC, VPSDE(), values, seed=3, draws=draws)
    part = dequantise.draw(SPEC, VPSDE(), values[61:66], seed=3, start=61, draws=draws)
    assert whole.x.shape == (draws, 70, 2, 3)
    torch.testing.assert_close(part.x, whole.x[:, 61:66], rtol=0, atol=1e-6)  # a network's sums depend on its batch
    torch.testing.assert_close(part.log_q, whole.log_q[:, 61:66], rtol=0, atol=1e-4)
    assert not torch.equal(dequantise.draw(SPEC, VPSDE(), values, seed=4, draws=draws).x, whole.x)


def test_the_first_draw_is_the_sweeps() -> None:
    values = integers(70)
    (_, batch), *_ = sweep(TensorDataset(SPEC, values), batch=70, seed=5)
    assert torch.equal(UniformDequantisation().draw(SPEC, VPSDE(), values, seed=5, draws=3).x[0], batch.x)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_every_draw_is_uniform(coupling: str) -> None:
    """Kolmogorov–Smirnov over 20,000 examples, for the first, a middle and the last of five draws; all in [0, 1)."""
    u = uniform_draws(coupling, torch.zeros(20_000, 1), seed=1, start=0, draws=5)  # type: ignore[arg-type]
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    for draw in u[[0, 1, 4], :, 0].double():
        gap = (draw.sort().values - torch.arange(20_000) / 20_000).abs().max()
        assert gap < KOLMOGOROV / math.sqrt(20_000)


def test_antithetic_draws_are_mirrored_in_pairs() -> None:
    u = uniform_draws("antithetic", torch.zeros(9, 4), seed=1, start=0, draws=5)
    assert torch.equal(u[0] + u[1], torch.full((9, 4), 1 - 2**-24))
    assert torch.equal(u[2] + u[3], u[0] + u[1])
    assert torch.equal(u[::2], uniform_draws("independent", torch.zeros(9, 4), seed=1, start=0, draws=3))


def test_stratified_draws_fill_every_stratum_of_every_dimension_in_an_order_of_their_own() -> None:
    u = uniform_draws("stratified", torch.zeros(50, 4), seed=1, start=0, draws=6)
    strata = (u * 6).floor()
    assert torch.equal(strata.sort(0).values, torch.arange(6.0).reshape(-1, 1, 1).expand(6, 50, 4))
    assert not torch.equal(strata[:, 0, 0], strata[:, 0, 1])
    assert not torch.equal(strata[:, 0, 0], strata[:, 1, 0])


def test_x_lies_in_its_bin(sde: SDE, make: Make) -> None:
    values = integers(100)
    x = make().draw(SPEC, sde, values, seed=1, draws=3).x
    low = 2 * values.double() / 8 - 1
    rounding = 2**-24  # of float32 at ±1
    assert ((x >= low - rounding) & (x <= low + 2 / 8 + rounding)).all()
    assert x.dtype == torch.float32


@pytest.mark.parametrize("levels", [2, 8, 256])
def test_the_density_integrates_to_one_over_the_bin(sde: SDE, make: Make, levels: int) -> None:
    """The trapezoidal rule over quantiles: steps of u are at most 1/4096 of the mass."""
    spec = DataSpec("arrays", (1,), levels=levels)
    u = torch.linspace(0, 1 - 2**-20, 20_001)[None, :, None]
    for n in (0, levels // 3, levels - 1):
        result = make(spec).transform(spec, sde, torch.full((20_001, 1), n), u)
        order = result.x[0, :, 0].double()
        assert (order.diff() >= 0).all()
        mass = float(torch.trapezoid(result.log_q[0].exp(), order))
        # two digits of x's float32 rounding per spacing, where σ = 1e-6 (sub-VP) leaves few digits
        tolerance = 2e-3 if float(sde.std(f64(sde.t_min))) > 1e-5 else 0.05
        assert mass == pytest.approx(1, abs=tolerance)


def test_the_truncated_normal_has_the_moments_of_the_process_at_t_min() -> None:
    """Where the edges are 100 σ away nothing is cut off; where they are 0.01 σ away it is uniform."""
    wide = DataSpec("arrays", (1,), levels=2)
    values = torch.ones(20_000, 1, dtype=torch.uint8)
    x = TruncatedNormal().draw(wide, VPSDE(t_min=1e-4), values, seed=1).x[0, :, 0].double()
    a, std = VPSDE().mean_coef(f64(1e-4)), float(VPSDE().std(f64(1e-4)))
    assert_mean(x, 0.5 * float(a))
    assert_mean((x - 0.5 * a) ** 2, std**2)
    fine = DataSpec("arrays", (1,), levels=65_536)
    log_q = TruncatedNormal().draw(fine, VPSDE(), values, seed=1).log_q
    torch.testing.assert_close(log_q, torch.full_like(log_q, math.log(32_768)), rtol=0, atol=1e-3)


def log_density(x: Tensor) -> Tensor:
    """A smooth density over the bins, N(0.2, 0.3²) in each of six dimensions."""
    return (-0.5 * ((x.double() - 0.2) / 0.3) ** 2 - math.log(0.3 * math.sqrt(2 * math.pi))).flatten(2).sum(2)


def log_mass(values: Tensor) -> Tensor:
    """log P(n) of that density."""
    low = 2 * values.double() / 8 - 1
    edges = torch.stack([low, low + 0.25])
    mass = torch.erf((edges - 0.2) / 0.3 / math.sqrt(2)).diff(dim=0)[0] / 2
    return mass.log().flatten(1).sum(1)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_importance_weights_are_unbiased(sde: SDE, make: Make, coupling: str) -> None:
    """E[p(x)/q(x | n)] = P(n), for every draw and so for their mean; with edges one σ away, so that q matters."""
    sde = replace(sde, t_min=float(sde.time_at(f64(math.log(8)))))
    values = integers(1).expand(20_000, 2, 3)
    x, log_q = make(coupling=coupling).draw(SPEC, sde, values, seed=1, draws=4)
    assert_mean((log_density(x) - log_q - log_mass(values[:1])).exp().mean(0), 1.0)


@pytest.mark.parametrize("coupling", ["antithetic", "stratified"])
def test_couplings_reduce_the_variance(coupling: str) -> None:
    """Of the mean of −log p over 8 draws in a bin, where it is nearly linear in u: to a fifth and less."""
    values = integers(1).expand(2000, 2, 3)

    def variance(coupling: str) -> Tensor:
        dequantise = UniformDequantisation(coupling=coupling)  # type: ignore[arg-type]
        x, _ = dequantise.draw(SPEC, VPSDE(), values, seed=1, draws=8)
        return log_density(x).mean(0).var()

    assert variance(coupling) < variance("independent") / 5


def test_continuous_data_are_scaled_only() -> None:
    values = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    x, log_q = UniformDequantisation().draw(CONTINUOUS, VPSDE(), values, seed=1, draws=3)
    assert torch.equal(x, CONTINUOUS.to_model(values).expand(3, 5, 2, 3))
    assert torch.equal(log_q, torch.zeros(3, 5, dtype=torch.float64))


def test_errors(make: Make) -> None:
    with pytest.raises(InputError, match="`draws` must be > 0, got 0"):
        make().draw(SPEC, VPSDE(), integers(2), seed=1, draws=0)
    with pytest.raises(InputError, match="`coupling` must be one of independent, antithetic, stratified, got 'paired'"):
        make(coupling="paired")


def test_a_truncated_normal_needs_bins() -> None:
    with pytest.raises(InputError, match=r"`dequantisation` must be uniform for arrays: its values are continuous"):
        TruncatedNormal().draw(CONTINUOUS, VPSDE(), torch.zeros(2, 2, 3), seed=1)
