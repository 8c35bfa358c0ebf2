"""`likelihood --label`: log p(x | y) of a conditional model, by every way of scoring."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sde_diffusion.data import DATASETS
from tests.commands.running import invoke, succeed, train

LOOSE = ("--limit", 6, "--batch", 4, "--rtol", 1e-2, "--atol", 1e-2)
SPENT = "likelihood.ledger={draws: 2, importance_draws: 2, chain_steps: [3]}"
WAYS = {
    "all": ("bits_per_dim", ("per_image",), ("--no-reference", "--replicates", 2)),
    "tol": ("bits_per_dim", ("scores",), ("--tol", 100)),
    "ledger": ("bits", ("ledger/flow_uniform", "ledger/chain_of_3"), ("--ledger", "--set", SPENT)),
}


@pytest.mark.parametrize("way", WAYS)
def test_own_labels_score_each_example_as_its_class_does(tmp_path: Path, labelled: Path, way: str) -> None:
    column, files, options = WAYS[way]
    labels = DATASETS["digits"]().load("test").fetch(torch.arange(6))[1]
    assert labels is not None
    own = labels.numpy()
    for label in ("own", own[0], -1):
        out = succeed("likelihood", labelled, *LOOSE, *options, "--label", label, "--out", tmp_path / str(label)).out
        assert ("given their own labels" in out) == (label == "own")
    for file in files:
        found = {label: arrays(tmp_path / str(label) / f"{file}.npz") for label in ("own", own[0], -1)}
        alike = own[found["own"]["index"]] == own[0]
        assert alike.any()
        assert not alike.all()
        np.testing.assert_array_equal(found["own"]["index"], found[own[0]]["index"])
        for label, same in ((own[0], alike), (-1, np.zeros_like(alike))):
            apart = np.abs(found["own"][column] - found[label][column])
            assert apart[same].max(initial=0) < 2e-5, "rounding, which companions in a batch decide"
            assert np.median(apart[~same]) > 1e-4


def arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path) as stored:
        return dict(stored)


def test_a_label_is_kept_in_the_facts_and_asked_of_conditional_models_alone(
    tmp_path: Path, labelled: Path, trained: Path
) -> None:
    succeed("likelihood", labelled, *LOOSE[:2], "--rtol", 0.1, "--atol", 0.1, "--no-reference", "--label", "own")
    (folder,) = labelled.glob("likelihood_test_seed0_*_label-own")
    assert json.loads((folder / "likelihood.json").read_text())["config"]["likelihood"]["label"] is None
    file = tmp_path / "mine.npy"
    np.save(file, np.zeros((2, 1, 8, 8), np.uint8))
    certain = train(
        tmp_path / "certain", "--set", "model.conditional=true", "--set", "training.label_dropout=0", steps=1
    )
    for run, options, message in (
        (trained, ("--label", "own"), "--label own needs a model that was trained with labels"),
        (trained, ("--label", 3), "`label` must be −1 (none): the network has no classes, got 3"),
        (labelled, ("--label", 12), "`label` must be from 0 to 9, or −1 for none, got 12"),
        (labelled, ("--label", "1,2"), "--label must be one class or own, got (1, 2)"),
        (labelled, ("--label", -2), "`label` must be a class ≥ 0, −1 for none, or null for each example's own, got -2"),
        (labelled, ("--label", "own", "--file", file), "own labels are asked for, but these examples have none"),
        (certain, (), "has never been trained without a class"),
    ):
        outcome = invoke("likelihood", run, *options, "--no-reference", "--out", tmp_path / "out")
        assert outcome.code == 2
        assert message in outcome.error
