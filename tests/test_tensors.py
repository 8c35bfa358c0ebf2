"""Coefficients of time against states of any shape."""

import pytest
import torch

from sde_diffusion.tensors import expand, flat_mean, flat_sum
from tests.conftest import f64

SHAPES = [(2,), (1, 4, 3), (2, 3, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_coefficient_for_each_sample_scales_that_sample(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.ones(3, *shape, dtype=dtype)
    product = expand(f64([1.0, 2.0, 3.0]), x) * x
    assert product.dtype == dtype
    assert product.shape == x.shape
    assert [set(row.flatten().tolist()) for row in product] == [{1.0}, {2.0}, {3.0}]


def test_a_coefficient_for_all_passes_through() -> None:
    coef = f64(0.1)
    assert expand(coef, torch.ones(2, 3)) is coef
    assert (coef * torch.ones(2, 3)).dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_and_means_are_over_the_event(shape: tuple[int, ...]) -> None:
    x = torch.arange(1.0, 4.0).reshape(-1, *(1,) * len(shape)) * torch.ones(3, *shape)
    count = x[0].numel()
    assert flat_mean(x).tolist() == [1, 2, 3]
    assert flat_sum(x).tolist() == [count, 2 * count, 3 * count]
