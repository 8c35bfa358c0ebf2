"""The adaptive SDE solver: its order, the law of its noise, and how it fails."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sde import SDE, VPSDE
from sde_diffusion.solvers import AdaptiveSDE, GridSolver, ReverseProcess, SeededNoise
from sde_diffusion.solvers.adaptive_sde import BrownianPath
from sde_diffusion.solvers.base import columns
from tests.conformance.test_solvers import exact_moments, moments
from tests.conftest import assert_mean, f64


class Step(NamedTuple):
    t: Tensor
    t_next: Tensor


@dataclass(frozen=True, kw_only=True)
class Fixed(GridSolver):
    """The solver's trial steps on a grid."""

    order = 2
    stochastic = True

    def plan(self, sde: SDE, times: Tensor) -> list[Step]:
        return [Step(*row) for row in columns(times)]

    def update(self, process: ReverseProcess, x: Tensor, now: Step, state: Any) -> tuple[Tensor, Any]:
        increment = (now.t - now.t_next).sqrt() * process.noise(x, now.t, now.t_next)
        return AdaptiveSDE().trial(process, x, now.t, now.t_next, increment)[1], None


def test_steps_have_weak_order_two(sde: SDE) -> None:
    counts, errors = [48, 96, 192], []
    for steps in counts:
        found, exact = moments(sde, Fixed(steps=steps), 0.4, 0.05), exact_moments(sde, 0.05)
        errors.append(abs(found[0] - exact[0]) + abs(found[1] - exact[1]))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - AdaptiveSDE().order) < 0.25, errors


def test_bridges_leave_brownian_motion() -> None:
    """Large increments are rejected, which would shrink the variance of W(1) if their noise were drawn anew."""
    count, noise = 20_000, generator(4)
    path = BrownianPath(torch.zeros(count, 1, dtype=torch.float64))
    position, time, wanted = torch.zeros(3, count, dtype=torch.float64)
    wanted += 0.3
    for _ in range(400):
        z = torch.randn(count, 1, generator=noise, dtype=torch.float64)
        h, increment = path.next(torch.minimum(wanted, 1 - time), z)
        taken = (time < 1) & ((increment[:, 0] < 0.5 * h.sqrt()) | (h < 0.02))
        path.drop(taken)
        position = torch.where(taken, position + increment[:, 0], position)
        time = torch.where(taken, torch.where(h >= 1 - time, 1.0, time + h), time)
        wanted = torch.where(taken, 0.3, 0.5 * h)
    assert bool((time == 1).all())
    assert_mean(position, 0.0, "mean")
    assert_mean(position**2, 1.0, "variance")
    assert_mean(position**4, 3.0, "kurtosis")


def test_a_tighter_tolerance_takes_more_steps(sde: SDE) -> None:
    oracle, counts = GaussianMixture.gaussian(sde, f64([0.5, -0.5]), 0.6), []
    x = oracle.sample(8, f64(1.0), generator=generator(1))
    for tolerance in (0.1, 0.01, 0.001):
        process = ReverseProcess(sde, oracle.score, noise=SeededNoise(0, dtype=torch.float64))
        AdaptiveSDE(rtol=tolerance, atol=tolerance).solve(process, x, 1.0, sde.t_min)
        counts.append(process.nfe)
    assert counts == sorted(counts)
    assert counts[-1] > 3 * counts[0]


def test_failures_name_the_sample_and_its_time() -> None:
    sde = VPSDE()
    oracle = GaussianMixture.gaussian(sde, f64([0.5]), 0.6)

    def broken(x: Tensor, t: Tensor) -> Tensor:
        score = oracle.score(x, t)
        score[1][t[1] < 0.5] = float("nan")
        return score

    x = torch.zeros(3, 1, dtype=torch.float64)
    process = ReverseProcess(sde, broken, noise=SeededNoise(0, dtype=torch.float64))
    with pytest.raises(InputError, match=r"stopped at t = 0\.5\d* for sample 1: the step size fell to zero"):
        AdaptiveSDE().solve(process, x, 1.0, sde.t_min)
    process = ReverseProcess(sde, oracle.score, noise=SeededNoise(0, dtype=torch.float64))
    with pytest.raises(
        InputError, match=r"stopped at t = 0\.\d+ for sample 0 and \d+ more: `max_steps` = 5 were not enough"
    ):
        AdaptiveSDE(max_steps=5).solve(process, x, 1.0, sde.t_min)
    with pytest.raises(InputError, match="`rtol` must be > 0, got 0"):
        AdaptiveSDE(rtol=0.0)
