"""A trained run for every command."""

from pathlib import Path

import pytest

from tests.commands.running import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the digits, without classes."""
    return train(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the digits, with their classes."""
    return train(tmp_path_factory.mktemp("runs") / "labelled", "--set", "model.conditional=true")
