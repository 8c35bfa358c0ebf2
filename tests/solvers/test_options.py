"""Options that make no sense are refused by name."""

from collections.abc import Callable

import pytest

from sde_diffusion.errors import InputError
from sde_diffusion.solvers import (
    DDIM,
    DEIS,
    DPMpp3M,
    EulerMaruyama,
    Heun,
    Langevin,
    PerSampleODE,
    PredictorCorrector,
    ReverseDiffusion,
    UniPC,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(eta=1.5), r"`eta` must be in \[0, 1\], got 1.5"),
        (lambda: DDIM(eta=-0.1), r"`eta` must be in \[0, 1\], got -0.1"),
        (lambda: Heun(s_churn=-1.0), "`s_churn` must be ≥ 0, got -1.0"),
        (lambda: Heun(s_tmin=2.0, s_tmax=1.0), "`s_tmax` must be > `s_tmin` = 2.0 ≥ 0, got 1.0"),
        (lambda: Heun(s_noise=0.0), "`s_noise` must be > 0, got 0.0"),
        (lambda: DPMpp3M(rule="published"), "`rule` must be one of exact, midpoint, heun, got 'published'"),  # type: ignore[arg-type]
        (lambda: DEIS(rule="midpoint"), "`rule` must be one of exact, published, got 'midpoint'"),  # type: ignore[arg-type]
        (lambda: UniPC(lower_final=True), "`lower_final` must be one of short, always, never, got True"),  # type: ignore[arg-type]
        (lambda: ReverseDiffusion(eta=-1.0), "`eta` must be ≥ 0, got -1.0"),
        (lambda: Langevin(snr=0.0), "`snr` must be > 0, got 0.0"),
        (lambda: Langevin(repeats=0), "`repeats` must be > 0, got 0"),
        (
            lambda: PredictorCorrector(predictor=PerSampleODE()),
            "`predictor` must be a solver with a grid, got PerSampleODE",
        ),
        (
            lambda: PredictorCorrector(predictor=PredictorCorrector()),
            "`predictor` must be a solver with a grid, got PredictorCorrector",
        ),
        (
            lambda: PredictorCorrector(predictor=EulerMaruyama(steps=9)),
            "`predictor` must leave `steps` and `grid` alone, got a EulerMaruyama that sets them",
        ),
    ],
)
def test_bad_options(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
