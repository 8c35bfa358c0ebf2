"""Shared helpers: golden numbers, and one example of every process."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.sde import SDE, SDES, VPSDE, CosineBeta, LinearBeta

GOLDEN = Path(__file__).parent / "golden"

# every registered process with its defaults, and the variants that change formulas
PROCESSES: dict[str, SDE] = {name: cls() for name, cls in SDES.items()} | {"vp-cosine": VPSDE(CosineBeta())}


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Without pytest-timeout its settings are known all the same, and nothing is limited."""
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds for a test")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): longest time of this test")


@pytest.fixture(params=PROCESSES, ids=str)
def sde(request: pytest.FixtureRequest) -> SDE:
    """Each process in turn."""
    return PROCESSES[request.param]


def golden(name: str) -> list[dict[str, Any]]:
    """The cases of a reference file."""
    cases: list[dict[str, Any]] = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    return cases


def golden_sde(params: dict[str, Any], **options: float) -> SDE:
    """The process that a reference case describes."""
    if params["sde"] == "ve":
        return SDES["ve"](sigma_min=params["sigma_min"], sigma_max=params["sigma_max"], **options)
    return SDES[params["sde"]](beta=LinearBeta(params["beta_min"], params["beta_max"]), **options)


def f64(values: float | Sequence[Any]) -> Tensor:
    """A float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def assert_mean(values: Tensor, expected: float, label: str = "") -> None:
    """The sample mean of `values` (n,) is within 4 of its standard errors of `expected`."""
    values = values.double()
    error = abs(float(values.mean()) - expected)
    bound = 4 * float(values.std()) / math.sqrt(len(values))
    assert error < bound, (
        f"{label}: mean {float(values.mean())} is {error} from {expected}, 4 standard errors are {bound}"
    )
