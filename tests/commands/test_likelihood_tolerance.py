"""`likelihood --tol`: the split of the error, the budget, and going on after a kill."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sde_diffusion.likelihood import Cells, Dequantised, Examples, Scoring, nested_split
from sde_diffusion.sde import SDE
from tests.commands.running import invoke, succeed
from tests.commands.test_sample import killed_after
from tests.training.test_trainer import Killed

LOOSE = ("--rtol", 0.1, "--atol", 0.1)


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "likelihood.json").read_text())  # type: ignore[no-any-return]


def rows(folder: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(folder / "scores.npz") as stored:
        return dict(stored)


def test_the_split_is_printed_stored_and_that_of_the_scores(tmp_path: Path, trained: Path) -> None:
    options = ("--tol", 0.4, *LOOSE, "--limit", 40, "--conf", 0.9)
    outcome = succeed("likelihood", trained, *options, "--out", tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"likelihood.json", "scores.npz", "histogram.png"}
    told, table = facts(tmp_path), rows(tmp_path)
    assert told["status"] == "met"
    assert told["half_width"] <= 0.4
    at = table["rtol"] == 0.1
    cells = []
    for replicate in np.unique(table["replicate"]):
        for probes in (1, 2):
            chosen = at & (table["replicate"] == replicate)
            places, counts = np.unique(table["place"][chosen], return_counts=True)
            for place in places[counts == probes]:
                values = table["bits_per_dim"][chosen & (table["place"] == place)]
                cells.append(Cells.of(torch.tensor([place]), torch.from_numpy(values)[None]))
    split = nested_split(Cells.join(cells), population=40, confidence=0.9)
    assert told["bits_per_dim"] == pytest.approx(split.mean, rel=1e-12)
    share = abs(told["split"]["ode"]["mean"]) + told["split"]["ode"]["half_width"]
    assert told["half_width"] == pytest.approx(split.half_width + share, rel=1e-9)
    for name, width in split.half_widths.items():
        assert told["split"][name]["half_width"] == pytest.approx(width, rel=1e-9)
    for source in ("finite subset", "dequantisation", "trace probes", "ODE", "total", "truncation", "prior gap"):
        assert re.search(rf"^{source} .*\d$", outcome.out, re.MULTILINE), source
    assert f"{split.mean:.4f} ± {told['half_width']:.4f} bits/dim (90 % interval" in outcome.out
    assert "of the mean over examples 0…39 of test of digits)" in outcome.out
    assert len(np.unique(table["index"])) == 40, "the pilot takes all of 40"
    assert table["index"][:10].tolist() != sorted(table["index"][:10]), "in random order"


@pytest.mark.parametrize(
    "options", [("--exact", "--limit", 1), ("--draws", 2, "--coupling", "antithetic", "--limit", 3)]
)
def test_other_ways_to_score(tmp_path: Path, trained: Path, options: tuple[Any, ...]) -> None:
    outcome = succeed("likelihood", trained, "--tol", 500, "--rtol", 10, "--atol", 10, *options, "--out", tmp_path)
    told, exact = facts(tmp_path), "--exact" in options
    assert ("trace probes" in outcome.out) != exact
    assert told["solves"] == len(rows(tmp_path)["place"]) / told["probes"]
    assert exact or "2 antithetic draws in a replicate" in outcome.out
    assert told["solves"] == (3 if exact else 3 * 3 * 2), "two rungs and a second replicate"


def test_a_failed_solve_names_the_example_of_the_data(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not its place in the random order, which the user does not see."""
    places: list[int] = []
    noised = Examples.noised

    def watched(examples: Examples, first: int, count: int, sde: SDE, *, replicate: int = 0) -> Dequantised:
        places[:] = examples.order[first : first + count].tolist()
        drawn = noised(examples, first, count, sde, replicate=replicate)
        drawn.x[:, 1] = math.nan
        return drawn

    monkeypatch.setattr(Examples, "noised", watched)
    outcome = invoke("likelihood", trained, "--tol", 0.4, *LOOSE, "--start", 100, "--limit", 9, "--out", tmp_path)
    assert outcome.code == 2
    assert f"for sample {places[1]}: " in outcome.error
    assert sorted(places) == list(range(100, 109)) != places


@pytest.mark.parametrize(("mode", "cost"), [("reverse", 1.1), ("forward", 4.6)])
def test_probes_are_bought_at_the_price_of_their_mode(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, mode: str, cost: float
) -> None:
    told: list[float] = []

    def watched(*arguments: Any, probe_cost: float, **options: Any) -> Scoring:
        told.append(probe_cost)
        return Scoring(*arguments, probe_cost=probe_cost, **options)

    monkeypatch.setattr("sde_diffusion.commands.likelihood_tolerance.Scoring", watched)
    succeed(
        *("likelihood", trained, "--tol", 500, "--rtol", 10, "--atol", 10, "--limit", 2, "--mode", mode),
        *("--out", tmp_path),
    )
    assert told == [cost]


def test_without_a_limit_the_mean_stands_for_the_split(tmp_path: Path, trained: Path) -> None:
    outcome = succeed("likelihood", trained, "--tol", 500, "--rtol", 10, "--atol", 10, "--out", tmp_path)
    assert "interval of the mean over test of digits)" in outcome.out
    assert "64 of 297 examples" in outcome.out


def test_the_ode_tolerance_is_chosen_unless_given(tmp_path: Path, trained: Path) -> None:
    outcome = succeed("likelihood", trained, "--tol", 5, "--start", 294, "--limit", 300, "--out", tmp_path)
    assert "of the mean over examples 294…296 of test of digits)" in outcome.out
    assert facts(tmp_path)["ode_tolerance"] == {"rtol": 0.01, "atol": 0.01}
    assert set(rows(tmp_path)["rtol"]) == {1e-2, 1e-3}


def test_a_spent_budget_is_told_with_what_to_do(tmp_path: Path, trained: Path) -> None:
    options = ("--tol", 0.001, *LOOSE, "--limit", 4, "--max-solves", 14)
    outcome = succeed("likelihood", trained, *options, "--out", tmp_path)
    assert re.search(
        r"the tolerance ± 0\.001 was not met: (after 14 solves most of the error comes from the .*; give --max-solves "
        r"\d+ or so, or --tol [\d.]+|the ODE's error alone is ± [\d.]+; give tighter --rtol)",
        outcome.out,
    )
    assert facts(tmp_path)["status"] in ("budget", "ode")


def test_a_killed_run_ends_at_the_same_numbers(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("likelihood", trained, "--tol", 0.02, *LOOSE, "--limit", 6, "--batch", 4)
    options = (*options, "--max-solves", 24)
    succeed(*options, "--out", tmp_path / "whole")
    for appends in (1, 4):
        with monkeypatch.context() as patch:
            killed_after(patch, appends)
            with pytest.raises(Killed):
                invoke(*options, "--out", tmp_path / "killed")
    succeed(*options, "--out", tmp_path / "killed")
    whole, killed = rows(tmp_path / "whole"), rows(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(np.array_equal(whole[name], killed[name]) for name in whole)
    assert {**facts(tmp_path / "killed"), "seconds": 0} == {**facts(tmp_path / "whole"), "seconds": 0}
    assert not (tmp_path / "killed" / "scores.partial").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tol", 0), "`tol` must be > 0, got 0"),
        (("--tol", -0.1), "`tol` must be > 0, got -0.1"),
        (("--conf", 0), r"`confidence` must be in \(0, 1\), got 0"),
        (("--conf", 95), r"`confidence` must be in \(0, 1\), got 95"),
        (("--probes", 0), "`probes` must be > 0, got 0"),
        (("--chunk", 0), "`chunk` must be > 0, got 0"),
        (("--exact", "--chunk", -1), "`chunk` must be > 0, got -1"),
        (("--batch", 0), "`batch` must be > 0, got 0"),
        (("--draws", 0), "`draws` must be > 0, got 0"),
        (("--replicates", 0), "`replicates` must be > 0, got 0"),
        (("--rtol", 0), "`rtol` must be > 0, got 0"),
        (("--atol", -1), "`atol` must be > 0, got -1"),
        (("--coupling", "lucky"), "coupling` must be one of independent, antithetic, stratified, got 'lucky'"),
        (("--mode", "sideways"), "mode` must be one of auto, reverse, forward, got 'sideways'"),
        (("--dequantisation", "unform"), "did you mean 'uniform'"),
        (("--max-solves", 300), "--max-solves goes with --tol"),
        (("--tol", 0.1, "--probes", 2), "--tol chooses the probes itself; drop --probes or --tol"),
        (
            ("--tol", 0.1, "--set", "likelihood.divergence.probes=8"),
            "--tol chooses the probes itself; drop --set likelihood",
        ),
        (
            ("--tol", 0.1, "--set", "likelihood.divergence={name: hutchinson, probes: 8}"),
            "--tol chooses the probes itself; drop --set likelihood.divergence.probes or --tol",
        ),
        (("--set", "likelihood.tol=0.1", "--probes", 8), "--tol chooses the probes itself"),
        (("--coupling", "antithetic"), "the coupling antithetic hangs several draws together, got `draws` = 1; give"),
        (("--tol", 0.1, "--coupling", "stratified", "--draws", 1), "the coupling stratified .* give `draws` ≥ 2"),
        (("--tol", 0.1, "--replicates", 2), "--tol chooses the replicates itself; drop --replicates or --tol"),
        (
            ("--exact", "--mode", "forward"),
            "--exact needs no random directions; drop --probes, --distribution and --mode",
        ),
        (("--tol", 0.1, "--max-solves", 0), "`max_solves` must be ≥ 192"),
        (("--tol", 0.1, "--max-solves", 191), "must be ≥ 192, what the pilot of 64 examples takes, got 191"),
        (("--tol", 0.1, "--limit", 0), "`limit` must be > 0"),
        (("--tol", 0.1, "--start", 297), "`likelihood.start` must be < 297"),
    ],
)
def test_bad_input(tmp_path: Path, trained: Path, options: tuple[Any, ...], message: str) -> None:
    outcome = invoke("likelihood", trained, *options, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert re.search(message, outcome.error)
    assert not (tmp_path / "out").exists()
