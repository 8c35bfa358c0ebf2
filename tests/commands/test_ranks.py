"""`train` by two processes: what they say and leave behind, and how they end together whatever happens to one."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from sde_diffusion.data import Batch, training_batches
from sde_diffusion.errors import InputError
from sde_diffusion.training import RunFolder, Trainer, trainer
from tests.commands.running import TINY, Outcome, invoke
from tests.ranks import free_port, on_ranks
from tests.training.tiny import last_checkpoint, same_bits, timeless_metrics

ROOT = Path(__file__).parents[2]
RUN = (*TINY, "--timeout", 20, "--set", "training.save_every=2", "--set", "training.sample_every=0")
Change = Callable[[pytest.MonkeyPatch, int], None]
Case = tuple[str, Change, tuple[object, ...]]  # folder, what goes wrong, more options


def at_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[Trainer], None]) -> None:
    """Have `act` called before the training step that follows `step` others."""
    inner = Trainer.train_step

    def train_step(trainer: Trainer, batch: object) -> object:
        if trainer.step == step:
            act(trainer)
        return inner(trainer, batch)  # type: ignore[arg-type]

    patch.setattr(Trainer, "train_step", train_step)


def nothing(patch: pytest.MonkeyPatch, rank: int) -> None:
    """As it should be."""


def terminated(patch: pytest.MonkeyPatch, rank: int) -> None:
    if rank == 1:
        at_step(patch, 2, lambda _: os.kill(os.getpid(), signal.SIGTERM))


def not_finite(patch: pytest.MonkeyPatch, rank: int) -> None:
    def spoil(trainer: Trainer) -> None:
        inner = trainer.step_loss.terms

        def terms(*rest: object) -> object:
            found = inner(*rest)  # type: ignore[arg-type]
            return found._replace(loss=found.loss * torch.nan, trained=found.trained * torch.nan)

        trainer.step_loss.terms = terms  # type: ignore[method-assign,assignment]

    if rank == 1:
        at_step(patch, 3, spoil)


def full_disk(patch: pytest.MonkeyPatch, rank: int) -> None:
    def fill(trainer: Trainer) -> None:
        def fsync(file: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", fsync)

    if rank == 0:
        at_step(patch, 3, fill)


def broken_data(patch: pytest.MonkeyPatch, rank: int) -> None:
    def three(*rest: Any, **options: Any) -> Iterator[Batch]:
        yield from islice(training_batches(*rest, **options), 3)
        raise InputError("cannot read picture 7: it has shrunk")

    if rank == 1:
        patch.setattr(trainer, "training_batches", three)


def killed(patch: pytest.MonkeyPatch, rank: int) -> None:
    if rank == 1:
        at_step(patch, 3, lambda _: os._exit(9))


def scenarios(path: Path, cases: list[Case], ports: list[int]) -> list[Outcome]:
    """What one rank says in each case, a run of its own."""
    outcomes = []
    for (name, change, more), port in zip(cases, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        with pytest.MonkeyPatch.context() as patch:
            change(patch, int(os.environ["RANK"]))
            command = "classifier" if name == "classifier" else "train"
            outcomes.append(invoke(command, *RUN, "--steps", 5, "--out", path / name, *more))
    return outcomes


def steps(path: Path) -> list[str]:
    return [checkpoint.stem for checkpoint in RunFolder(path).checkpoints()]


def test_what_happens_to_one_rank_ends_all_once_and_loses_nothing(tmp_path: Path) -> None:
    cases: list[Case] = [
        ("whole", nothing, ()),
        ("classifier", nothing, ("--set", "classifier.network={channels: 4, multipliers: [1]}")),
        ("uneven", nothing, ("--set", "training.batch=15")),
        ("thin", nothing, ("--set", "training.accumulate=9")),
        ("terminated", terminated, ()),
        ("terminated", nothing, ()),
        ("not_finite", not_finite, ()),
        ("broken_data", broken_data, ("--set", "training.validation_examples=7")),
        ("full_disk", full_disk, ()),
        ("full_disk", nothing, ("--set", "training.parallel=fsdp", "--set", "training.sample_every=5")),
    ]
    first, second = on_ranks(2, scenarios, tmp_path, cases, [free_port() for _ in cases])
    assert [outcome.out + outcome.err for outcome in second] == [""] * len(cases), "rank 0 speaks for all"
    assert [a.code for a in first] == [b.code for b in second] == [0, 0, 2, 2, 143, 0, 1, 2, 2, 0]
    whole, classifier, uneven, thin, stopped, resumed, bad, broken, full, sharded = first
    assert "parameters on 2 ranks of cpu" in whole.out
    assert "done at step 5" in classifier.out
    assert 0 <= RunFolder(tmp_path / "classifier").metrics()[-1]["validation_accuracy"] <= 1
    assert "multiple of the number of ranks, 2, for each takes as many rows, got 15; take 14 or 16" in uneven.error
    assert "`training.accumulate` must be ≤ 8, the rows of each of 2 ranks" in thin.error
    assert not (tmp_path / "uneven").exists()
    assert "stopped at step 3" in stopped.out
    assert "from step 3 to 5" in resumed.out
    assert same_bits(last_checkpoint(tmp_path / "terminated"), last_checkpoint(tmp_path / "whole"))
    assert "stopped in step 4: the loss of 8 of 16 samples was not finite" in bad.err
    assert steps(tmp_path / "not_finite") == ["step_00000002"]
    assert "rank 1: cannot read picture 7: it has shrunk" in broken.err
    assert steps(tmp_path / "broken_data")[-1] == "step_00000003", "saved where it stood"
    assert "No space left on device; free space" in full.err
    assert steps(tmp_path / "full_disk")[0] == "step_00000004", "resumed from step 2, of which 4 and 5 follow"
    assert "from step 2 to 5" in sharded.out
    assert RunFolder(tmp_path / "full_disk").sample_path(5).exists()


def test_a_dead_rank_ends_the_others_at_once_with_a_clear_message(tmp_path: Path) -> None:
    first, second = on_ranks(2, scenarios, tmp_path, [("killed", killed, ())], [free_port()])
    assert second is None
    (outcome,) = first
    assert outcome.code == 1
    assert "the other ranks are lost: one of them died, or did not answer in time" in outcome.err
    assert "the same command goes on from there" in outcome.err
    assert steps(tmp_path / "killed") == ["step_00000002"]


KILLING = """
import os, signal
from sde_diffusion.commands import main
from sde_diffusion.training import Trainer

inner = Trainer.train_step

def train_step(trainer, batch):
    if (trainer.step, os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (7, "1", "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(trainer, batch)

Trainer.train_step = train_step
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_torchrun_restarts_after_a_killed_rank_and_the_run_is_the_same_run(tmp_path: Path, parallel: str) -> None:
    """Bit for bit, and so is its log."""
    (tmp_path / "killing.py").write_text(KILLING)
    more = ("--steps", 12, "--set", f"training.parallel={parallel}", "--set", "training.log_every=3")
    options = list(map(str, ("train", *RUN, *more)))
    for name in ("whole", "killed"):
        program = tmp_path / "killing.py" if name == "killed" else ROOT / "cli.py"
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "--max-restarts=3",
        ]
        done = subprocess.run(
            [*launch, str(program), *options, "--out", str(tmp_path / name)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        assert ("resuming" in done.stdout) == (name == "killed")
    assert "from step 6 to 12" in done.stdout
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert same_bits(last_checkpoint(whole), last_checkpoint(killed))
    assert timeless_metrics(whole) == timeless_metrics(killed)
