"""Means with intervals."""

import math

import pytest
import torch
from scipy.stats import norm, t

from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import BitsPerDim, Interval, mean_interval, probe_half_width
from sde_diffusion.rng import generator
from tests.conftest import assert_mean, f64


def test_mean_and_half_width_by_hand() -> None:
    mean, half_width = mean_interval(f64([1.0, 2.0, 6.0]), 0.9)
    assert mean == 3.0
    assert half_width == pytest.approx(t.ppf(0.95, 2) * math.sqrt(7 / 3), rel=1e-12)
    assert str(Interval(2.26412, 0.03111)) == "2.2641 ± 0.0311"


@pytest.mark.parametrize("images", [2, 4, 200])
def test_intervals_cover_as_often_as_they_say(images: int) -> None:
    values = torch.randn(2000, images, generator=generator(1), dtype=torch.float64)
    intervals = [mean_interval(row) for row in values]
    covered = f64([float(abs(interval.mean) <= interval.half_width) for interval in intervals])
    assert_mean(covered, 0.95)


def test_one_value_has_no_interval() -> None:
    mean, half_width = mean_interval(f64([2.0]))
    assert mean == 2.0
    assert math.isnan(half_width)
    assert Interval(mean, half_width).plain() == (2.0, None)


def test_half_width_from_the_probes() -> None:
    assert probe_half_width(f64([3.0, 4.0])) == pytest.approx(norm.ppf(0.975) * 5 / 2, rel=1e-12)
    assert probe_half_width(torch.zeros(7)) == 0


def test_errors() -> None:
    with pytest.raises(InputError, match=r"`confidence` must be in \(0, 1\), got 95"):
        mean_interval(f64([1.0]), 95)
    with pytest.raises(InputError, match=r"`values` must be finite numbers \(n,\) with n > 0, got shape \(0,\)"):
        mean_interval(torch.zeros(0))
    with pytest.raises(InputError, match=r"got shape \(2,\), 1 of them finite"):
        mean_interval(f64([1.0, math.inf]))
    with pytest.raises(InputError, match="`standard_errors` must be finite"):
        probe_half_width(f64([math.nan]))


@pytest.mark.parametrize(
    ("half_width", "shown"),
    [(0.0267, "1.92 ± 0.03"), (0.00312, "1.923 ± 0.003"), (0.2, "1.92 ± 0.20"), (0.0, "1.92 ± 0.00")],
)
def test_bits_per_dim_print_as_many_digits_as_their_interval_bears(half_width: float, shown: str) -> None:
    assert str(BitsPerDim(1.9234, half_width)) == shown
    assert str(BitsPerDim(1.9234, math.nan)) == "1.92 ± nan"
