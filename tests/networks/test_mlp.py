"""The MLP: events of any shape, and what it refuses."""

from typing import Any

import pytest
import torch

from sde_diffusion.errors import InputError
from sde_diffusion.networks import MLP


@pytest.mark.parametrize("shape", [(2,), (7,), (3, 4), (1, 2, 3, 2)])
def test_any_shape_works(shape: tuple[int, ...]) -> None:
    assert MLP(shape, width=8)(torch.randn(5, *shape), torch.randn(5)).shape == (5, *shape)


def test_depth_is_the_number_of_residual_layers() -> None:
    net = MLP((2,), width=8, depth=3)
    assert len(net.first) == len(net.second) == 3
    assert net.shifts.out_features == 24


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((), {}, r"`shape` must be one or more sizes > 0, got \(\)"),
        ((2, 0), {}, r"`shape` must be one or more sizes > 0, got \(2, 0\)"),
        ((2,), {"width": 7}, "`width` must be even and ≥ 4, got 7"),
        ((2,), {"width": 2}, "`width` must be even and ≥ 4, got 2"),
        ((2,), {"depth": 0}, "`depth` must be > 0, got 0"),
    ],
)
def test_a_bad_option_is_an_error(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MLP(shape, **options)
