"""Processes that read ahead: how many, and what happens when one is killed."""

import os
import signal
from itertools import islice

import pytest
import torch
from torch import Tensor

from sde_diffusion.data import Dataset, DataSpec, training_batches
from sde_diffusion.data.workers import choose_workers
from sde_diffusion.training import TrainingConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


class Deadly(Dataset):
    """A set whose reader is killed on its way, as by a system that has no memory left."""

    spec = DataSpec("deadly", (2,), levels=None)

    def __len__(self) -> int:
        return 5

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        if 3 in indices.tolist():
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(len(indices), 2), None


class Numbers(Deadly):
    """The process that read, and its answer to Ctrl-C, for each example."""

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        deaf = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        return torch.tensor([[os.getpid(), deaf]] * len(indices)), None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_is_killed_ends_the_run_with_a_reason() -> None:
    """torch raises by a signal, wherever that finds us: mostly, but not always, as we wait for a batch."""
    batches = training_batches(Deadly(), batch=2, seed=0, workers=1)
    with pytest.raises(RuntimeError, match=r"reads the data was killed .*lower training.workers|DataLoader worker"):
        list(islice(batches, 5))


def test_workers_stay_and_leave_ctrl_c_to_the_run() -> None:
    batches = training_batches(Numbers(), batch=2, seed=0, workers=2)
    x = torch.cat([next(batches).x for _ in range(12)])
    assert len(x[:, 0].unique()) == 2, "over several epochs"
    assert bool((x[:, 1] == 1).all())
    readers = [int(pid) for pid in x[:, 0].unique()]
    assert os.getpid() not in readers
    del batches
    for pid in readers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("cores", "ranks", "expected"), [(1, "1", 1), (2, "1", 1), (8, "1", 7), (64, "1", 8), (16, "4", 3), (4, "8", 1)]
)
def test_workers_are_as_many_as_cores_to_spare(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert choose_workers(TrainingConfig().workers) == expected
    assert choose_workers(0) == 0
    assert choose_workers(3) == 3
