"""`likelihood --ledger`: one table of all bounds, with what each bounds, its interval and its cost."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sde_diffusion.commands.ledger import slug, table
from sde_diffusion.likelihood import LedgerRow, mean_interval
from sde_diffusion.likelihood.audit.ledger import Entry
from tests.commands.running import TINY, invoke, succeed, train
from tests.training.test_trainer import Killed

CHEAP = (
    *("--ledger", "--rtol", 0.1, "--atol", 0.1),
    *("--set", "likelihood.ledger={draws: 2, importance_draws: 2, chain_steps: [5]}"),
)
ROWS = [
    *("flow, uniform", "flow, truncated normal", "flow, 2 weighted draws"),
    *("SDE bound, uniform", "SDE bound, decoder", "chain of 5", "prior"),
]


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "ledger.json").read_text())  # type: ignore[no-any-return]


def test_the_table_and_the_file_say_the_same(tmp_path: Path, trained: Path) -> None:
    outcome = succeed("likelihood", trained, *CHEAP, "--limit", 3, "--batch", 2, "--out", tmp_path)
    told = facts(tmp_path)
    assert [row["name"] for row in told["rows"]] == ROWS
    assert {file.name for file in tmp_path.iterdir()} == {"ledger.json", "ledger"}
    assert {file.stem for file in (tmp_path / "ledger").iterdir()} == set(map(slug, ROWS))
    assert (told["examples"], told["confidence"], told["split"]) == (3, 0.95, "test")
    lines = outcome.out.splitlines()
    (head,) = (i for i, line in enumerate(lines) if line.startswith("row "))
    for row, line in zip(told["rows"], lines[head + 1 :], strict=False):
        assert line.startswith(row["name"])
        assert f" {row['mean']:.4f} " in line
        assert f" {row['half_width']:.4f} " in line
        assert line.endswith(row["bounds"])
        with np.load(tmp_path / "ledger" / f"{slug(row['name'])}.npz") as stored:
            columns = dict(stored)
        assert columns["index"].tolist() == [0, 1, 2]
        interval = mean_interval(torch.from_numpy(columns["bits"]))
        assert (row["mean"], row["half_width"]) == pytest.approx(interval, rel=1e-12)
        assert row["nfe"] == pytest.approx(columns["nfe"].mean())
        assert row["units"] == "bits/dim of n"
    assert "3 examples, test of digits, bits/dim of n" in outcome.out
    costs = {row["name"]: row["nfe"] for row in told["rows"]}
    assert costs["chain of 5"] == costs["SDE bound, uniform"] == 3
    assert "likelihood.json" not in outcome.out


def test_a_killed_ledger_goes_on_where_it_stopped(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("likelihood", trained, *CHEAP, "--limit", 4, "--batch", 2)
    succeed(*options, "--out", tmp_path / "whole")
    scores: list[tuple[str, int]] = []
    real = Entry.__init__

    def watched(self: Entry, name: str, bounds: str, score: Any) -> None:
        def counting(values: torch.Tensor, start: int) -> Any:
            if len(scores) == limit:
                raise Killed
            scores.append((name, start))
            return score(values, start)

        real(self, name, bounds, counting)

    limit = 3
    with monkeypatch.context() as patch:
        patch.setattr(Entry, "__init__", watched)
        with pytest.raises(Killed):
            invoke(*options, "--out", tmp_path / "killed")
        limit = -1
        succeed(*options, "--out", tmp_path / "killed")
    assert len(scores) == len(set(scores)) == 2 * len(ROWS), "each batch of each row once"
    rows = [
        {key: value for key, value in row.items() if key != "seconds"}
        for name in ("whole", "killed")
        for row in facts(tmp_path / name)["rows"]
    ]
    assert rows[: len(ROWS)] == rows[len(ROWS) :]


def test_one_example_has_no_interval(tmp_path: Path, trained: Path) -> None:
    succeed("likelihood", trained, *CHEAP, "--limit", 1, "--out", tmp_path)
    assert all(row["half_width"] is None for row in facts(tmp_path)["rows"])


def test_continuous_data_have_the_rows_that_exist(tmp_path: Path) -> None:
    mlp = ("--set", "model.network={name: mlp, width: 8}")
    run = train(tmp_path / "run", "--set", "data.name=two_moons", *mlp, base=TINY[2:], steps=1)
    outcome = succeed("likelihood", run, *CHEAP, "--limit", 3, "--out", tmp_path / "out")
    assert [row["name"] for row in facts(tmp_path / "out")["rows"]] == ["flow", "SDE bound", "chain of 5", "prior"]
    assert "bits/dim of y" in outcome.out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("chain_steps=[1]", r"`chain_steps` must be ≥ 2, got 1"),
        ("draws=0", r"`draws` must be > 0, got 0"),
        ("importance_draws=-1", r"`importance_draws` must be > 0, got -1"),
        ("draw=3", r"unknown config key 'likelihood.ledger.draw'; did you mean 'draws'"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, trained: Path, option: str, message: str) -> None:
    outcome = invoke("likelihood", trained, "--ledger", "--set", f"likelihood.ledger.{option}", "--out", tmp_path / "o")
    assert outcome.code == 2
    assert re.search(message, outcome.error)
    assert not (tmp_path / "o").exists()


def test_a_start_beyond_the_data_is_refused(tmp_path: Path, trained: Path) -> None:
    outcome = invoke("likelihood", trained, *CHEAP, "--start", 297, "--out", tmp_path)
    assert outcome.code == 2
    assert "`likelihood.start` must be < 297" in outcome.error


def test_ledger_and_tolerance_exclude_each_other(tmp_path: Path, trained: Path) -> None:
    outcome = invoke("likelihood", trained, "--ledger", "--tol", 0.1, "--out", tmp_path)
    assert outcome.code == 2
    assert "--ledger and --tol exclude each other; drop one" in outcome.error


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (("--draws", 4), "--draws"),
        (("--replicates", 2), "--replicates"),
        (("--dequantisation", "truncated_normal"), "--dequantisation"),
        (("--coupling", "antithetic"), "--coupling"),
        (("--set", "likelihood.draws=4"), "--draws"),
    ],
)
def test_options_that_no_row_heeds_are_refused(
    tmp_path: Path, trained: Path, options: tuple[object, ...], flag: str
) -> None:
    outcome = invoke("likelihood", trained, *CHEAP, *options, "--out", tmp_path / "o")
    assert outcome.code == 2
    assert re.search(rf"--ledger takes no .*{flag}.*; drop it, or set likelihood\.ledger\.", outcome.error)
    assert not (tmp_path / "o").exists()


def test_columns_are_aligned() -> None:
    """By what a terminal shows: a combining mark takes no column."""
    rows = [
        LedgerRow("a", "bits/dim of n", "≥ x", 1.25, 0.5, 16, 1.0),
        LedgerRow("x̂", "bits/dim of n", "≥ y", 12.25, math.nan, 1600, 100.0),
    ]
    assert table(rows, "95 %").splitlines() == [
        "row  bits/dim  ± 95 %  NFE/example  seconds  what it bounds",
        "a      1.2500  0.5000           16      1.0  ≥ x",
        "x̂     12.2500                 1600    100.0  ≥ y",
    ]


def test_the_dearest_row_is_asked_for(tmp_path: Path, trained: Path) -> None:
    cheap = "likelihood.ledger={draws: 2, chain_steps: [3]}"
    outcome = succeed(
        "likelihood", trained, "--ledger", "--limit", 1, "--rtol", 0.1, "--atol", 0.1, "--set", cheap, "--out", tmp_path
    )
    assert "flow, uniform" in outcome.out
    assert "weighted draws" not in outcome.out
