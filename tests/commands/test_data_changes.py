"""Data that shrink or change under a run: one clear line, nothing lost, and the run goes on when they are mended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sde_diffusion.data import dataset as base
from sde_diffusion.training import RunFolder, Trainer
from tests.commands.running import TINY, invoke, train
from tests.data.files import write_image
from tests.data.test_latents import MEANS, STDS
from tests.training.tiny import last_checkpoint, one_thread, same_bits

REPOSITORY = Path(__file__).parents[2]
BASE = (*TINY, "--set", "training.sample_every=0", "--set", "training.validate_every=0")
MLP = (*BASE, "--set", "model.network={name: mlp, width: 8}")


def arrays(root: Path) -> tuple[tuple[str, ...], Path]:
    root.mkdir()
    for i in range(3):
        np.save(root / f"{i}.npy", np.random.default_rng(i).normal(size=(20, 2)).astype(np.float32))
    return (*MLP, "--set", "data.name=arrays", "--set", f"data.file={root}"), root / "1.npy"


def latents(root: Path) -> tuple[tuple[str, ...], Path]:
    root.mkdir()
    np.savez(root / "a.npz", mean=MEANS, std=STDS)
    return (*MLP, "--set", "data.name=latents", "--set", f"data.root={root}"), root / "a.npz"


def images(root: Path) -> tuple[tuple[str, ...], Path]:
    for i in range(12):
        write_image(root / f"{i}.png", 8, 8, seed=i)
    options = ("--set", "data.name=images", "--set", f"data.root={root}", "--set", "data.size=8")
    return (*BASE, *options), root / "3.png"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("make", "gone"), [(arrays, False), (latents, False), (images, False), (images, True)])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_data_that_shrink_end_the_run_which_goes_on_when_they_are_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, workers: int, gone: bool
) -> None:
    options, file = make(tmp_path / "data")
    options = (*options, "--set", f"training.workers={workers}")
    run, content, inner = tmp_path / "run", file.read_bytes(), Trainer.train_step
    monkeypatch.setattr(base, "MEMORY_LIMIT", 0)

    def shrink(trainer: Trainer, *more: Any) -> Any:
        if trainer.step == 1 and gone:
            file.unlink()
        elif trainer.step == 1:
            os.truncate(file, len(content) // 2)
        return inner(trainer, *more)

    with one_thread():
        train(tmp_path / "whole", steps=12, base=options)
        with monkeypatch.context() as context:
            context.setattr(Trainer, "train_step", shrink)
            outcome = invoke("train", *options, "--steps", 12, "--out", run)
        assert outcome.code == 2
        assert str(file) in outcome.error
        assert ("restore it and resume the run" in outcome.error) or ("repair or remove it" in outcome.error)
        assert 1 < last_checkpoint(run).meta["step"] < 12, "saved where it stood"
        file.write_bytes(content)
        train(run, steps=12, base=options)
    assert same_bits(last_checkpoint(run), last_checkpoint(tmp_path / "whole"))


@pytest.mark.parametrize("count", [11, 13])
def test_another_number_of_examples_is_another_order(tmp_path: Path, count: int) -> None:
    options, file = images(tmp_path / "data")
    run = train(tmp_path / "run", base=(*options, "--set", "data.test_fraction=0.0", "--set", "data.validation=1"))
    if count == 11:
        file.unlink()
    else:
        write_image(tmp_path / "data" / "12.png", 8, 8)
    options = (*options, "--set", "data.test_fraction=0.0", "--set", "data.validation=1", "--steps", "3")
    outcome = invoke("train", *options, "--out", run)
    assert outcome.code == 2
    message = (
        f"split of the run {run} had 11 examples and now has {count - 1}; restore the data, or continue with what is"
    )
    assert message in outcome.error
    outcome = invoke("train", *options, "--out", run, "--set", "training.changed_data=accept")
    assert outcome.code == 0
    assert f"there are {count - 1} examples instead of 11; from here on they come in another order" in outcome.err
    assert last_checkpoint(run).meta["examples"] == count - 1


def test_ctrl_c_ends_the_workers_and_saves(tmp_path: Path) -> None:
    """A terminal sends it to all processes of a run at once."""
    options, _ = arrays(tmp_path / "data")
    code = "from sde_diffusion.data import dataset; dataset.MEMORY_LIMIT = 0; "
    code += "from sde_diffusion.commands import main; main()"
    command = [sys.executable, "-c", code, "train", *options, "--set", "training.workers=2", "--steps", "1000000"]
    command += ["--set", "training.save_every=5", "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while RunFolder(tmp_path / "run").latest() is None:
                assert time.monotonic() < deadline
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "the same command resumes it" in out
