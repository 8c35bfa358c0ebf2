"""`sde_diffusion` exports by a visible rule, and imports nothing that is slow."""

import subprocess
import sys
from types import ModuleType

import pytest

import sde_diffusion
from sde_diffusion import data, likelihood, losses, networks, sde, solvers, training
from sde_diffusion.config.parse import Recipe
from sde_diffusion.config.schema import REGISTRIES
from sde_diffusion.model import NOISE_CONDITIONINGS, PREDICTIONS

KINDS = [kind for kind in REGISTRIES if not issubclass(kind, Recipe)]
PACKAGES = (data, likelihood, losses, networks, sde, solvers, training)
SLOW = ("scipy", "torchdiffeq", "matplotlib", "sklearn", "torchvision", "tensorboard", "click")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_base_class_is_exported(kind: type) -> None:
    assert getattr(sde_diffusion, kind.__name__) is kind


@pytest.mark.parametrize("kind", list(REGISTRIES), ids=lambda kind: kind.__name__)
def test_every_registry_and_its_rows_are_exported(kind: type) -> None:
    registry = REGISTRIES[kind]
    assert any(getattr(sde_diffusion, name) is registry for name in sde_diffusion.__all__)
    for row in registry.values():
        assert getattr(sde_diffusion, row.__name__) is row


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_the_registries_of_a_package_are_exported_with_their_classes(package: ModuleType) -> None:
    """Those that no config names by a base class too, such as the time embeddings of the networks."""
    registries = [name for name in package.__all__ if isinstance(getattr(package, name), dict)]
    assert set(registries) <= set(sde_diffusion.__all__)
    for name in registries:
        rows = [row for row in getattr(package, name).values() if isinstance(row, type)]
        assert {row.__name__ for row in rows} <= set(sde_diffusion.__all__)


def test_the_functions_of_a_model_are_exported() -> None:
    assert sde_diffusion.PREDICTIONS is PREDICTIONS
    assert sde_diffusion.NOISE_CONDITIONINGS is NOISE_CONDITIONINGS
    for name in ("load", "save", "train", "Model", "Trainer", "sample", "log_likelihood", "dsm_loss", "for_budget"):
        assert callable(getattr(sde_diffusion, name))


def test_all_is_sorted_and_there() -> None:
    assert sorted(set(sde_diffusion.__all__)) == sorted(sde_diffusion.__all__)
    assert all(hasattr(sde_diffusion, name) for name in sde_diffusion.__all__)


def test_importing_loads_nothing_slow() -> None:
    program = f"import sys, sde_diffusion; print([name for name in {SLOW} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
