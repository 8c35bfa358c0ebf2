"""Nested variance components against a model whose components are known, and the allocation against brute force."""

import math

import pytest
import torch
from scipy.stats import norm, t
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import Cells, Split, mean_interval, nested_split, t_quantile
from sde_diffusion.likelihood.audit.variance import best_probes, coupling_ratio, images_needed
from sde_diffusion.rng import generator
from tests.conftest import assert_mean, f64

IMAGES, DEQUANTISATION, PROBES = 0.5, 0.3, 1.2  # S², d, p of the model


def draw(repeat: int, population: int, layout: list[tuple[int, int, int]]) -> tuple[float, Cells]:
    """The mean over a population, and cells of it: one more replicate for each (first, count, probes)."""
    normal = generator(repeat, 1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=normal, dtype=torch.float64)

    images = 2 + math.sqrt(IMAGES) * noise(population)
    parts = []
    for first, count, probes in layout:
        image = torch.arange(first, first + count)
        mean = images[image] + math.sqrt(DEQUANTISATION) * noise(count)
        parts.append(Cells.of(image, mean[:, None] + math.sqrt(PROBES) * noise(count, probes)))
    return float(images.mean()), Cells.join(parts)


LAYOUTS = {
    "balanced": [(0, 10, 3), (0, 10, 3)],
    "pilot and more": [(0, 6, 2), (0, 6, 2), (6, 14, 1)],
    "unequal": [(0, 20, 1), (0, 20, 4), (0, 7, 2)],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_components_and_the_variance_of_the_mean_are_without_bias(layout: list[tuple[int, int, int]]) -> None:
    """Also the interval: normal components, 2000 repeats, a finite population, cells of unequal size."""
    population, repeats = 20, 2000
    drawn = [draw(repeat, population, layout) for repeat in range(repeats)]
    splits = [nested_split(cells, population=population) for _, cells in drawn]
    errors = f64([split.mean - mean for split, (mean, _) in zip(splits, drawn, strict=True)])
    assert_mean(f64([split.images for split in splits]), IMAGES, "S²")
    assert_mean(f64([split.dequantisation for split in splits]), DEQUANTISATION, "d")
    assert_mean(f64([split.probes for split in splits]), PROBES, "p")
    assert_mean(errors, 0, "mean")
    # d is counted as 0 where its estimate is below, which can only widen the interval
    excess = f64([split.variance - sum(split.shares) for split in splits])
    assert (excess > -1e-12).all()
    assert_mean(f64([sum(split.shares) for split in splits]) - errors**2, 0, "variance")
    covered = f64([float(abs(error) <= split.half_width) for error, split in zip(errors, splits, strict=True)])
    assert 0.93 <= float(covered.mean()) <= 0.975


def test_the_shares_add_up_and_all_images_leave_no_error_of_their_own() -> None:
    _, cells = draw(0, 40, [(0, 40, 2), (0, 40, 2)])
    some, whole = nested_split(cells, population=1000), nested_split(cells, population=40)
    assert sum(some.shares) == pytest.approx(some.variance, rel=1e-12)
    assert whole.shares[0] == 0
    assert f"{whole.half_widths['images']:.5f}" == "0.00000"
    assert whole.variance == pytest.approx(whole.dequantisation / 80 + whole.probes / 160, rel=1e-12)
    squares = [width**2 for width in some.half_widths.values()]
    assert math.sqrt(sum(squares)) == pytest.approx(some.half_width, rel=1e-12)


def test_no_half_width_is_minus_zero() -> None:
    split = Split(0.0, -0.1, 0.0, 1.2, (-0.0, -0.1, 1.0), 1.0, 10.0, 0.95, 10)
    assert [f"{width:.5f}" for width in split.half_widths.values()][:2] == ["0.00000", "0.00000"]


def test_one_score_an_image_gives_the_interval_of_the_mean() -> None:
    values = f64([1.0, 2.0, 6.0, 4.0])
    split = nested_split(Cells.of(torch.arange(4), values[:, None]), dequantised=False, probed=False)
    mean, half_width = mean_interval(values)
    assert split.mean == mean
    assert split.half_width == pytest.approx(half_width, rel=1e-12)
    assert (split.dequantisation, split.probes) == (0, 0)


def test_what_cannot_be_told_is_counted_with_the_source_before_it() -> None:
    _, cells = draw(1, 30, [(0, 30, 2)])
    split = nested_split(cells, population=30)
    assert math.isnan(split.dequantisation)
    assert math.isnan(split.half_widths["dequantisation"])
    assert split.half_widths["images"] > 0, "the images cannot be declared free of error"
    assert split.variance == pytest.approx(float(cells.mean.var()) / 30, rel=1e-12)
    _, cells = draw(1, 30, [(0, 30, 1), (0, 30, 1)])
    split = nested_split(cells)
    assert math.isnan(split.probes)
    assert split.dequantisation > 0


def test_one_image_in_one_cell_tells_no_spread() -> None:
    one = Cells.of(torch.tensor([3]), f64([[1.5]]))
    assert math.isnan(nested_split(one).half_width)
    twice = Cells.join([one, Cells.of(torch.tensor([3]), f64([[2.5]]))])
    assert nested_split(twice, population=1, probed=False).half_width == pytest.approx(t.ppf(0.975, 1) * 0.5)


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.5])
def test_what_coupled_draws_save(correlation: float) -> None:
    """Draws of variance 2 and this correlation, by their definition: ratio 1 + (m − 1) ρ with m = 2."""
    normal = torch.randn(4000, 2, generator=generator(3), dtype=torch.float64)
    other = correlation * normal[:, 0] + math.sqrt(1 - correlation**2) * normal[:, 1]
    draws = math.sqrt(2) * torch.stack([normal[:, 0], other], 1)
    ratio = coupling_ratio(float(draws.mean(1).var()), float(draws.var(1).mean()), 2)
    # both variances have a relative error of √(2/4000), the ratio at most twice that of itself: 4 of these
    assert ratio == pytest.approx(1 + correlation, abs=4 * 2 * math.sqrt(2 / 4000))
    assert math.isnan(coupling_ratio(0.0, 0.0, 2))


@pytest.mark.parametrize(("fixed", "probe"), [(1.0, 0.1), (1.0, 30.0), (0.01, 1.0), (0.0, 1.0), (1.0, 0.0), (0.2, 2.0)])
def test_the_number_of_probes_is_the_best(fixed: float, probe: float) -> None:
    def price(k: int) -> float:
        return (1 + 1.4 * k) * (fixed + probe / k)

    chosen = best_probes(fixed, probe, cost=1.4, most=16)
    assert price(chosen) == min(price(k) for k in range(1, 17))


def test_images_needed_bring_the_variance_down() -> None:
    split = Split(0.0, 0.5, 0.3, 1.2, (0.0, 0.0, 0.0), 1.0, 10.0, 0.95, 10)
    n, population = images_needed(split, 2, 1e-3, 2000), 2000

    def variance(n: int) -> float:
        return (1 - n / population) * 0.5 / n + 0.9 / n

    assert variance(n) <= 1e-3 < variance(n - 1)


def test_quantiles() -> None:
    assert t_quantile(0.95, 3) == pytest.approx(t.ppf(0.975, 3))
    assert t_quantile(0.95, math.inf) == pytest.approx(norm.ppf(0.975))


def test_errors() -> None:
    with pytest.raises(InputError, match=r"`confidence` must be in \(0, 1\), got 95"):
        t_quantile(95, 3)
    with pytest.raises(InputError, match="scores must be finite and at least one, got 2, 1 of them finite"):
        nested_split(Cells.of(torch.arange(2), f64([[1.0], [math.nan]])))
