"""`sample`: three solvers, the same sample i for every batch size, and files that say how to make them again."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image

from sde_diffusion.commands.growing import GrowingArrays
from sde_diffusion.training import RunFolder
from tests.commands.running import TINY, invoke, succeed, train
from tests.training.test_trainer import Killed

SOLVERS = {
    "em": ("--solver", "em", "--steps", 10),
    "ancestral": ("--solver", "ancestral", "--steps", 10, "--grid", "log_snr"),
    "ode": ("--solver", "ode", "--rtol", 1e-2, "--atol", 1e-2),
}


def arrays(folder: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(folder / "samples.npz") as stored:
        return dict(stored)


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sample.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_do_not_depend_on_the_batch_and_come_with_pictures_and_facts(
    tmp_path: Path, trained: Path, solver: str
) -> None:
    for batch in (7, 3):
        out = tmp_path / str(batch)
        outcome = succeed(
            "sample", trained, *SOLVERS[solver], "--count", 7, "--batch", batch, "--trajectory", "--out", out
        )
        assert {file.name for file in out.iterdir()} == {"samples.png", "samples.npz", "sample.json", "trajectory.png"}
        values = arrays(out)["samples"]
        assert (values.shape, values.dtype) == ((7, 1, 8, 8), np.uint8)
        assert values.max() <= 16, "in data units"
        with Image.open(out / "samples.png") as image:
            assert image.size == (2 * 50 + 2, 4 * 50 + 2)
        with Image.open(out / "trajectory.png") as image:
            assert image.height == 50 * min(batch, 7) + 2
        assert "using" in outcome.out
        assert f"wrote {out / 'samples.png'}, samples.npz, sample.json, trajectory.png" in outcome.out
    one, other = (arrays(tmp_path / str(batch))["samples"].astype(int) for batch in (7, 3))
    if solver == "ode":  # companions share its steps: the same to the tolerance
        assert np.abs(one - other).max() <= 1
    else:  # a sum in another order can move a value over the edge of a level
        assert (one != other).mean() < 0.01
    nfe = facts(tmp_path / "7")["nfe"]
    assert nfe == [11, 11] if solver != "ode" else 6 <= nfe[0] <= nfe[1]


def test_the_json_is_enough_to_make_the_samples_again(tmp_path: Path, trained: Path) -> None:
    options = ("--solver", "ancestral", "--steps", 7, "--count", 5, "--seed", 3, "--t-end", 0.01)
    succeed("sample", trained, *options, "--no-denoise", "--clip", "--no-ema", "--out", tmp_path / "a")
    told = facts(tmp_path / "a")
    assert told["shape"] == [5, 1, 8, 8]
    assert told["ema"] is False
    assert "17 levels" in told["units"]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(told["config"]))
    ema = "--ema" if told["ema"] else "--no-ema"
    command = ("sample", told["checkpoint"], "--config", tmp_path / "again.yaml", "--device", told["device"], ema)
    succeed(*command, "--out", tmp_path / "b")
    assert np.array_equal(arrays(tmp_path / "a")["samples"], arrays(tmp_path / "b")["samples"])
    again = facts(tmp_path / "b")
    assert {**again, "seconds": 0} == {**told, "seconds": 0}


def test_options_change_the_samples(tmp_path: Path, trained: Path) -> None:
    base = ("sample", trained, "--solver", "em", "--steps", 5, "--count", 2)
    found = []
    for i, more in enumerate([(), ("--seed", 1), ("--steps", 6), ("--t-end", 0.2, "--no-denoise")]):
        succeed(*base, *more, "--out", tmp_path / str(i))
        found.append(arrays(tmp_path / str(i))["samples"].tobytes())
    assert len(set(found)) == len(found)


def test_labels_choose_the_class(tmp_path: Path, labelled: Path) -> None:
    base = ("sample", labelled, "--solver", "em", "--steps", 3, "--count", 4)
    succeed(*base, "--label", 7, "--out", tmp_path / "seven")
    assert arrays(tmp_path / "seven")["labels"].tolist() == [7] * 4
    succeed(*base, "--out", tmp_path / "none")
    assert "labels" not in arrays(tmp_path / "none")


def killed_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Kill the process after so many batches."""
    inner = GrowingArrays.put

    def put(store: GrowingArrays, first: int, **rows: Any) -> None:
        inner(store, first, **rows)
        nonlocal batches
        batches -= 1
        if not batches:
            raise Killed

    monkeypatch.setattr(GrowingArrays, "put", put)


def counting(monkeypatch: pytest.MonkeyPatch, command: str, name: str, size: Callable[..., int]) -> list[int]:
    """Sizes of the calls of a function in the module of a command."""
    module = sys.modules[f"sde_diffusion.commands.{command}"]  # the package holds the command by this name
    inner, sizes = getattr(module, name), []

    def call(*arguments: Any, **options: Any) -> Any:
        sizes.append(size(*arguments, **options))
        return inner(*arguments, **options)

    monkeypatch.setattr(module, name, call)
    return sizes


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("sample", trained, "--solver", "em", "--steps", 4, "--count", 10, "--batch", 3, "--trajectory")
    succeed(*options, "--out", tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(Killed):
            invoke(*options, "--out", tmp_path / "killed")
    assert not (tmp_path / "killed" / "samples.npz").exists()
    sizes = counting(monkeypatch, "sample", "draw", lambda *arguments, **_: arguments[3][0])
    succeed(*options, "--out", tmp_path / "killed")
    assert sizes == [3, 1, 8], "the rest, and the first 8 for the strip"
    assert np.array_equal(arrays(tmp_path / "whole")["samples"], arrays(tmp_path / "killed")["samples"])
    assert {file.name for file in (tmp_path / "killed").iterdir()} == {
        file.name for file in (tmp_path / "whole").iterdir()
    }


def test_what_was_drawn_for_another_seed_is_not_taken_up(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("sample", trained, "--solver", "em", "--steps", 2, "--count", 4, "--batch", 2)
    with monkeypatch.context() as patch:
        killed_after(patch, 1)
        with pytest.raises(Killed):
            invoke(*options, "--seed", 1, "--out", tmp_path / "a")
    for seed, folder in ((2, "a"), (2, "b")):
        succeed(*options, "--seed", seed, "--out", tmp_path / folder)
    assert np.array_equal(arrays(tmp_path / "a")["samples"], arrays(tmp_path / "b")["samples"])


def test_the_newest_run_is_used_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = invoke("sample")
    assert outcome.code == 2
    assert outcome.error == "error: there is no checkpoint in runs; train one first: python cli.py train --sde vp"
    for i, name in enumerate(("new", "old")):
        path = RunFolder(train(Path("runs") / name, "--set", "training.sample_every=0", steps=1)).checkpoints()[0]
        os.utime(path, (1e9 - i, 1e9 - i))
    (tmp_path / "runs" / "half" / "checkpoints").mkdir(parents=True)
    outcome = succeed("sample", "--solver", "em", "--steps", 1, "--count", 1)
    assert "using runs/new/checkpoints/step_00000001.safetensors (step 1, digits, vp) on cpu" in outcome.out
    assert (tmp_path / "runs" / "new" / "sample_em_seed0_steps1" / "samples.png").exists()
    assert "using runs/old" in succeed("sample", "runs/old", "--solver", "em", "--steps", 1, "--count", 1).out
    assert "no checkpoint in runs/half" in invoke("sample", "runs/half").error
    moved = (tmp_path / "runs" / "old" / "checkpoints" / "step_00000001.safetensors").rename(tmp_path / "one_file")
    assert "using" in succeed("sample", moved, "--solver", "em", "--steps", 1, "--count", 1).out, "needs no other file"


def test_dry_run_prints_the_section_and_draws_nothing(tmp_path: Path, trained: Path) -> None:
    outcome = succeed("sample", trained, "--solver", "em", "--steps", 12, "--out", tmp_path / "out", "--dry-run")
    solver = yaml.safe_load(outcome.out)["sampling"]["solver"]
    assert (solver["name"], solver["steps"], solver["grid"]) == ("em", 12, {"name": "uniform"})
    assert outcome.out.startswith("# using")
    assert not (tmp_path / "out").exists()


def test_the_grid_by_a_flag_keeps_options_set_by_their_keys(trained: Path) -> None:
    for named in (["--solver", "ddim"], ["--set", "sampling.solver.name=ddim"]):
        options = (*named, "--grid", "karras", "--set", "sampling.solver.grid.rho=5", "--set", "sampling.solver.eta=1")
        solver = yaml.safe_load(succeed("sample", trained, *options, "--dry-run").out)["sampling"]["solver"]
        assert (solver["name"], solver["eta"], solver["grid"]) == ("ddim", 1.0, {"name": "karras", "rho": 5.0})


@pytest.mark.parametrize("key", ["sde.t_min=1e-4", "model.prediction=x0", "model.network.channels=4", "data=two_moons"])
def test_what_the_weights_fix_cannot_be_changed(trained: Path, key: str) -> None:
    outcome = invoke("sample", trained, "--set", key)
    assert outcome.code == 2
    assert "cannot be changed" in outcome.error


def test_points_are_drawn_too(tmp_path: Path) -> None:
    options = ("--set", "data=two_moons", "--set", "model.network=mlp", "--set", "model.sigma_data=1")
    run = train(tmp_path / "run", *options, "--set", "training.sample_every=0", base=TINY[2:], steps=1)
    succeed("sample", run, "--solver", "em", "--steps", 3, "--count", 20, "--trajectory", "--out", tmp_path / "out")
    assert arrays(tmp_path / "out")["samples"].shape == (20, 2)
    assert (tmp_path / "out" / "trajectory.png").exists()


def test_an_error_before_the_first_sample_leaves_no_partial_results(tmp_path: Path, trained: Path) -> None:
    outcome = invoke("sample", trained, "--t-end", 1e-6, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert not (tmp_path / "out" / "samples.npz").exists()


@pytest.mark.parametrize(
    ("options", "solver", "steps", "nfe"),
    [
        ((), "unipc", 9, 10),
        (("--solver", "heun"), "heun", 4, 9),
        (("--solver", "em", "--grid", "log_snr"), "em", 9, 10),
        (("--solver", "em", "--no-denoise"), "em", 10, 10),
        (("--set", "sampling.solver={name: ddim, eta: 0.5}"), "ddim", 9, 10),
    ],
)
def test_a_budget_is_spent(
    tmp_path: Path, trained: Path, options: tuple[str, ...], solver: str, steps: int, nfe: int
) -> None:
    succeed("sample", trained, "--nfe", 10, *options, "--count", 2, "--out", tmp_path)
    told = facts(tmp_path)
    assert told["nfe"] == [nfe, nfe]
    chosen = told["config"]["sampling"]
    assert (chosen["solver"]["name"], chosen["solver"]["steps"]) == (solver, steps)
    assert (chosen["t_end"] is not None) == (not options), "a named solver keeps its end"


def test_a_budget_goes_to_the_solver_that_the_config_file_names(tmp_path: Path, trained: Path) -> None:
    file = tmp_path / "config.yaml"
    for text, name, steps in (
        ("sampling: {solver: heun}", "heun", 4),
        ("sampling: {solver: em}", "em", 9),
        ("sampling: {count: 3}", "unipc", 9),
    ):
        file.write_text(text)
        told = yaml.safe_load(succeed("sample", trained, "--nfe", 10, "--config", file, "--dry-run").out)["sampling"]
        assert (told["solver"]["name"], told["solver"]["steps"]) == (name, steps)


def test_a_budget_of_one_has_no_denoising_and_a_given_end_stays(tmp_path: Path, trained: Path) -> None:
    one = yaml.safe_load(succeed("sample", trained, "--nfe", 1, "--dry-run").out)["sampling"]
    assert (one["solver"]["steps"], one["denoise"], one["t_end"]) == (1, False, None)
    ended = yaml.safe_load(succeed("sample", trained, "--nfe", 8, "--t-end", 0.01, "--dry-run").out)["sampling"]
    assert (ended["solver"]["steps"], ended["denoise"], ended["t_end"]) == (7, True, 0.01)
