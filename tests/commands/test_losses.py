"""`train` with the weightings and time samplers: what runs, goes on as if nothing had happened, or is refused."""

import re
from pathlib import Path

import pytest

from sde_diffusion.training import RunFolder
from tests.commands.running import TINY, invoke, succeed, train
from tests.training.tiny import last_checkpoint, one_thread, same_bits, timeless_metrics

LEARNING = (
    *("--set", "loss.weighting={name: uncertainty, base: min_snr}"),
    *("--set", "loss.time_sampler={name: loss_second_moment, bins: 8, history: 2}"),
    *("--set", "training.decay=constant", "--set", "training.save_every=2", "--set", "training.log_every=1"),
)


def test_a_run_that_learns_its_weights_and_times_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    with one_thread():
        whole, halves = train(tmp_path / "whole", *LEARNING, steps=4), train(tmp_path / "halves", *LEARNING, steps=2)
        outcome = succeed("train", *TINY, *LEARNING, "--steps", 4, "--out", halves)
    assert "from step 2 to 4" in outcome.out
    assert same_bits(last_checkpoint(whole), last_checkpoint(halves))
    for run in (whole, halves):
        row = timeless_metrics(run)[-1]
        assert row["trained_loss"] != row["loss"]
        assert len(row["log_variance_by_t"]) == 10
    assert last_checkpoint(whole).tensors["time_sampler.state"].shape == (8, 3)
    succeed("sample", whole, "--solver", "em", "--steps", 1, "--count", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("loss.weighting={name: min_snr, gamma: 0}",), r"in `loss.weighting`: `gamma` must be > 0, got 0.0"),
        (("loss.weighting=min_srn",), r"unknown loss.weighting 'min_srn'; did you mean 'min_snr'\? known: simple, "),
        (("loss.weighting={name: edm, p_mean: 40}",), r"`p_mean` = 40 with `p_std` = 1.2 must put at least 1% of the"),
        (("loss.time_sampler={name: log_normal, p_mean: -40}",), r"ln\(σ/a\) goes from -6.9\d* to 5.\d*: choose `p_m"),
        (
            ("loss.weighting=snr_plus_one",),
            r"`loss.time_sampler` importance draws times where .* take stratified or loss_",
        ),
        (
            ("loss.weighting={name: uncertainty, base: uncertainty}",),
            r"in `loss.weighting`: `base` must be a weighting without a learned part, got `uncertainty` again",
        ),
        (
            ("loss.time_sampler=loss_second_moment",),
            r"must see each of 100 levels 10 times before it learns, got 32 draws in all; give more training.steps",
        ),
        (
            (
                *("sde={name: ddpm, steps: 3}", "model.learned_variance=true", "loss.objective=hybrid"),
                *("loss.time_sampler=discrete", "loss.weighting=uncertainty"),
            ),
            r"`loss.weighting` uncertainty divides by the expected error of ε, which is not all of this loss.objective",
        ),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["", "dry"])
def test_what_cannot_work_is_one_line(
    tmp_path: Path, options: tuple[str, ...], message: str, dry: tuple[str, ...]
) -> None:
    settings = [part for option in options for part in ("--set", option)]
    outcome = invoke("train", *TINY, *settings, "--steps", 2, "--out", tmp_path / "run", *dry)
    assert outcome.code == 2
    assert re.search(message, outcome.error), outcome.error
    assert not RunFolder(tmp_path / "run").checkpoints()
