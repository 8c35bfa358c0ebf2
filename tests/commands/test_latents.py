"""Latent diffusion from the shipped config: train, sample by class, score; pictures of four channels."""

from pathlib import Path

import numpy as np
import pytest

from tests.commands.running import invoke, succeed
from tests.data.test_latents import MEANS, STDS, N, write

CONFIG = Path(__file__).parents[2] / "configs" / "latents_vp.yaml"
SMALL = (
    *("--set", "model.network.depth=1", "--set", "model.network.width=16", "--set", "training.batch=8"),
    *("--set", "training.preview={rtol: 0.1, atol: 0.1}", "--set", "training.preview_count=2"),
    *("--set", "training.validation_examples=4", "--steps", "2"),
)


@pytest.mark.parametrize("gaussian", [False, True])
def test_latents_are_trained_on_sampled_and_scored(tmp_path: Path, gaussian: bool) -> None:
    labels = {"labels": np.arange(N) % 2}
    root = write(tmp_path / "latents", **({"mean": MEANS, "std": STDS} if gaussian else {"x": MEANS}), **labels)
    run = tmp_path / "run"
    outcome = succeed("train", "--config", CONFIG, *SMALL, "--set", f"data.root={root}", "--out", run)
    assert "latents: 36 examples of shape (4, 3, 2); vp" in outcome.out
    assert list((run / "samples").glob("*.png"))
    solver = ("--solver", "ode", "--rtol", 0.1, "--atol", 0.1)
    succeed("sample", run, "--count", 64, "--label", 1, *solver, "--out", tmp_path / "s")
    with np.load(tmp_path / "s" / "samples.npz") as stored:
        samples = stored["samples"]
    assert samples.shape == (64, 4, 3, 2)
    spread = np.sqrt(MEANS.var((0, 2, 3)) + gaussian * np.square(STDS).mean((0, 2, 3)))
    # a network of two steps is near zero, which for v leaves N(0, 1) in model coordinates: mean and scale of the files
    assert np.abs(samples.mean((0, 2, 3)) - MEANS.mean((0, 2, 3))).max() < spread.max()
    assert (np.abs(np.log(samples.std((0, 2, 3)) / spread)) < 0.5).all()
    outcome = succeed("likelihood", run, *("--limit", 4, "--rtol", 0.1, "--atol", 0.1), "--out", tmp_path / "l")
    assert "of continuous values: density of y" in outcome.out


def test_flips_of_latents_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "latents", x=MEANS, labels=np.arange(N) % 2)
    options = ("--set", f"data.root={root}", "--set", "training.flip=true", "--out", tmp_path / "run")
    outcome = invoke("train", "--config", CONFIG, *SMALL, *options)
    assert outcome.code == 2
    assert "`flip` must be false for latents: it mirrors images" in outcome.error
