"""The examples that a command works on: a split of the model's data, or the user's file in the same units."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch

from sde_diffusion.config.build import Trained
from sde_diffusion.data import Dataset, TensorDataset
from sde_diffusion.data.dataset import Split
from sde_diffusion.data.sources.arrays import Arrays
from sde_diffusion.errors import InputError, require


def open_examples(trained: Trained, split: Split, file: Path | None) -> Dataset:
    """A split of the model's data, or if there is a `file`, all that it holds.

    Raises:
        InputError: The data are absent, have changed since the training, or a file does not fit the model.
    """
    return _split(trained, split) if file is None else _file(trained, file)


def file_facts(file: Path | None) -> dict[str, Any]:
    """What a result must say of the file it came from; nothing of none."""
    if file is None:
        return {}
    return {"file": str(file), "file_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _split(trained: Trained, split: Split) -> Dataset:
    dataset = trained.config.data.load(split)
    require(
        dataset.spec.to_dict() == trained.spec.to_dict(),
        f"the data of {trained.spec.name} have changed since the model was trained: {dataset.spec} now, "
        f"{trained.spec} then",
    )
    return dataset


def _file(trained: Trained, file: Path) -> Dataset:
    spec = dataclasses.replace(trained.spec, classes=())
    kind = "continuous values" if spec.levels is None else f"integers from 0 to {spec.levels - 1}"
    try:
        found = Arrays(file=str(file), test=str(file), levels=spec.levels).load("test")
        require(found.spec.shape == spec.shape, f"{file} holds examples of shape {found.spec.shape}")
        require((found.spec.levels is None) == (spec.levels is None), f"{file} holds integers")
    except InputError as error:
        raise InputError(f"{error}; the model takes examples of shape {spec.shape}, {kind}") from None
    return TensorDataset(spec, found.fetch(torch.arange(len(found)))[0])
