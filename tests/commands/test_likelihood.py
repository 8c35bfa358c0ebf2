"""`likelihood`: bits/dim with an interval, per image, for any split, subset or file."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from sde_diffusion.likelihood import Examples, Scores, mean_interval
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import SDE
from tests.commands.running import TINY, invoke, succeed, train
from tests.commands.test_sample import killed_after
from tests.training.test_trainer import Killed

LOOSE = ("--rtol", 0.1, "--atol", 0.1)


def arrays(folder: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(folder / "per_image.npz") as stored:
        return dict(stored)


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "likelihood.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("trace", [("--probes", 2), ("--probes", 2, "--distribution", "gaussian"), ("--exact",)])
def test_bits_per_dim_with_interval_units_and_reference(tmp_path: Path, trained: Path, trace: tuple[Any, ...]) -> None:
    outcome = succeed("likelihood", trained, *LOOSE, *trace, "--limit", 4, "--out", tmp_path)
    told, rows = facts(tmp_path), arrays(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"likelihood.json", "per_image.npz", "histogram.png"}
    assert {len(column) for column in rows.values()} == {4}
    mean, half_width = mean_interval(torch.from_numpy(rows["bits_per_dim"]))
    assert told["bits_per_dim"] == pytest.approx(mean, rel=1e-12)
    assert told["half_width"] == pytest.approx(half_width, rel=1e-12)
    assert told["images"] == 4
    assert told["config"]["likelihood"]["divergence"]["name"] == ("exact" if trace == ("--exact",) else "hutchinson")
    assert told["nfe"] == [rows["batch_nfe"].min(), rows["batch_nfe"].max()]
    assert told["nfe"][0] > 6
    nats = torch.from_numpy(rows["prior_nats"] + rows["delta_nats"]).double()
    expected = -nats / (64 * np.log(2)) + np.log2(17 / 2)
    np.testing.assert_allclose(rows["bits_per_dim"], expected, rtol=1e-6)  # float32 sum of prior and Δ
    assert f"{mean:.4f} ± {half_width:.4f} bits/dim (95 % interval of the mean over 4 examples" in outcome.out
    assert "bits/dim for a Gaussian with full covariance" in outcome.out
    assert told["gaussian_bits_per_dim"] == pytest.approx(rows["gaussian_bits_per_dim"].mean(), rel=1e-12)
    assert "64 dimensions of 17 levels" in outcome.out
    assert "prior N(0, 1² I) at t = 1" in outcome.out
    assert ("trace probes    2 a solve" in outcome.out) == (trace != ("--exact",))
    assert re.search(r"truncation +p at t_min = 1e-05 for p at 0, first order +[-+]\d", outcome.out)
    assert re.search(r"prior gap +N\(0, 1² I\) for p at t = 1, upper bound +≤ \+0\.0", outcome.out)
    assert told["prior_gap_bound"]["mean"] > 0
    if trace == ("--exact",):
        assert not rows["standard_error_nats"].any()


def test_the_gaussian_of_the_whole_test_split_is_the_known_one(tmp_path: Path, trained: Path) -> None:
    succeed("likelihood", trained, "--rtol", 10, "--atol", 10, "--out", tmp_path)
    told = facts(tmp_path)
    assert told["images"] == 297, "the last batch is not dropped"
    assert told["gaussian_bits_per_dim"] == pytest.approx(2.955, abs=0.02)  # another draw of the noise than in 2.955
    assert told["gaussian_half_width"] == pytest.approx(0.040, abs=0.005)
    assert told["bits_per_dim"] > told["gaussian_bits_per_dim"], "two steps of training"


def test_the_interval_covers_as_often_as_it_says() -> None:
    draws = torch.Generator().manual_seed(0)
    values = 3 + 0.4 * torch.randn(2000, 100, generator=draws)
    hits = sum(abs(interval.mean - 3) < interval.half_width for interval in map(mean_interval, values))
    # 4 standard errors of 2000 trials
    assert abs(hits / 2000 - 0.95) < 4 * (0.05 * 0.95 / 2000) ** 0.5


def test_subsets_are_the_same_examples_whatever_the_batch(tmp_path: Path, trained: Path) -> None:
    options = ("likelihood", trained, "--rtol", 1e-4, "--atol", 1e-4, "--split", "train", "--no-reference")
    succeed(*options, "--start", 60, "--limit", 10, "--batch", 4, "--out", tmp_path / "a")
    succeed(*options, "--start", 65, "--limit", 3, "--batch", 5, "--out", tmp_path / "b")
    a, b = arrays(tmp_path / "a"), arrays(tmp_path / "b")
    assert a["index"].tolist() == list(range(60, 70))
    assert b["index"].tolist() == [65, 66, 67]
    np.testing.assert_allclose(b["bits_per_dim"], a["bits_per_dim"][5:8], atol=1e-3)  # the solver's tolerance
    assert "gaussian_bits_per_dim" not in facts(tmp_path / "a")


def test_a_limit_beyond_the_end_takes_what_there_is(tmp_path: Path, trained: Path) -> None:
    succeed("likelihood", trained, *LOOSE, "--start", 290, "--limit", 100, "--no-reference", "--out", tmp_path)
    assert arrays(tmp_path)["index"].tolist() == list(range(290, 297))


def test_one_image_has_no_interval(tmp_path: Path, trained: Path) -> None:
    outcome = succeed("likelihood", trained, *LOOSE, "--limit", 1, "--out", tmp_path)
    assert facts(tmp_path)["half_width"] is None
    assert "bits/dim (1 example, test of digits)" in outcome.out
    assert (tmp_path / "histogram.png").exists()


def test_a_file_is_scored_as_the_split_it_came_from(tmp_path: Path, trained: Path) -> None:
    digits = load_digits().images[1500:1504, None].astype(np.uint8)
    np.save(tmp_path / "mine.npy", digits)
    np.savez(tmp_path / "mine.npz", samples=digits)
    options = ("likelihood", trained, *LOOSE, "--no-reference")
    succeed(*options, "--limit", 4, "--out", tmp_path / "split")
    for name in ("mine.npy", "mine.npz"):
        succeed(*options, "--file", tmp_path / name, "--out", tmp_path / name[-3:])
        assert np.array_equal(arrays(tmp_path / name[-3:])["bits_per_dim"], arrays(tmp_path / "split")["bits_per_dim"])
    assert facts(tmp_path / "npy")["file"] == str(tmp_path / "mine.npy")


def test_samples_can_be_scored(tmp_path: Path, trained: Path) -> None:
    succeed("sample", trained, "--solver", "em", "--steps", 2, "--count", 3, "--out", tmp_path / "samples")
    file = tmp_path / "samples" / "samples.npz"
    succeed("likelihood", trained, *LOOSE, "--file", file, "--no-reference", "--out", tmp_path / "scores")
    assert facts(tmp_path / "scores")["images"] == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            np.zeros((2, 1, 9, 8), np.uint8),
            r"holds examples of shape \(1, 9, 8\); the model takes examples of shape \(1, 8, 8\)",
        ),
        (np.full((2, 1, 8, 8), 17, np.uint8), r"must be from 0 to 16 .*got 17"),
        (
            np.zeros((2, 1, 8, 8), np.float32),
            r"integers; the model takes examples of shape \(1, 8, 8\), integers from 0 to 16",
        ),
        (np.array([{}, 1], object), r"mine\.npy is not a whole \.npy"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, trained: Path, values: npt.NDArray[Any], message: str
) -> None:
    np.save(tmp_path / "mine.npy", values)
    outcome = invoke("likelihood", trained, "--file", tmp_path / "mine.npy", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert re.search(message, outcome.error)


def test_killed_scoring_goes_on_where_it_stopped(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("likelihood", trained, *LOOSE, "--limit", 10, "--batch", 4)
    succeed(*options, "--out", tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(Killed):
            invoke(*options, "--out", tmp_path / "killed")
    scored: list[int] = []
    score = Examples.score

    def counting(examples: Examples, score_fn: ScoreFn, sde: SDE, first: int, count: int, **options: Any) -> Scores:
        scored.append(count)
        return score(examples, score_fn, sde, first, count, **options)

    monkeypatch.setattr(Examples, "score", counting)
    succeed(*options, "--out", tmp_path / "killed")
    assert scored == [2]
    whole, killed = arrays(tmp_path / "whole"), arrays(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(np.array_equal(whole[name], killed[name], equal_nan=True) for name in whole)
    told = facts(tmp_path / "killed")
    assert {**told, "seconds": 0} == {**facts(tmp_path / "whole"), "seconds": 0}


def test_replicates_tell_dequantisation_and_probes_apart(tmp_path: Path, trained: Path) -> None:
    options = ("--probes", 2, "--replicates", 2, "--draws", 2, "--coupling", "antithetic", "--conf", 0.9)
    outcome = succeed("likelihood", trained, *LOOSE, *options, "--limit", 6, "--no-reference", "--out", tmp_path)
    split = facts(tmp_path)["split"]
    assert all(part["variance"] is not None for part in split.values())
    assert re.search(r"dequantisation +2 replicates of 2 coupled draws +\d", outcome.out)
    assert "± bits/dim (90 %)" in outcome.out
    assert facts(tmp_path)["config"]["likelihood"]["dequantisation"] == {"name": "uniform", "coupling": "antithetic"}
    rows = arrays(tmp_path)
    nats = torch.from_numpy(rows["prior_nats"] + rows["delta_nats"])
    torch.testing.assert_close(torch.from_numpy(rows["bits_per_dim"]), -nats / (64 * np.log(2)) + np.log2(17 / 2))


def test_what_one_probe_and_one_replicate_cannot_tell_is_said(tmp_path: Path, trained: Path) -> None:
    outcome = succeed("likelihood", trained, *LOOSE, "--limit", 3, "--no-reference", "--out", tmp_path)
    assert "included in the finite subset" in outcome.out
    assert facts(tmp_path)["split"]["probes"] == {"half_width": None, "variance": None}


def test_dry_run_prints_the_section_and_scores_nothing(tmp_path: Path, trained: Path) -> None:
    outcome = succeed("likelihood", trained, "--exact", "--split", "train", "--out", tmp_path / "out", "-n")
    section = yaml.safe_load(outcome.out)["likelihood"]
    assert (section["split"], section["divergence"]) == ("train", {"name": "exact", "chunk": "auto"})
    assert not (tmp_path / "out").exists()


def test_exact_and_probes_exclude_each_other(trained: Path) -> None:
    outcome = invoke("likelihood", trained, "--exact", "--probes", 2)
    assert outcome.code == 2
    assert "--exact needs no random directions; drop --probes" in outcome.error


def test_data_can_have_moved_but_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digits = load_digits().images[:40, None].astype(np.uint8)
    np.save("old.npy", digits)
    run = train(tmp_path / "run", "--set", "data={name: arrays, file: old.npy, levels: 17}", base=TINY, steps=1)
    Path("old.npy").rename("new.npy")
    outcome = invoke("likelihood", run)
    assert outcome.code == 2
    assert "array file old.npy must exist" in outcome.error
    options = ("--limit", 2, "--no-reference", *LOOSE)
    succeed("likelihood", run, "--set", "data.file=new.npy", *options)
    np.save("new.npy", digits[:, :, :6])
    outcome = invoke("likelihood", run, "--set", "data.file=new.npy", *options)
    assert outcome.code == 2
    assert "the data of arrays have changed since the model was trained" in outcome.err
    np.save("two.npy", digits[:2])
    outcome = invoke("likelihood", run, "--file", "two.npy", *LOOSE)
    assert outcome.code == 2
    assert "or leave it out by --no-reference" in outcome.err
    succeed("likelihood", run, "--file", "two.npy", *options)
