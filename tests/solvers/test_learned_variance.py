"""Ancestral sampling with the variance of a model of two heads, on all levels of a chain and on some."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError, SolveError
from sde_diffusion.grids import LevelsGrid
from sde_diffusion.model import ScoreModel
from sde_diffusion.networks import MLP
from sde_diffusion.projections import Clip
from sde_diffusion.sampling import sample
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import DDPM, CosineBetas
from sde_diffusion.solvers import DDIM, Ancestral, ReverseProcess, SeededNoise
from sde_diffusion.verify.check import Setting
from sde_diffusion.verify.problems import KnownVariance, exact_moments, moments
from tests.conftest import f64

LEARNED = Ancestral(variance="learned", grid=LevelsGrid())


class Fraction:
    """A score with a given v."""

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return -x

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return -x, torch.full_like(x, self.fraction)


def run(score_fn: ScoreFn, solver: Ancestral, **options: object) -> Tensor:
    noise = SeededNoise(1, dtype=torch.float64)
    return sample(score_fn, DDPM(steps=10), solver, (3, 2), noise=noise, **options).x  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_the_exact_variance_of_each_step_gives_the_exact_moments(steps: int) -> None:
    """Of Gaussian data, however few levels are visited: β and β̃ are those of the step taken."""
    sde, solver = DDPM(steps=10, beta=CosineBetas()), replace(LEARNED, steps=steps)
    score_fn = KnownVariance(sde, solver.grid(sde, 1.0, sde.t_min, steps))
    found = moments(Setting(), sde, solver, 1.0, sde.t_min, score_fn=score_fn)
    assert found == pytest.approx(exact_moments(sde, sde.t_min), rel=1e-10)
    small = moments(Setting(), sde, replace(solver, variance="small"), 1.0, sde.t_min, score_fn=score_fn)
    large = moments(Setting(), sde, replace(solver, variance="large"), 1.0, sde.t_min, score_fn=score_fn)
    assert small[1] < (1 - 1e-3) * found[1] < (1 - 2e-3) * large[1]


@pytest.mark.parametrize("steps", [3, 9])
@pytest.mark.parametrize("project", [None, Clip()], ids=["as-it-is", "clipped"])
def test_v_of_0_is_small_and_of_1_is_large(steps: int, project: Clip | None) -> None:
    for fraction, variance in ((0.0, "small"), (1.0, "large")):
        found = run(Fraction(fraction), replace(LEARNED, steps=steps), project=project)
        fixed = Ancestral(variance=variance, grid=LevelsGrid(), steps=steps)  # type: ignore[arg-type]
        torch.testing.assert_close(found, run(Fraction(0.3), fixed, project=project), rtol=1e-10, atol=1e-12)


def test_between_them_the_logarithm_is_linear() -> None:
    """One step from level 7 to level 3 with v = ¼: the noise is β^⅛ β̃^⅜ wide."""
    sde = DDPM(steps=10)
    t, t_next, x = f64(0.7), f64(0.3), torch.zeros(1, 1, dtype=torch.float64)

    def spread(fraction: float) -> float:
        process = ReverseProcess(sde, Fraction(fraction), noise=SeededNoise(1, dtype=torch.float64))
        assert process.nfe == 0
        after, _ = LEARNED.step(process, x, t, t_next, None)
        assert process.nfe == 1
        return float(after)

    assert spread(0.25) == pytest.approx(
        math.copysign(abs(spread(1.0)) ** 0.25 * abs(spread(0.0)) ** 0.75, spread(0.0))
    )


def test_a_model_of_one_head_is_refused() -> None:
    model = ScoreModel(MLP((2,), width=8), DDPM(steps=10)).double()
    with pytest.raises(InputError, match=r"a learned variance needs a model of two heads, but this one has one"):
        run(model, replace(LEARNED, steps=4))
    assert run(model, Ancestral(steps=4)).shape == (3, 2)


def test_other_solvers_take_the_score_of_a_model_of_two_heads() -> None:
    sde, net = DDPM(steps=10), MLP((2,), width=8, heads=2)
    model = ScoreModel(net, sde, learned_variance=True).double()
    x = sample(model, sde, DDIM(steps=4), (3, 2), noise=SeededNoise(0, dtype=torch.float64)).x
    assert x.shape == (3, 2)


def test_what_is_not_finite_names_its_samples() -> None:
    class Broken(Fraction):
        def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            fraction = torch.where(t[:, None] < 0.55, math.nan, 0.0).expand_as(x).clone()
            fraction[0] = 0.0
            return -x, fraction

    with pytest.raises(SolveError, match=r"the solve stopped for sample 1 and 1 more: the state is not finite"):
        run(Broken(0.0), replace(LEARNED, steps=9))
