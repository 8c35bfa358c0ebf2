"""`--ema LENGTH`: the same weights for every command, found after training."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sde_diffusion.training import Checkpoint, RunFolder, load_checkpoint, save_checkpoint
from tests.commands.running import invoke, succeed, train

POINTS = (
    *("--set", "data={name: two_moons, train: 50, test: 20}", "--set", "model.network={name: mlp, width: 8, depth: 1}"),
    *("--set", "model.sigma_data=1", "--set", "training.learning_rate=0.02", "--set", "training.sample_every=0"),
)
QUICK = ("--solver", "em", "--steps", 2, "--count", 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps whose averages differ, on points, which are not rounded."""
    path = tmp_path_factory.mktemp("ema") / "run"
    averages = ("--set", "training.ema_decay=[0.35, 0.99]", "--set", "training.snapshot_every=2")
    return train(path, *averages, steps=6, base=POINTS)


def drawn(run: Path, out: Path, *ema: str) -> npt.NDArray[Any]:
    succeed("sample", run, *QUICK, "--out", out, *ema)
    with np.load(out / "samples.npz") as stored:
        samples: npt.NDArray[Any] = stored["samples"]
    return samples


def test_each_average_draws_its_own_samples_and_is_told(run: Path, tmp_path: Path) -> None:
    ways = {"": (), "ema": ("--ema",), "none": ("--ema", "none"), "raw": ("--no-ema",)}
    ways |= {which: ("--ema", which) for which in ("0.05", "0.1", "0.15", "0.15@4", "0.35", "0.99")}
    found = {name: drawn(run, tmp_path / (name or "default"), *ema) for name, ema in ways.items()}
    same = [{"", "ema", "0.35"}, {"none", "raw"}]
    for a in ways:
        for b in ways:
            expected = a == b or any({a, b} <= group for group in same)
            assert np.array_equal(found[a], found[b]) == expected, (a, b)
    told = {name: json.loads((tmp_path / (name or "default") / "sample.json").read_text())["ema"] for name in ways}
    assert (told[""], told["ema"], told["none"], told["raw"], told["0.15@4"]) == (True, True, False, False, "0.15@4")


def test_every_command_takes_it(run: Path, tmp_path: Path) -> None:
    for command in ("sample", "likelihood", "encode", "interpolate"):
        more = ("--pair", 0, 1) if command == "interpolate" else ()
        outcome = succeed(command, run, "--ema", "0.15", "--dry-run", "--out", tmp_path / command, *more)
        assert "average of length 0.15 at step 6, from 2 snapshots, its profile to " in outcome.out
    quick = ("--limit", 2, "--rtol", 0.1, "--atol", 0.1, "--out", tmp_path / "likelihood")
    assert "average of length 0.1)" in succeed("likelihood", run, "--ema", "0.1", *quick).out
    assert "the last weights)" in succeed("sample", run, "--no-ema", "--dry-run").out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--ema", "0.05", "--no-ema"), "--ema 0.05 and --no-ema exclude each other; drop one"),
        (("--ema", "0.7"), "the checkpoint has no average '0.7'; it has 0.35, 0.99, 0.05, 0.1"),
        (("--ema", "long"), "an average must be a length in (0, 0.2887)"),
        (("--ema", "0.15@7"), "the step of an average must be in [1, 6], where the checkpoint stands, got 7"),
    ],
)
def test_a_bad_average_is_one_line(run: Path, given: tuple[str, ...], message: str) -> None:
    outcome = invoke("sample", run, *QUICK, *given)
    assert outcome.code == 2
    assert message in outcome.error


def test_a_checkpoint_named_behind_it_is_told_from_a_length(run: Path) -> None:
    outcome = invoke("sample", "--ema", run)
    assert outcome.code == 2
    assert f"--ema takes a length, got the path {run}; name the checkpoint before --ema" in outcome.error


def test_a_checkpoint_alone_has_what_was_stored_and_says_what_it_lacks(run: Path, tmp_path: Path) -> None:
    newest = RunFolder(run).latest()
    assert newest is not None
    alone = shutil.copy(newest, tmp_path / "alone.safetensors")
    expected = drawn(run, tmp_path / "a", "--ema", "0.05")
    assert np.array_equal(drawn(Path(alone), tmp_path / "b", "--ema", "0.05"), expected)
    outcome = invoke("sample", alone, *QUICK, "--ema", "0.15")
    assert outcome.code == 2
    assert "is found from the snapshots of a run, and there are none" in outcome.error


def test_a_run_without_profiles_says_so(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "--set", "training.ema_profiles=[]")
    assert not (run / "ema").exists()
    outcome = invoke("likelihood", run, "--ema", "0.05")
    assert outcome.code == 2
    assert "the run kept no averages by a power of time; train with `training.ema_profiles`" in outcome.error


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.ema_profiles=[0.5]", "in `training`: the length of an average must be in (0, 0.2887), got 0.5"),
        ("training.ema_decay=[]", "in `training`: `ema_decay` must be one or more rates, got none"),
    ],
)
def test_averages_that_cannot_be_trained_are_one_line(tmp_path: Path, setting: str, message: str) -> None:
    outcome = invoke("train", "--set", setting, "--out", tmp_path)
    assert outcome.code == 2
    assert message in outcome.error


def test_a_checkpoint_from_before_the_profiles_serves_and_goes_on(run: Path, tmp_path: Path) -> None:
    newest = RunFolder(run).latest()
    assert newest is not None
    stored = load_checkpoint(newest)
    tensors = {name: value for name, value in stored.tensors.items() if not name.startswith(("ema_p", "ema_d"))}
    meta = deepcopy(stored.meta)
    options = meta["config"]["training"]
    options["ema_decay"] = 0.35  # a number, as it was
    del options["ema_profiles"], options["snapshot_every"]
    old = tmp_path / "old"
    save_checkpoint(old / "checkpoints" / newest.name, Checkpoint(tensors, meta))
    expected = drawn(run, tmp_path / "a")
    for which in ((), ("--ema", "0.35")):
        assert np.array_equal(drawn(old, tmp_path / f"b{len(which)}", *which), expected)
    outcome = invoke("sample", old, "--ema", "0.05")
    assert outcome.code == 2
    assert "the run kept no averages by a power of time" in outcome.error
    again = succeed("train", *POINTS, "--set", "training.ema_decay=0.35", "--steps", 8, "--out", old)
    assert f"resuming {old} from step 6 to 8" in again.out
    assert not RunFolder(old).snapshots()
