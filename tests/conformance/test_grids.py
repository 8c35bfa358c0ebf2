"""What every time grid must satisfy, for every process and in both directions."""

import pickle
import re
from dataclasses import replace

import pytest
import torch

from sde_diffusion.errors import InputError
from sde_diffusion.grids import GRIDS, LevelsGrid, TimeGrid
from sde_diffusion.sde import SDE
from tests.conftest import f64


@pytest.fixture(params=GRIDS)
def grid(request: pytest.FixtureRequest, sde: SDE) -> TimeGrid:
    grid = GRIDS[request.param]()
    if isinstance(grid, LevelsGrid) and sde.levels is None:
        with pytest.raises(InputError, match="the grid `levels` needs a process with levels, such as ddpm"):
            grid(sde, sde.t_max, sde.t_min, 2)
        pytest.skip("this process has no levels")
    return grid


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("down", [True, False], ids=["sampling", "encoding"])
def test_goes_from_end_to_end(sde: SDE, grid: TimeGrid, steps: int, down: bool) -> None:
    t_from, t_to = (sde.t_max, sde.t_min) if down else (sde.t_min, sde.t_max)
    if isinstance(grid, LevelsGrid) and sde.levels is not None:
        steps = min(steps, sde.levels - 1)
    times = grid(sde, t_from, t_to, steps)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times.device.type == "cpu"
    assert (float(times[0]), float(times[-1])) == (t_from, t_to)
    assert (times.diff() < 0).all() if down else (times.diff() > 0).all()


def test_backwards_is_the_same_grid(sde: SDE, grid: TimeGrid) -> None:
    down, up = grid(sde, 0.9, 0.1, 10), grid(sde, 0.1, 0.9, 10)
    torch.testing.assert_close(down, up.flip(0), rtol=1e-10, atol=0)


def test_starts_anywhere(sde: SDE, grid: TimeGrid) -> None:
    times = grid(sde, 0.7, 0.2, 5)
    torch.testing.assert_close(times[[0, -1]], f64([0.7, 0.2]), rtol=0, atol=0)
    assert (times.diff() < 0).all()


@pytest.mark.parametrize("steps", [0, -3])
def test_steps_must_be_positive(sde: SDE, grid: TimeGrid, steps: int) -> None:
    with pytest.raises(InputError, match=f"`steps` must be > 0, got {steps}"):
        grid(sde, 1.0, 0.1, steps)


@pytest.mark.parametrize(("t_from", "t_to"), [(1.0, 1.0 - 1e-14), (1.0 - 1e-14, 1.0), (0.5, 0.5)])
def test_times_must_not_coincide(sde: SDE, grid: TimeGrid, t_from: float, t_to: float) -> None:
    if isinstance(grid, LevelsGrid):
        with pytest.raises(InputError, match=r"`steps` of the grid `levels` must be ≤ [01], the steps from level"):
            grid(sde, t_from, t_to, 1000)
        return
    message = rf"step \d+ of 1000 of {re.escape(str(grid))} from t = {t_from} to {t_to} goes from .*; take fewer steps"
    with pytest.raises(InputError, match=message):
        grid(sde, t_from, t_to, 1000)


@pytest.mark.parametrize("grid", [cls() for cls in GRIDS.values()], ids=list(GRIDS))
def test_is_a_value(grid: TimeGrid) -> None:
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert {grid: 1}[replace(grid)] == 1
    assert type(grid).__name__ in repr(grid)
