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


@pytest.mark.parametrize("module", ["solvers_page", "models_page", "throughput_page", "reference_page"])
def test_the_page_is_that_of_the_results(module: str) -> None:
    """Its tables are those that the script would write."""
    code = (
        f"import {module} as page; text = page.PAGE.read_text();"
        "print(page.with_tables(text, *page.read_results()) == text)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip() == "True"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_reference_models_are_trained_scored_and_drawn_in_pieces(tmp_path: Path) -> None:
    """Stopped in its midst, it says that there is more to do; called again, it ends with all results."""
    folders = ("--work", tmp_path / "work", "--out", tmp_path / "out")
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        run("train_reference.py", "--quick", "--minutes", "0.1", *folders)
    assert stopped.value.returncode == 75
    assert "goes on in the next call" in stopped.value.stdout
    run("train_reference.py", "--quick", "--minutes", "4", *folders)
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {
        *("reference.json", "fashion_mnist_subvp.safetensors", "fashion_mnist_vp.safetensors"),
        *("samples_subvp.png", "samples_vp.png"),
    }
    models = json.loads((tmp_path / "out" / "reference.json").read_text())["models"]
    assert {name: model["images"] for name, model in models.items()} == {"subvp": 16, "vp": 16}
    assert all(model["half_width"] > 0 and model["steps"] == 20 for model in models.values())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_names_and_rows_on_the_disk_are_no_footprint(tmp_path: Path) -> None:
    """A million packed names cost a worker less than a list of paths by far; rows read by position cost nothing."""
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("no /proc/self/smaps_rollup")
    pytest.importorskip("torchvision")
    run("data_streaming.py", "--quick", "--out", tmp_path / "streaming.json")
    rows = {(row["case"], row["setting"]): row for row in json.loads((tmp_path / "streaming.json").read_text())["rows"]}
    ours, peer = (max(rows[f"{who}_names", 2]["worker_mb"]) for who in ("ours", "peer"))
    assert ours < peer - 50  # the texts alone, as objects, are 80 MB
    assert rows["ours_rows", 0]["anonymous_growth_mb"] < 5
