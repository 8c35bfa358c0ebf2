"""The weights a checkpoint is used with, against those of every step of the run."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.training import Averaged, Checkpoint, RunFolder, averaged, load_checkpoint
from sde_diffusion.training.power_profile import Profile, exponent, synthesise
from tests.training.test_ema import PAIR, basis, cells, combined
from tests.training.tiny import last_checkpoint, trainer_for

STEPS, EVERY = 20, 4
HALF, SINGLE = 2.0**-11, 2.0**-24  # relative errors of rounding


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Tensor]:
    """A run with snapshots, and one of its weights after every step, (steps, n) float64."""
    path = tmp_path_factory.mktemp("run")
    trainer = trainer_for(path, ema_decay=(0.9, 0.99), snapshot_every=EVERY, learning_rate=0.05)
    seen: list[Tensor] = []
    inner = trainer.ema.update

    def update(source: Any, step: int) -> None:
        seen.append(watched(source.state_dict()))
        inner(source, step)

    trainer.ema.update = update  # type: ignore[method-assign]
    trainer.run()
    return RunFolder(path), torch.stack(seen)


def watched(weights: dict[str, Tensor]) -> Tensor:
    return weights["net.input.weight"].flatten().double()


@pytest.mark.parametrize(("length", "step"), [(0.15, 20), (0.07, 20), (0.2, 13), (0.05, 16), (0.1, 18)])
def test_any_average_is_found_to_within_its_bound(run: tuple[RunFolder, Tensor], length: float, step: int) -> None:
    folder, weights = run
    which = f"{length}" if step == STEPS else f"{length}@{step}"
    found, origin = averaged(last_checkpoint(folder.path), which, folder)
    exact = cells(length, step) @ weights[:step]

    times = range(EVERY, STEPS + 1, EVERY)
    plan = synthesise(basis(times), Profile(length, step))
    rounding = HALF * sum(map(abs, plan.coefficients)) * weights.abs().max() + 1e-7
    planned = combined(times, plan.coefficients, STEPS) @ weights
    assert float((watched(found) - planned).abs().max()) <= rounding

    gamma = exponent(length)
    delta = plan.error * math.sqrt((gamma + 1) ** 2 / (2 * gamma + 1) / step)
    profiles = delta * (weights - weights.mean(0)).norm(dim=0)
    assert bool(((watched(found) - exact).abs() <= profiles + rounding).all())
    assert f"length {length} at step {step}, from 4 snapshots, its profile to {plan.error:.2g}" in origin


def test_more_snapshots_find_more(run: tuple[RunFolder, Tensor], tmp_path: Path) -> None:
    folder, weights = run
    few = RunFolder(tmp_path)
    few.save_snapshot(load_checkpoint(folder.snapshots()[1]))
    exact = cells(0.2, STEPS) @ weights
    gamma, spread = exponent(0.2), float((weights - weights.mean(0)).norm())
    errors, bounds = [], []
    for some, times in ((few, (2 * EVERY, STEPS)), (folder, range(EVERY, STEPS + 1, EVERY))):  # the last is the run's
        plan = synthesise(basis(times), Profile(0.2, STEPS))
        bounds.append(plan.error * math.sqrt((gamma + 1) ** 2 / (2 * gamma + 1) / STEPS) * spread)
        errors.append(float((watched(averaged(last_checkpoint(folder.path), "0.2", some).weights) - exact).norm()))
        rounding = HALF * sum(map(abs, plan.coefficients)) * float(weights.norm(dim=1).max()) + 1e-7
        assert errors[-1] <= bounds[-1] + rounding
    assert bounds[1] < bounds[0] / 3
    assert errors[1] < errors[0]  # by how much depends on the way that the weights took: 0.3 to 0.6 of it


def test_stored_averages_are_taken_as_they_are_and_need_no_snapshots(run: tuple[RunFolder, Tensor]) -> None:
    folder, weights = run
    checkpoint = last_checkpoint(folder.path)
    assert torch.equal(watched(averaged(checkpoint, False).weights), weights[-1])
    for which in (True, "0.9"):
        assert torch.equal(watched(averaged(checkpoint, which).weights), watched(checkpoint.group("ema")))
    for which, length in (("0.05", 0.05), (".1", 0.1), ("1e-1@20", 0.1)):
        expected = cells(length, STEPS) @ weights
        rounding = 40 * SINGLE * float(weights.abs().max())  # each of 20 updates rounds
        torch.testing.assert_close(watched(averaged(checkpoint, which).weights), expected, rtol=0, atol=rounding)
    slow = averaged(checkpoint, "0.99")
    assert torch.equal(slow.weights["net.input.weight"], checkpoint.tensors["ema_decay.0.99.net.input.weight"])
    assert slow.origin == "average of rate 0.99"


def test_every_average_has_all_of_the_model(run: tuple[RunFolder, Tensor]) -> None:
    folder, _ = run
    checkpoint = last_checkpoint(folder.path)
    model = checkpoint.group("model")
    for which in (True, False, "0.05", "0.99", "0.2", "0.2@7"):
        found: Averaged = averaged(checkpoint, which, folder)
        assert found.weights.keys() == model.keys()
        assert all(value.dtype == model[name].dtype for name, value in found.weights.items())


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("runs/a", r"an average must be a length in \(0, 0.2887\), .* got 'runs/a'"),
        ("0", "an average must be a length"),
        ("-0.1", "an average must be a length"),
        ("1.0", "an average must be a length"),
        ("nan", "an average must be a length"),
        ("0.1@x", "an average must be a length"),
        ("0.3", r"the checkpoint has no average '0.3'; it has 0.9, 0.99, 0.05, 0.1, and others can be given by"),
        ("0.999", "the checkpoint has no average '0.999'"),
        ("0.99@10", "the checkpoint has no average '0.99@10'"),
        ("0.15@0", r"the step of an average must be in \[1, 20\], where the checkpoint stands, got 0"),
        ("0.15@21", r"the step of an average must be in \[1, 20\]"),
    ],
)
def test_what_is_no_average_is_refused(run: tuple[RunFolder, Tensor], which: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        averaged(last_checkpoint(run[0].path), which, run[0])


def test_without_snapshots_it_says_what_there_is(run: tuple[RunFolder, Tensor], tmp_path: Path) -> None:
    checkpoint = last_checkpoint(run[0].path)
    message = "the average of length 0.15 at step 20 is found from the snapshots of a run, and there are none"
    for folder in (None, RunFolder(tmp_path)):
        with pytest.raises(InputError, match=f"{message}.*was tracked: 0.05, 0.1"):
            averaged(checkpoint, "0.15", folder)


def test_without_profiles_it_says_how_to_have_them(run: tuple[RunFolder, Tensor]) -> None:
    checkpoint = last_checkpoint(run[0].path)
    tensors = {name: value for name, value in checkpoint.tensors.items() if not name.startswith("ema_profile")}
    for which in ("0.05", "0.15"):
        with pytest.raises(InputError, match="the run kept no averages by a power of time; train with"):
            averaged(Checkpoint(tensors, checkpoint.meta), which, run[0])


def test_snapshots_of_another_run_are_refused(run: tuple[RunFolder, Tensor], tmp_path: Path) -> None:
    fitting = {f"ema_profile.{length}.net.input.weight": torch.zeros(3) for length in PAIR}
    for tensors in (fitting, {"ema_profile.0.2.a": torch.zeros(3)}):
        other = RunFolder(tmp_path)
        other.save_snapshot(Checkpoint(tensors, {"step": 4}))
        with pytest.raises(InputError, match="it is of another run"):
            averaged(last_checkpoint(run[0].path), "0.15", other)
