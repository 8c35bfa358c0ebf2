"""Processes that read ahead: how many, and what happens when one is killed."""

import os
import signal
import time
from itertools import islice

import pytest
import torch
from torch import Tensor

from sde_diffusion.data import Dataset, DataSpec, training_batches
from sde_diffusion.data.disk.workers import choose_workers
from sde_diffusion.errors import RunError
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


class Broken(Deadly):
    """A set whose reader meets an error that nobody foresaw."""

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        raise RuntimeError("a fault of the reader")


def test_a_worker_that_is_killed_ends_the_run_with_a_reason() -> None:
    batches = training_batches(Deadly(), batch=2, seed=0, workers=1)
    with pytest.raises(RunError, match=r"reads the data was killed \(.*\).*lower training.workers, 0 for none"):
        list(islice(batches, 5))


def test_a_death_is_told_where_a_batch_is_awaited_and_nowhere_else() -> None:
    """torch's own handler would raise in the midst of a step, which then cannot be saved."""
    batches = training_batches(Numbers(), batch=2, seed=0, workers=1)
    pid = int(next(batches).x[0, 0])
    os.kill(pid, signal.SIGKILL)
    for _ in range(50):  # the step in hand
        time.sleep(0.01)
    with pytest.raises(RunError, match="reads the data was killed"):
        list(islice(batches, 5))


def test_an_error_of_a_living_worker_is_its_own() -> None:
    with pytest.raises(RuntimeError, match="a fault of the reader") as caught:
        next(training_batches(Broken(), batch=2, seed=0, workers=1))
    assert not isinstance(caught.value, RunError)


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
