"""Several averages at once, those by a power of time, and what is found from their snapshots after training."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from sde_diffusion.errors import InputError
from sde_diffusion.training import EMA, Checkpoint, RunFolder, TrainingConfig, load_checkpoint, save_checkpoint
from sde_diffusion.training.power_profile import LONGEST, Profile, exponent, length_of, synthesise
from tests.conftest import assert_mean
from tests.training.test_trainer import Killed, at_step, kill
from tests.training.tiny import last_checkpoint, resumed, same_bits, trainer_for

PAIR = (0.05, 0.1)
AVERAGES: dict[str, Any] = {"ema_decay": (0.9, 0.99), "ema_profiles": PAIR, "snapshot_every": 5}


def cells(length: float, t: int) -> Tensor:
    """The weight of each of the steps 1 … t in the profile at t: its integral over the step, (t,) float64."""
    edges = torch.arange(t + 1, dtype=torch.float64) / t
    return (edges ** (exponent(length) + 1)).diff()


def combined(times: Sequence[int], coefficients: Sequence[float], t: int) -> Tensor:
    """The same of the sum of the profiles `PAIR` at `times`."""
    total = torch.zeros(t, dtype=torch.float64)
    parts = [(length, time) for time in times for length in PAIR]
    for c, (length, time) in zip(coefficients, parts, strict=True):
        total[:time] += c * cells(length, time)
    return total


def basis(times: Sequence[int]) -> list[Profile]:
    return [Profile(length, time) for time in times for length in PAIR]


def test_the_exponents_are_the_published_ones_and_belong_to_their_lengths() -> None:
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)
    for length in (1e-3, 0.01, 0.05, 0.1, 0.2, 0.288):
        assert length_of(exponent(length)) == pytest.approx(length, rel=1e-10)
    for gamma in (0.5, 7.0, 100.0):
        assert exponent(length_of(gamma)) == pytest.approx(gamma, rel=1e-10)
    assert length_of(0) == pytest.approx(LONGEST, rel=1e-12)


@pytest.mark.parametrize("length", [0.03, 0.05, 0.1, 0.2])
def test_a_length_is_the_standard_deviation_over_the_time(length: float) -> None:
    t = 4000
    tau, weight = torch.arange(t, dtype=torch.float64) + 0.5, cells(length, t)
    mean = float(weight @ tau)
    found = math.sqrt(float(weight @ (tau - mean) ** 2)) / t
    assert found == pytest.approx(length, rel=1 / (length * t) ** 2)  # a step's own width is 12^(−½), of length · t


def test_averages_are_their_closed_forms() -> None:
    model, steps = nn.Linear(3, 2).double(), 60
    first = model.weight.detach().clone()
    ema = EMA(model, 0.9, 0.7, profiles=PAIR)
    weights = torch.randn(steps, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in range(steps):
        model.weight.data.copy_(weights[step])
        ema.update(model, step)
    found = ema.state()
    for length in PAIR:
        expected = torch.einsum("t,tij->ij", cells(length, steps), weights)
        torch.testing.assert_close(found[f"ema_profile.{length}.weight"], expected, rtol=1e-10, atol=1e-12)
    for name, rate in (("ema.weight", 0.9), ("ema_decay.0.7.weight", 0.7)):
        expected = first
        for k in range(steps):
            d = min(rate, (1 + k) / (10 + k))
            expected = d * expected + (1 - d) * weights[k]
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-12)


def test_inner_products_are_those_of_quadrature() -> None:
    profiles = [Profile(0.05, 7.0), Profile(0.1, 10.0), Profile(0.2, 3.0)]
    wanted = Profile(0.15, 9.0)

    def density(profile: Profile, tau: float) -> float:
        gamma = exponent(profile.length)
        return (gamma + 1) / profile.time * (tau / profile.time) ** gamma if tau <= profile.time else 0.0

    def off(tau: float) -> float:
        parts = zip(found.coefficients, profiles, strict=True)
        return sum(c * density(p, tau) for c, p in parts) - density(wanted, tau)

    found = synthesise(profiles, wanted)
    edges = (0, 3, 7, 9, 10)
    squared = sum(quad(lambda tau: off(tau) ** 2, a, b)[0] for a, b in pairwise(edges))
    norm = quad(lambda tau: density(wanted, tau) ** 2, 0, 9)[0]
    assert found.error == pytest.approx(math.sqrt(squared / norm), rel=1e-7)


def test_no_other_combination_of_sum_one_is_nearer() -> None:
    times, t, wanted = (10, 20, 30, 40), 40, 0.15
    found = synthesise(basis(times), Profile(wanted, t))
    assert sum(found.coefficients) == pytest.approx(1, abs=1e-12)

    def error(c: npt.NDArray[np.float64]) -> float:
        """On a grid so fine that each profile is a sum."""
        fine = 200
        total = combined([fine * time for time in times], c.tolist(), fine * t) - cells(wanted, fine * t)
        return float(total.norm() / cells(wanted, fine * t).norm())

    best = np.array(found.coefficients)
    assert error(best) == pytest.approx(found.error, rel=1e-3)
    draws = np.random.default_rng(0)
    for size in (0.01, 0.1):
        step = draws.normal(size=len(best))
        assert error(best + size * (step - step.mean())) > error(best)


def test_what_is_tracked_is_found_as_it_is() -> None:
    found = synthesise(basis((5, 10, 15, 20)), Profile(0.1, 15))
    assert found.error < 1e-7  # the root of a rounding error
    torch.testing.assert_close(torch.tensor(found.coefficients), torch.eye(8)[5], rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [0.04, 0.07, 0.15])
def test_the_error_falls_with_the_square_of_the_spacing(length: float) -> None:
    counts = (16, 32, 64)
    errors = [synthesise(basis([k * 64 // n for k in range(1, n + 1)]), Profile(length, 64)).error for n in counts]
    slopes = -np.diff(np.log(errors)) / math.log(2)
    assert abs(slopes - 2).max() < 0.25
    assert errors[0] < 0.02


@pytest.mark.parametrize(("length", "t"), [(0.03, 128), (0.07, 128), (0.15, 128), (0.2, 100)])
def test_a_reconstruction_is_as_good_as_it_says(length: float, t: int) -> None:
    """Against weights of every step. Those of no trend: the mean square of the error is that of the profiles' cells.

    Others, here of a random walk: at most ‖Δ‖ (Σ (θ − c)²)^½, at any constant c.
    """
    times = range(16, 129, 16)
    found = synthesise(basis(times), Profile(length, t))
    noise = torch.randn(128, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    off = combined(times, found.coefficients, 128)
    off[:t] -= cells(length, t)
    norm = exponent(length)
    delta = found.error * math.sqrt((norm + 1) ** 2 / (2 * norm + 1) / t)
    assert_mean((off @ noise) ** 2, float(off.square().sum()))
    assert float(off.norm()) <= delta * (1 + 1e-10)

    walk = 5 + noise.cumsum(0)
    bound = delta * (walk - walk.mean(0)).norm(dim=0)
    assert bool(((off @ walk).abs() <= bound).all())
    assert float((off @ walk).abs().max()) > 0.01 * float(bound.max()), "the bound is of some use"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_decay": ()}, "`ema_decay` must be one or more rates, got none"),
        ({"ema_decay": (0.9, 0.9)}, r"`ema_decay` must not name one average twice, got \[0.9, 0.9\]"),
        ({"ema_decay": (0.9, -0.1)}, r"`ema_decay` must be in \[0, 1\), got -0.1"),
        ({"ema_profiles": (0.1, 0.1)}, "`ema_profiles` must not name one average twice"),
        ({"ema_profiles": (0.3,)}, r"the length of an average must be in \(0, 0.2887\), got 0.3"),
        ({"ema_profiles": (0.0,)}, r"the length of an average must be in \(0, 0.2887\), got 0.0"),
        ({"snapshot_every": -1}, "`snapshot_every` must be ≥ 0 or null, got -1"),
    ],
)
def test_averages_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingConfig(**options)


def steps_of(paths: list[Path]) -> list[int]:
    return [int(path.stem.removeprefix("step_")) for path in paths]


def test_a_killed_run_has_the_averages_and_snapshots_of_a_whole_one(tmp_path: Path) -> None:
    trainer_for(tmp_path / "whole", **AVERAGES).run()
    killed = trainer_for(tmp_path / "killed", **AVERAGES)
    at_step(killed, 17, kill)
    with pytest.raises(Killed):
        killed.run()
    killed_at = RunFolder(tmp_path / "killed")
    assert steps_of(killed_at.snapshots()) == [5, 10, 15]
    again = resumed(tmp_path / "killed", **AVERAGES)
    at_step(again, 11, lambda: steps.extend(steps_of(killed_at.snapshots())))
    steps: list[int] = []
    again.run()
    assert steps == [5, 10], "what is later than the checkpoint is forgotten"

    assert same_bits(last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "killed"))
    whole = RunFolder(tmp_path / "whole").snapshots()
    assert steps_of(whole) == steps_of(killed_at.snapshots()) == [5, 10, 15, 20]
    for one, other in zip(whole, killed_at.snapshots(), strict=True):
        assert same_bits(load_checkpoint(one), load_checkpoint(other))
        assert load_checkpoint(one).meta["step"] == steps_of([one])[0]


def test_a_snapshot_holds_the_profiles_in_half_precision(tmp_path: Path) -> None:
    trainer_for(tmp_path, **AVERAGES).run()
    snapshot = load_checkpoint(RunFolder(tmp_path).snapshots()[-1])
    stored = last_checkpoint(tmp_path).tensors
    names = {name for name in stored if name.startswith("ema_profile.")}
    assert snapshot.tensors.keys() == names
    for name in names:
        assert torch.equal(snapshot.tensors[name], stored[name].half())


def test_a_run_takes_sixteen_snapshots_none_without_profiles_and_none_where_not_wanted(tmp_path: Path) -> None:
    assert TrainingConfig(steps=2000).every("snapshot") == 125
    assert TrainingConfig(steps=3).every("snapshot") == 1
    for name, options in (("a", {"ema_profiles": ()}), ("b", {"snapshot_every": 0})):
        trainer_for(tmp_path / name, steps=2, **options).run()
        assert not RunFolder(tmp_path / name).snapshots()


def test_a_checkpoint_from_before_the_profiles_goes_on_without_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer_for(tmp_path / "whole", steps=12, save_every=10, keep=2, decay="constant").run()
    whole = last_checkpoint(tmp_path / "whole")
    earlier = load_checkpoint(RunFolder(tmp_path / "whole").checkpoints()[0])
    older = {name: value for name, value in earlier.tensors.items() if not name.startswith("ema_profile")}
    save_checkpoint(tmp_path / "old" / "checkpoints" / "step_00000010.safetensors", Checkpoint(older, earlier.meta))
    resumed(tmp_path / "old", steps=12, decay="constant").run()
    assert "the checkpoint has no average of length 0.05: the run goes on without it" in caplog.text
    found = last_checkpoint(tmp_path / "old")
    kept = {name: value for name, value in whole.tensors.items() if not name.startswith("ema_profile")}
    assert same_bits(found, Checkpoint(kept, whole.meta))
    assert not RunFolder(tmp_path / "old").snapshots()


def test_a_checkpoint_without_an_average_of_another_rate_is_refused(tmp_path: Path) -> None:
    trainer_for(tmp_path, steps=1).run()
    with pytest.raises(InputError, match=r"the checkpoint has no average of rate 0.5; resume with the run's own"):
        resumed(tmp_path, steps=2, ema_decay=(0.999, 0.5))
