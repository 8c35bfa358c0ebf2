"""Runs that take a second."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sde_diffusion.config.build import Config, build_trainer, read_config
from sde_diffusion.config.parse import Raw, merge
from sde_diffusion.training import Checkpoint, RunFolder, Trainer, load_checkpoint

POINTS: Raw = {
    "data": {"name": "two_moons", "train": 100, "test": 40},
    "model": {"network": {"name": "mlp", "width": 8, "depth": 1}, "sigma_data": 1.0, "prediction": "eps"},
    "training": {
        "steps": 20,
        "batch": 16,
        "warmup": 3,
        "precision": "float32",  # on every CPU
        "log_every": 3,
        "validate_every": 10,
        "sample_every": 0,
        "save_every": 10,
        "snapshot_every": 10,
        "preview": {"rtol": 0.1, "atol": 0.1},
        "preview_count": 9,
    },
}
"""Points of the plane and a network of 300 numbers."""

DIGITS: Raw = merge(
    POINTS,
    {
        "data": {"name": "digits"},
        "model": {
            "network": {"name": "unet", "channels": 4, "multipliers": [1, 2], "blocks": 1, "dropout": 0.2},
            "sigma_data": 0.5,
        },
    },
)
"""Images and a U-Net with dropout."""


def trainer_for(path: Path, raw: Raw = POINTS, **training: Any) -> Trainer:
    """A trainer at step 0 in the folder `path`."""
    config: Config = read_config(None, (), merge(raw, {"training": training}))
    return build_trainer(config, RunFolder(path), torch.device("cpu"))


def resumed(path: Path, raw: Raw = POINTS, **training: Any) -> Trainer:
    """A trainer that stands where the newest checkpoint in `path` does."""
    trainer = trainer_for(path, raw, **training)
    trainer.restore(last_checkpoint(path))
    return trainer


def last_checkpoint(path: Path) -> Checkpoint:
    """The newest checkpoint of a run."""
    newest = RunFolder(path).latest()
    assert newest is not None
    return load_checkpoint(newest)


def same_bits(a: Checkpoint, b: Checkpoint) -> bool:
    """Whether two checkpoints hold the same tensors, bit for bit."""
    return a.tensors.keys() == b.tensors.keys() and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(_bits(x), _bits(y))
        for x, y in ((a.tensors[name], b.tensors[name]) for name in a.tensors)
    )


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().reshape(-1).view(torch.uint8)


def timeless_metrics(path: Path) -> list[dict[str, Any]]:
    """The log of a run without what a clock says."""
    rows = RunFolder(path).metrics()
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, here and in processes that are started with OMP_NUM_THREADS=1."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
