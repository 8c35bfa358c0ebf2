"""The benchmarks run, and the page that they write is the one in the repository."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(script: str, *options: object) -> str:
    """What a benchmark prints, run from another folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.timeout(300)
def test_solvers_are_level_with_their_peers(tmp_path: Path) -> None:
    """In a run of `--quick`: with equal options and times, errors agree to the peers' rounding, or ours is smaller."""
    print(run("solvers.py", "--quick", "--out", tmp_path / "solvers.json"))
    result = json.loads((tmp_path / "solvers.json").read_text())
    assert result["deterministic"]
    assert result["stochastic"]
    if result["skipped"]:
        pytest.skip(f"peers are absent: {result['skipped']}")
    same = [pair for pair in result["pairs"] if pair["same"]]
    assert len({pair["peer"] for pair in same}) > 10
    for pair in same:
        for ours, theirs in zip(pair["error"], pair["peer_error"], strict=True):
            assert ours <= theirs * 1.001, pair


@pytest.mark.parametrize("module", ["solvers_page", "models_page"])
def test_the_page_is_that_of_the_results(module: str) -> None:
    """Its tables are those that the script would write."""
    code = (
        f"import {module} as page; text = page.PAGE.read_text();"
        "print(page.with_tables(text, *page.read_results()) == text)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip() == "True"
