"""The programs of `examples/` run as they stand, and do what they say."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sde_diffusion.data import DATASETS
from sde_diffusion.sde import SDES

EXAMPLES = Path(__file__).parents[1] / "examples"
MAX_LINES = 120  # of the first one, which a reader holds in the head


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Runs an example in an empty folder and gives its variables; rows that it adds and its seed are taken back."""
    registries: list[dict[str, Any]] = [SDES, DATASETS]
    rows = [dict(registry) for registry in registries]
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        yield lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    for registry, before in zip(registries, rows, strict=True):
        registry.clear()
        registry.update(before)


def test_the_minimal_program_learns_a_density(run: Callable[[str], dict[str, Any]]) -> None:
    found = run("minimal")
    assert (found["distance"] < 0.6).float().mean() > 0.95  # 98.9 % of the data
    assert float((found["exact"] - found["learnt"]).mean()) < 0.1
    assert Path("minimal.safetensors").exists()
    assert len((EXAMPLES / "minimal.py").read_text().splitlines()) <= MAX_LINES


def test_a_process_of_ones_own(run: Callable[[str], dict[str, Any]]) -> None:
    found = run("custom_sde")
    assert len(found["outcomes"]) > 10
    assert not found["failed"]
    assert abs(float(found["log_prob"] - found["data"].log_prob(found["points"]).mean())) < 0.15  # 4 standard errors
    assert (found["distance"] < 0.3).float().mean() > 0.9  # 98.9 % of the data


def test_a_network_of_ones_own(run: Callable[[str], dict[str, Any]]) -> None:
    found = run("custom_network")
    purity = found["purity"]
    assert purity(found["samples"]).mean() > 0.85
    assert purity(found["noise"]).mean() < 0.1


def test_a_solver_of_ones_own_has_its_order(run: Callable[[str], dict[str, Any]]) -> None:
    found = run("custom_solver")
    assert found["previous"] < 2e-5
    assert found["images"].shape == (4, 1, 28, 28)


def test_data_of_ones_own(run: Callable[[str], dict[str, Any]]) -> None:
    found = run("custom_data")
    assert found["share"] > 0.9
    assert found["model"].spec.name == "arms"
    assert sorted(path.name for path in Path("runs").iterdir()) == ["arms", "arms_vp"]
