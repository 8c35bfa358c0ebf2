"""Plans of whole grids: the same as steps one by one, and nothing in the loop that waits for a device."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sde_diffusion.model import ScoreModel
from sde_diffusion.networks import MLP
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.projections import Clip
from sde_diffusion.rng import generator
from sde_diffusion.sde import SDE, VPSDE
from sde_diffusion.solvers import EulerMaruyama, GridSolver, NoiseSource, ReverseProcess, SeededNoise
from tests.conformance.test_solvers import ALL
from tests.conftest import f64

GRIDDED = [p.values[1] for p in ALL if isinstance(p.values[1], GridSolver)]


@pytest.mark.parametrize("solver", GRIDDED, ids=str)
def test_a_planned_run_is_its_steps_one_by_one(solver: GridSolver) -> None:
    sde, solver = VPSDE(), replace(solver, steps=6)
    oracle = GaussianMixture(sde, f64([0.3, 0.7]), f64([[1.0, 0.2], [-0.7, 0.1]]), f64([0.3, 0.5]))

    def process() -> ReverseProcess:
        noise = SeededNoise(1, dtype=torch.float64)
        return ReverseProcess(sde, oracle.score, noise=noise, project=Clip(low=-2, high=2))

    start = torch.randn(3, 2, generator=generator(1), dtype=torch.float64)
    whole, single = process(), process()
    end, x, state = solver.solve(whole, start, 1.0, 0.05), start, None
    for t, t_next in itertools.pairwise(solver.grid(sde, 1.0, 0.05, 6)):
        x, state = solver.step(single, x, t, t_next, state)
    torch.testing.assert_close(end, x, rtol=1e-10, atol=1e-10)
    assert whole.nfe == single.nfe == 6 * solver.evaluations


class Anywhere(NoiseSource):
    """Noise of no values, for tensors of no values."""

    def prior(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, device="meta")

    def __call__(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return torch.empty_like(x)


@pytest.mark.parametrize("solver", GRIDDED, ids=str)
def test_no_step_waits_for_the_device(solver: GridSolver) -> None:
    """On the device `meta`, which has shapes and no values, whatever asks for one fails."""
    sde, solver = VPSDE(), replace(solver, steps=4)
    model = ScoreModel(MLP((3,), width=8), sde, prediction="v").to("meta")
    x = torch.empty(2, 3, device="meta")
    plan, state = solver.plan(sde, solver.grid(sde, 1.0, 0.05, 4)), None
    process = ReverseProcess(sde, model, noise=Anywhere())
    process = process.along([t for row in plan for t in (row.t, row.t_next)], x)
    for row in plan:
        x, state = solver.update(process, x, row, state)
    assert x.device.type == "meta"
    assert process.nfe == 4 * solver.evaluations


def test_coefficients_are_computed_once_for_a_run() -> None:
    """Calls of the process's formulas do not grow with the number of steps."""
    calls: list[int] = []

    class Counted(VPSDE):
        def log_mean_coef(self, t: Tensor) -> Tensor:
            calls.append(t.numel())
            return super().log_mean_coef(t)

        def std(self, t: Tensor) -> Tensor:
            calls.append(t.numel())
            return super().std(t)

    def count(steps: int) -> int:
        sde: SDE = Counted()
        model = ScoreModel(MLP((3,), width=8), sde)
        calls.clear()
        with torch.no_grad():
            EulerMaruyama(eta=0.0, steps=steps).solve(ReverseProcess(sde, model), torch.zeros(2, 3), 1.0, 0.1)
        return len(calls)

    assert count(3) == count(40)
