"""A folder keeps the results that it has: the same request is not made again, and another one is refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands.running import Outcome, invoke, succeed

LOOSE = ("--rtol", 0.1, "--atol", 0.1)
SHORT = ("--solver", "ddim", "--steps", 2)
CHEAP = "likelihood.ledger={draws: 2, importance_draws: 2, chain_steps: [3]}"
COMMANDS: dict[str, tuple[object, ...]] = {
    "sample": ("--count", 3, *SHORT),
    "encode": ("--limit", 2, *SHORT),
    "decode": ("--latents", "LATENTS", *SHORT),
    "interpolate": ("--pair", 0, 1, "--frames", 2, *SHORT),
    "likelihood": ("--limit", 2, *LOOSE, "--no-reference"),
    "tolerance": ("--tol", 500, "--limit", 2, *LOOSE),
    "ledger": ("--ledger", "--limit", 1, *LOOSE, "--set", CHEAP),
}
OTHER = {"decode": ("--clip",)}
"""Options of another request; of most commands another seed."""


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latents") / "z.npy"
    np.save(path, np.random.default_rng(0).standard_normal((2, 1, 8, 8), dtype=np.float32))
    return path


def words(name: str, run: Path, latents: Path, *more: object) -> tuple[object, ...]:
    command = "likelihood" if name in ("tolerance", "ledger") else name
    options = [latents if word == "LATENTS" else word for word in COMMANDS[name]]
    return (command, run, *options, *more)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(outcome: Outcome) -> str:
    assert outcome.code == 2
    return outcome.error


@pytest.mark.parametrize("name", COMMANDS)
def test_results_are_kept_reused_and_replaced_when_told(
    name: str, tmp_path: Path, trained: Path, latents: Path
) -> None:
    out = tmp_path / "out"
    start = words(name, trained, latents, "--out", out)
    other = OTHER.get(name, ("--seed", 7))
    succeed(*start)
    first = files(out)
    assert "unfinished.json" not in first
    again = succeed(*start, "--batch", 1)
    assert f"{out} already holds these results; --overwrite makes them again" in again.out
    assert files(out) == first
    error = refused(invoke(*start, *other))
    assert f"{out} has results of another request (`config." in error
    assert "add --overwrite to replace them" in error
    assert files(out) == first
    succeed(*start, *other, "--overwrite")
    replaced = files(out)
    assert replaced.keys() == first.keys()
    assert replaced != first


def test_fewer_samples_do_not_replace_more(tmp_path: Path, trained: Path) -> None:
    out = tmp_path / "out"
    start = ("sample", trained, *SHORT, "--out", out)
    succeed(*start, "--count", 5)
    five = np.load(out / "samples.npz")["samples"]
    assert "`config.sampling.count` is 5 there, not 2" in refused(invoke(*start, "--count", 2))
    succeed(*start, "--count", 7)
    np.testing.assert_array_equal(np.load(out / "samples.npz")["samples"][:5], five)


def test_a_file_is_another_request_than_a_split(tmp_path: Path, trained: Path) -> None:
    np.save(tmp_path / "mine.npy", np.zeros((2, 1, 8, 8), dtype=np.int64))
    start = ("encode", trained, *SHORT, "--limit", 2, "--out", tmp_path / "out")
    succeed(*start)
    assert "results of another request" in refused(invoke(*start, "--file", tmp_path / "mine.npy"))


def test_what_no_json_describes_is_not_replaced(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "samples.npz").write_bytes(b"mine")
    error = refused(invoke("sample", trained, *SHORT, "--count", 2, "--out", tmp_path))
    assert "has samples.npz, and no sample.json says of what" in error
    assert files(tmp_path) == {"samples.npz": b"mine"}


def test_a_missing_picture_is_drawn_again(tmp_path: Path, trained: Path) -> None:
    start = ("sample", trained, *SHORT, "--count", 2, "--out", tmp_path)
    succeed(*start)
    (tmp_path / "samples.png").unlink()
    succeed(*start)
    assert (tmp_path / "samples.png").exists()
    succeed(*start, "--trajectory")
    assert (tmp_path / "trajectory.png").exists()


def test_a_run_that_went_on_replaces_its_own_results(tmp_path: Path, trained: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    start = ("sample", run, *SHORT, "--count", 2)
    succeed(*start)
    (path,) = run.glob("sample_*/sample.json")
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"checkpoint_sha256": "another", "step": 1}))
    assert "which are of another model" in succeed(*start).err
    assert json.loads(path.read_text())["checkpoint_sha256"] == told["checkpoint_sha256"]
    assert "another request" in refused(invoke(*start, "--out", path.parent, "--seed", 3))


def test_two_at_once_do_not_mix(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes as the first is about to draw its picture."""

    module: Any = sys.modules["sde_diffusion.commands.sample"]
    draw, second = module.save_samples, []
    start = ("sample", trained, *SHORT, "--count", 2, "--out", tmp_path / "both")

    def comes(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(module, "save_samples", draw)
        second.append(invoke(*start, "--seed", 1))
        draw(*args, **kwargs)

    monkeypatch.setattr(module, "save_samples", comes)
    succeed(*start, "--seed", 0)
    assert "another process is writing other results to" in refused(second[0])
    assert json.loads((tmp_path / "both" / "sample.json").read_text())["config"]["seed"] == 0


def test_a_refused_command_leaves_nothing_behind(tmp_path: Path, trained: Path) -> None:
    out = tmp_path / "out"
    failing = ("--solver", "ode", "--set", "sampling.solver.max_nfe=3", "--count", 2)
    assert invoke("sample", trained, *failing, "--out", out).code == 2
    assert not out.exists()
