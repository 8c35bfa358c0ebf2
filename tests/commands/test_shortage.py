"""A batch that does not fit: one line with the largest that does, and nothing lost."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sde_diffusion.commands import estimate, fitting
from sde_diffusion.networks import UNet
from sde_diffusion.training import RunFolder, Trainer
from tests.commands.running import TINY, invoke

LOOSE = ("--rtol", 0.5, "--atol", 0.5)
GRID = ("--solver", "dpmpp_2m", "--steps", 2)
COMMANDS = {
    "sample": ("sample", "--solver", "em", "--steps", 5, "--count", 40),
    "likelihood": ("likelihood", *LOOSE, "--no-reference", "--limit", 40),
    "--tol": ("likelihood", *LOOSE, "--tol", 1, "--limit", 40),
    "--ledger": ("likelihood", *LOOSE, "--ledger", "--limit", 40),
    "encode": ("encode", *GRID, "--limit", 40),
    "interpolate": ("interpolate", *GRID, "--pair", 0, 1, "--frames", 40),
}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which the network can take no more than 30 examples at once."""
    inner = UNet.forward

    def forward(net: UNet, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        if len(x) > 30:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return inner(net, x, c_noise, label)

    monkeypatch.setattr(UNet, "forward", forward)
    monkeypatch.setattr(fitting, "free_memory", lambda device: 5e5)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_largest_batch_is_told_and_works(tmp_path: Path, trained: Path, name: str) -> None:
    command, *options = COMMANDS[name]
    outcome = invoke(command, trained, *options, "--out", tmp_path)
    assert outcome.code == 2
    told = re.search(
        r"a batch of 40 does not fit into the memory of cpu: about (\d+) would; give --batch (\d+)", outcome.error
    )
    assert told is not None, outcome.error
    assert told[1] == told[2]
    assert 0 < int(told[1]) < 30
    if command != "likelihood":  # which takes longer
        assert invoke(command, trained, *options, "--batch", told[1], "--out", tmp_path).code == 0


@pytest.mark.usefixtures("short")
def test_what_should_fit_is_said_to(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "free_memory", lambda device: 1e12)
    outcome = invoke("sample", trained, *COMMANDS["sample"][1:], "--out", tmp_path)
    assert outcome.code == 2
    assert re.search(r"does not fit .* now, although about [\d,]+ should; end what else runs there", outcome.error)


@pytest.mark.parametrize(
    ("room", "options", "message"),
    [
        (3.7e6, (), r"a batch of 16 does not fit into the memory of cpu: about (\d+) would; set perf.checkpointing=true"
        r" or training.accumulate=\d+ or a smaller training.batch; the last checkpoint is sound"),
        (3.7e6, ("--set", "training.accumulate=2"), "a batch of 8 does not fit"),
        (1e3, (), "about 0 would; set perf.checkpointing=true or a smaller network"),
        (1e12, (), "out of memory on cpu, although a batch of 16 should fit"),
    ],
)  # fmt: skip
def test_training_says_what_helps_and_keeps_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: float, options: tuple[object, ...], message: str
) -> None:
    inner = Trainer.train_step

    def step(trainer: Trainer, batch: object) -> object:
        if trainer.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return inner(trainer, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(estimate, "free_memory", lambda device: room)
    quick = ("--set", "training.save_every=1", "--set", "training.sample_every=0", "--set", "training.validate_every=0")
    outcome = invoke("train", *TINY, *quick, *options, "--steps", 4, "--out", tmp_path)
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last)
    found = RunFolder(tmp_path).latest()
    assert found is not None
    assert found.name == "step_00000002.safetensors"
