"""Runs trained on the bins' centres and with a flow: scoring by what fits, and by what does not."""

import json
from pathlib import Path

import pytest
import torch

from sde_diffusion.commands.session import load
from sde_diffusion.commands.verify import _examine
from tests.commands.running import TINY, invoke, succeed, train
from tests.commands.test_likelihood import LOOSE

CONTINUOUS = ("--set", "data=two_moons", "--set", "model.network={name: mlp, width: 8, depth: 1}")


@pytest.fixture(scope="module")
def with_flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the digits with a flow beside the model, which is also to score it."""
    flow = ("--set", "training.dequantise={name: flow, width: 4}", "--set", "likelihood.dequantisation=flow")
    return train(tmp_path_factory.mktemp("runs") / "flow", *flow)


@pytest.fixture(scope="module")
def on_centres(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the centres of the bins."""
    return train(tmp_path_factory.mktemp("runs") / "centres", "--set", "training.dequantise=centre")


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on continuous data."""
    return train(tmp_path_factory.mktemp("runs") / "points", base=(*TINY[2:], *CONTINUOUS))


def test_a_run_with_a_flow_is_scored_by_it(tmp_path: Path, with_flow: Path) -> None:
    outcome = succeed("likelihood", with_flow, *LOOSE, "--limit", 3, "--no-reference", "--out", tmp_path)
    told = json.loads((tmp_path / "likelihood.json").read_text())
    assert told["config"]["likelihood"]["dequantisation"]["name"] == "flow"
    assert "u from the flow trained with the model" in told["units"]
    assert "fits it" not in outcome.out
    other = succeed("likelihood", with_flow, *LOOSE, "--limit", 3, "--no-reference", "--dequantisation", "uniform")
    assert "was trained on noise of a flow: likelihood.dequantisation=flow fits it, uniform noise costs" in other.out
    (path,) = with_flow.glob("likelihood_test_seed0_uniform_*/likelihood.json")
    plain = json.loads(path.read_text())
    assert plain["bits_per_dim"] != told["bits_per_dim"]


def test_the_flow_works_with_coupled_draws_and_a_tolerance(tmp_path: Path, with_flow: Path) -> None:
    coupled = ("--draws", 2, "--coupling", "antithetic", "--limit", 8, "--tol", 0.5)
    outcome = succeed("likelihood", with_flow, *LOOSE, *coupled, "--out", tmp_path)
    assert "2 antithetic draws in a replicate" in outcome.out


def test_the_ledger_has_a_row_of_it(tmp_path: Path, with_flow: Path, trained: Path) -> None:
    cheap = ("--set", "likelihood.ledger={draws: 2, importance_draws: 2, chain_steps: [3]}", "--limit", 2)
    succeed("likelihood", with_flow, *LOOSE, *cheap, "--ledger", "--out", tmp_path / "flow")
    rows = {row["name"]: row for row in json.loads((tmp_path / "flow" / "ledger.json").read_text())["rows"]}
    assert rows["flow, learned noise"]["mean"] != rows["flow, uniform"]["mean"]
    assert "≤ the learned noise's row" in rows["flow, 2 weighted draws"]["bounds"]
    succeed("likelihood", trained, *LOOSE, *cheap, "--ledger", "--out", tmp_path / "plain")
    assert "flow, learned noise" not in (tmp_path / "plain" / "ledger.json").read_text()


def test_verify_examines_a_run_on_points_as_it_was_trained_on(with_flow: Path, on_centres: Path) -> None:
    flow, centres = (_examine(load(run, device="cpu")).held_out for run in (with_flow, on_centres))
    inside = 17 / 2 * (flow - centres) + 0.5
    torch.testing.assert_close((centres + 1) * 17 / 2 % 1, torch.full_like(centres, 0.5), rtol=0, atol=1e-5)
    assert 0 <= inside.min() < 0.01
    assert 0.99 < inside.max() <= 1


def test_a_run_on_centres_says_what_fits_it(on_centres: Path) -> None:
    run = on_centres
    told = succeed("likelihood", run, *LOOSE, "--limit", 2, "--no-reference").out
    assert "trained on the centres of the bins: likelihood.dequantisation=truncated_normal fits it" in told
    fitting = ("--dequantisation", "truncated_normal")
    assert "fits it" not in succeed("likelihood", run, *LOOSE, "--limit", 2, "--no-reference", *fitting).out


def test_a_flow_cannot_be_taken_from_a_run_without_one(trained: Path) -> None:
    outcome = invoke("likelihood", trained, "--dequantisation", "flow")
    assert outcome.code == 2
    assert "`likelihood.dequantisation` must not be flow for this checkpoint: it was trained without" in outcome.error
    outcome = invoke("likelihood", trained, "--set", "training.dequantise=flow")
    assert outcome.code == 2
    assert "`training.dequantise.name` is uniform in the checkpoint" in outcome.error


@pytest.mark.parametrize("noise", ["flow", "truncated_normal"])
def test_continuous_data_have_no_bins_to_score(points: Path, noise: str) -> None:
    outcome = invoke("likelihood", points, "--dequantisation", noise)
    assert outcome.code == 2
    assert "`dequantisation` must be uniform for two_moons: its values are continuous" in outcome.error


def test_continuous_data_have_no_bins_to_train_in(tmp_path: Path) -> None:
    outcome = invoke("train", *CONTINUOUS, "--set", "training.dequantise=flow", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "`training.dequantise` must be uniform for two_moons" in outcome.error


def test_other_losses_do_not_weigh_a_flow(tmp_path: Path) -> None:
    options = ("--set", "training.dequantise=flow", "--set", "loss.weighting=simple")
    outcome = invoke("train", *options, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "`loss.weighting` likelihood and" in outcome.error
