"""DDPM from end to end: a chain of 12 levels with a learned variance, sampled and scored; and what cannot work."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.commands.running import TINY, invoke, succeed, train

CHAIN = (
    *("--sde", "ddpm", "--set", "sde.steps=12"),
    *("--set", "loss.time_sampler=discrete", "--set", "loss.weighting=simple"),
    *("--set", "training.preview={name: ddim, steps: 2}"),
)
LEARNED = ("--set", "model.learned_variance=true", "--set", "loss.objective=hybrid", "--set", "model.conditioning=step")


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a learned variance."""
    return train(tmp_path_factory.mktemp("runs") / "ddpm", *CHAIN, *LEARNED)


@pytest.mark.parametrize(
    ("options", "nfe"),
    [
        (("--solver", "ancestral", "--steps", 11, "--grid", "levels"), 12),
        (("--solver", "ancestral", "--steps", 4, "--grid", "levels", "--clip"), 5),
        (("--solver", "ddim", "--steps", 5, "--grid", "levels"), 6),
    ],
)
@pytest.mark.parametrize("variance", ["learned", "large"])
def test_samples_on_all_levels_and_on_some(
    tmp_path: Path, ddpm: Path, options: tuple[object, ...], nfe: int, variance: str
) -> None:
    if "ancestral" in options:
        options = (*options, "--set", f"sampling.solver.variance={variance}")
    outcome = succeed("sample", ddpm, *options, "--count", 3, "--out", tmp_path)
    assert f"3 samples, {nfe} score evaluations each" in outcome.out
    with np.load(tmp_path / "samples.npz") as stored:
        assert stored["samples"].shape == (3, 1, 8, 8)


def test_the_ledger_has_the_published_chain_by_each_variance(tmp_path: Path, ddpm: Path) -> None:
    options = (
        "--limit",
        4,
        "--rtol",
        1e-2,
        "--atol",
        1e-2,
        "--set",
        "likelihood.ledger={draws: 4, importance_draws: 2}",
    )
    outcome = succeed("likelihood", ddpm, "--ledger", *options, "--out", tmp_path)
    rows = {row["name"]: row for row in json.loads((tmp_path / "ledger.json").read_text())["rows"]}
    for name in ("DDPM, Σ = β̃", "DDPM, Σ = β", "DDPM, Σ learned"):
        assert name in outcome.out
        assert rows[name]["nfe"] == 5
        assert rows[name]["half_width"] > 0
        assert "the published chain of 12" in rows[name]["bounds"]


@pytest.mark.parametrize("objective", ["hybrid", "vlb"])
def test_both_heads_learn_and_a_run_resumes(tmp_path: Path, objective: str) -> None:
    more = (*CHAIN, *LEARNED, "--set", f"loss.objective={objective}", "--set", "training.precision=bfloat16")
    train(tmp_path / "run", *more)
    assert "from step 2 to 3" in invoke("train", *TINY, "--steps", 3, "--out", tmp_path / "run", *more).out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sde", "ddpm", "--set", "sde.steps=1"), "`steps` of a chain must be ≥ 2, got 1"),
        (
            ("--sde", "ddpm", "--set", "sde.beta.last=1"),
            "`last` must be < 1, for β is the share of the variance made new",
        ),
        (("--sde", "ddpm", "--set", "sde.beta.first=0"), "`first` must be > 0, got 0.0"),
        (("--set", "loss.time_sampler=discrete"), "time sampler `discrete` needs a process with levels, such as ddpm"),
        (("--set", "model.conditioning=step"), "take log_snr or time, or a process with levels such as ddpm"),
        ((*CHAIN, "--set", "loss.objective=vlb"), "the model has one head; set model.learned_variance = true"),
        ((*CHAIN, "--set", "model.learned_variance=true"), "take loss.objective = hybrid or vlb"),
        (LEARNED[:4], "is a bound of a chain, and the process has no levels; take sde = ddpm"),
        ((*CHAIN, *LEARNED, "--set", "loss.time_sampler=uniform"), "take discrete or loss_second_moment"),
    ],
)
def test_training_that_cannot_work_is_refused(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    outcome = invoke("train", *TINY, *options, "--steps", 1, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert message in outcome.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--solver", "ancestral", "--grid", "levels", "--steps", 4), "needs a process with levels, such as ddpm"),
        (
            ("--solver", "ancestral", "--steps", 4, "--set", "sampling.solver.variance=learned"),
            "a learned variance needs a model of two heads, but this one has one; train one",
        ),
    ],
)
def test_sampling_that_cannot_work_is_refused(
    tmp_path: Path, trained: Path, options: tuple[object, ...], message: str
) -> None:
    outcome = invoke("sample", trained, *options, "--count", 2, "--out", tmp_path)
    assert outcome.code == 2
    assert message in outcome.error


def test_more_steps_than_levels_are_refused(tmp_path: Path, ddpm: Path) -> None:
    outcome = invoke("sample", ddpm, "--solver", "ddim", "--steps", 12, "--grid", "levels", "--out", tmp_path)
    assert outcome.code == 2
    assert "`steps` of the grid `levels` must be ≤ 11, the steps from level 12 to 1, got 12" in outcome.error
