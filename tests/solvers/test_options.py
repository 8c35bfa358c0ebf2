"""Options that make no sense are refused by name."""

from collections.abc import Callable

import pytest

from sde_diffusion.errors import InputError
from sde_diffusion.solvers import DDIM, Heun


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(eta=1.5), r"`eta` must be in \[0, 1\], got 1.5"),
        (lambda: DDIM(eta=-0.1), r"`eta` must be in \[0, 1\], got -0.1"),
        (lambda: Heun(s_churn=-1.0), "`s_churn` must be ≥ 0, got -1.0"),
        (lambda: Heun(s_tmin=2.0, s_tmax=1.0), "`s_tmax` must be > `s_tmin` = 2.0 ≥ 0, got 1.0"),
        (lambda: Heun(s_noise=0.0), "`s_noise` must be > 0, got 0.0"),
    ],
)
def test_bad_options(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
