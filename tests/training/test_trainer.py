"""The training loop: a function of (config, seed, step), and what it reports."""

import io
import itertools
import math
import os
import re
import signal
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sde_diffusion.config.parse import Raw, merge
from sde_diffusion.data import Batch, training_batches
from sde_diffusion.data import dataset as base
from sde_diffusion.errors import RunError
from sde_diffusion.guidance import ClassifierFree
from sde_diffusion.losses import DSMLoss
from sde_diffusion.rng import generator
from sde_diffusion.training import Trainer
from tests.conftest import assert_mean
from tests.training.tiny import DIGITS, POINTS, last_checkpoint, resumed, same_bits, timeless_metrics, trainer_for

LABELLED = {"model": {"conditional": True}, "training": {"label_dropout": 0.4}}
DEMANDING = {"training": {"optimizer": "adamw", "weight_decay": 0.1, "flip": True, "accumulate": 3, "clip": None}}
SIMPLE = {"loss": {"weighting": "simple", "time_sampler": "uniform"}}
RUNS: dict[str, Raw] = {
    "points": POINTS,
    "dropout, flips, accumulation, adamw": merge(DIGITS, DEMANDING),
    "labels, streamed data": merge(merge(DIGITS, LABELLED), {"data": {"name": "arrays"}}),
    "bfloat16, huber, uniform": merge(
        DIGITS, {"training": {"precision": "bfloat16"}, "loss": {"distance": "huber", "time_sampler": "uniform"}}
    ),
    "learned weighting, times by their losses": merge(
        POINTS,
        {
            "loss": {"weighting": "uncertainty", "time_sampler": {"name": "loss_second_moment", "bins": 4}},
            "training": {"accumulate": 3},
        },
    ),
    "log-normal times": merge(POINTS, {"loss": {"weighting": "edm", "time_sampler": "log_normal"}}),
}


class Killed(BaseException):
    """Ends a run as a kill does: nothing is saved."""


def at_step(trainer: Trainer, step: int, act: Callable[[], None]) -> None:
    """Have `act` called after the training step that makes the trainer's count `step`, before it is counted."""
    inner = trainer.train_step

    def train_step(batch: Batch) -> tuple[DSMLoss, Tensor]:
        result = inner(batch)
        if trainer.step + 1 == step:
            act()
        return result

    trainer.train_step = train_step  # type: ignore[method-assign]


def kill() -> None:
    raise Killed


def write_digits(path: Path) -> Path:
    """The digits as a file."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.save(path / "digits.npy", digits.images[:60, None].astype(np.uint8))
    np.save(path / "labels.npy", digits.target[:60])
    return path


def materialised(raw: Raw, path: Path, monkeypatch: pytest.MonkeyPatch) -> Raw:
    if raw["data"]["name"] != "arrays":
        return raw
    folder = write_digits(path)
    monkeypatch.setattr(base, "MEMORY_LIMIT", 100)
    files = {"file": str(folder / "digits.npy"), "labels": str(folder / "labels.npy"), "levels": 17}
    return merge(raw, {"data": {"name": "arrays"} | files})


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    raw = materialised(RUNS[name], tmp_path, monkeypatch)
    trainer_for(tmp_path / "whole", raw).run()

    killed = trainer_for(tmp_path / "killed", raw)
    at_step(killed, 14, kill)
    with pytest.raises(Killed):
        killed.run()
    torch.rand(3)  # the global generator plays no part
    again = resumed(tmp_path / "killed", raw)
    assert again.step == 10
    assert again.run() is None

    assert last_checkpoint(tmp_path / "whole").meta["step"] == 20
    assert same_bits(last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "killed"))
    assert timeless_metrics(tmp_path / "whole") == timeless_metrics(tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 14])
def test_a_signal_saves_at_once_and_the_resumed_run_is_the_same_run(tmp_path: Path, number: int, step: int) -> None:
    trainer_for(tmp_path / "whole").run()
    stopped = trainer_for(tmp_path / "stopped")
    at_step(stopped, step, lambda: os.kill(os.getpid(), number))
    assert stopped.run() == number
    assert last_checkpoint(tmp_path / "stopped").meta["step"] == step
    assert resumed(tmp_path / "stopped").run() is None
    assert same_bits(last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "stopped"))
    assert timeless_metrics(tmp_path / "whole") == timeless_metrics(tmp_path / "stopped")


def test_a_second_signal_acts_as_usual(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(trainer, 3, twice)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_depends_on_its_seed(tmp_path: Path) -> None:
    for seed in (0, 1):
        trainer_for(tmp_path / str(seed), merge(POINTS, {"seed": seed}), steps=2).run()
    assert not same_bits(last_checkpoint(tmp_path / "0"), last_checkpoint(tmp_path / "1"))


def gradients(trainer: Trainer, count: int) -> Tensor:
    """Gradients of `count` steps at the first weights, (count, parameters)."""
    found: list[Tensor] = []
    trainer.model.net.output.bias.data.fill_(1.0)  # an error whose gradient stands out of the noise
    first = [p.detach().clone() for p in trainer.model.parameters()]

    def keep(*_: object) -> None:
        found.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))

    trainer.optimizer.register_step_pre_hook(keep)
    for batch, _ in zip(training_batches(trainer.train, batch=16, seed=0), range(count), strict=False):
        trainer.train_step(batch)
        trainer.step += 1
        for parameter, value in zip(trainer.model.parameters(), first, strict=True):
            parameter.data.copy_(value)
    return torch.stack(found)


def test_accumulated_pieces_give_the_gradient_of_the_whole_batch_in_the_mean(tmp_path: Path) -> None:
    raw = merge(POINTS, SIMPLE)
    pieces = gradients(trainer_for(tmp_path, raw, accumulate=5, steps=150, clip=None), 150)
    whole = gradients(trainer_for(tmp_path, raw, steps=150, clip=None), 150)
    direction = torch.nn.functional.normalize(gradients(trainer_for(tmp_path, raw, clip=None), 20).mean(0), dim=0)
    along = pieces @ direction
    assert_mean(along - whole @ direction, 0.0)
    assert float(along.mean()) > 20 * float(along.std()) / math.sqrt(len(along)), "the test can tell 0.8 from 1"


def poison(trainer: Trainer, step: int) -> None:
    """Make the network give NaN for two samples of a step, counted from 0."""

    def hook(module: object, arguments: object, out: Tensor) -> Tensor:
        bad = torch.zeros(len(out), 1)
        bad[:2] = math.nan if trainer.step == step else 0.0
        return out + bad

    trainer.model.net.register_forward_hook(hook)


@pytest.mark.parametrize("log_every", [1, 0])
def test_nan_stops_with_a_diagnosis_and_the_last_checkpoint_is_sound(tmp_path: Path, log_every: int) -> None:
    trainer = trainer_for(tmp_path / "bad", log_every=log_every)
    poison(trainer, 12)
    with pytest.raises(
        RunError, match=r"stopped in step 13: the loss of 2 of 16 samples was not finite, at t = \S+, \S+\."
    ):
        trainer.run()
    assert last_checkpoint(tmp_path / "bad").meta["step"] == 10
    resumed(tmp_path / "bad", log_every=log_every).run()
    trainer_for(tmp_path / "good", log_every=log_every).run()
    assert same_bits(last_checkpoint(tmp_path / "good"), last_checkpoint(tmp_path / "bad"))


def test_nan_is_never_saved_by_a_stop_either(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, log_every=0)
    poison(trainer, 12)
    at_step(trainer, 14, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunError, match="in step 13"):
        trainer.run()
    assert last_checkpoint(tmp_path).meta["step"] == 10


def test_validation_loss_is_a_function_of_the_weights(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, merge(DIGITS, {"training": {"validation_examples": 40}}))
    first = trainer.validate()
    torch.rand(5)
    trainer.step = 7
    assert trainer.validate() == first
    batch = next(training_batches(trainer.train, batch=16, seed=5))
    trainer.train_step(batch)
    changed = trainer.validate()
    assert changed != first
    other = trainer_for(tmp_path / "other", merge(DIGITS, {"training": {"validation_examples": 40}}))
    other.ema.model.load_state_dict(trainer.ema.model.state_dict())
    assert other.validate() == changed
    assert math.isfinite(changed["validation_loss"])
    assert len(changed["validation_error_by_t"]) == 10


def test_validation_uses_every_held_out_example_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(tmp_path, validation_examples=37)
    seen: list[int] = []
    inner = trainer.step_loss.terms
    monkeypatch.setattr(
        trainer.step_loss, "terms", lambda model, x, *rest: seen.append(len(x)) or inner(model, x, *rest)
    )
    trainer.validate()
    assert sum(seen) == 37


def test_metrics_have_the_loss_by_time_and_come_as_often_as_asked(tmp_path: Path) -> None:
    trainer_for(tmp_path, batch=64, log_every=5, validate_every=8, steps=18).run()
    rows = timeless_metrics(tmp_path)
    assert [row["step"] for row in rows if "loss" in row] == [5, 10, 15, 18]
    assert [row["step"] for row in rows if "validation_loss" in row] == [8, 16, 18]
    for row in (row for row in rows if "loss" in row):
        assert len(row["error_by_t"]) == 10
        assert row["loss"] > 0
        assert row["grad_norm"] > 0
        assert row["learning_rate"] > 0


def test_never_means_never(tmp_path: Path) -> None:
    off: dict[str, Any] = dict.fromkeys(
        ("log_every", "validate_every", "sample_every", "snapshot_every", "save_every"), 0
    )
    trainer_for(tmp_path, **off).run()
    assert [row["step"] for row in timeless_metrics(tmp_path)] == [20]
    assert last_checkpoint(tmp_path).meta["step"] == 20
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(("raw", "rows"), [(DIGITS, 3), (merge(DIGITS, LABELLED), 9)])  # nine, of nine classes
def test_pictures_come_from_fixed_noise(tmp_path: Path, raw: Raw, rows: int) -> None:
    trainer = trainer_for(tmp_path, raw, sample_every=4, steps=4)
    trainer.run()
    picture = trainer.folder.sample_path(4)
    with Image.open(picture) as image:
        assert image.height == rows * (48 + 2) + 2
    content = picture.read_bytes()
    trainer.draw_preview()
    assert picture.read_bytes() == content


def test_a_score_too_rough_to_draw_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_for(tmp_path, preview={"max_nfe": 3, "rtol": 1e-6}, sample_every=10)
    assert trainer.run() is None
    assert "no picture at step 10" in caplog.text


def test_hidden_labels_are_a_share_of_all(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, merge(DIGITS, LABELLED))
    label = torch.arange(4000) % 10
    hidden = trainer._hide_labels(label, 3)
    assert hidden is not None
    assert_mean((hidden == -1).float(), 0.4)
    assert torch.equal(hidden[hidden >= 0], label[hidden >= 0])
    assert torch.equal(hidden, trainer._hide_labels(label, 3))  # type: ignore[arg-type]
    assert not torch.equal(hidden, trainer._hide_labels(label, 4))  # type: ignore[arg-type]


def test_the_row_of_hidden_labels_is_that_of_guidance(tmp_path: Path) -> None:
    """Where all labels are hidden one row of the table learns, which is the one that guidance goes away from."""
    trainer = trainer_for(tmp_path, merge(DIGITS, LABELLED), label_dropout=1.0)
    model, table = trainer.model, trainer.model.net.condition.table.weight
    before = table.detach().clone()
    for batch in itertools.islice(training_batches(trainer.train, batch=16, seed=0), 3):
        trainer.train_step(batch)
    moved = (table != before).any(1)
    assert moved.nonzero().flatten().tolist() == [0]
    x, t, labels = torch.randn(2, 1, 8, 8, generator=generator(0)), torch.full((2,), 0.5), torch.tensor([3, 4])
    left = ClassifierFree(scale=0.0).apply(model.eval().bind, labels, model.sde, conditional=True)
    with torch.no_grad():
        found = left(x, t)
        table[1:] += 1
        assert torch.equal(left(x, t), found)
        table[0] += 1
        assert not torch.equal(left(x, t), found)


def test_the_network_is_told_the_labels_that_are_left(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, merge(DIGITS, LABELLED), accumulate=3)
    told: list[torch.Tensor] = []
    trainer.model.net.register_forward_pre_hook(lambda module, inputs: told.append(inputs[2]))
    batch = next(training_batches(trainer.train, batch=16, seed=0))
    trainer.train_step(batch)
    hidden = trainer._hide_labels(batch.label, 0)
    assert hidden is not None
    assert torch.equal(torch.cat(told), hidden)
    assert bool((hidden == -1).any())


def test_bfloat16_reaches_the_network_alone(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, DIGITS, precision="bfloat16")
    seen: list[torch.dtype] = []
    trainer.model.net.output.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    terms, norm = trainer.train_step(next(training_batches(trainer.train, batch=16, seed=0)))
    assert seen == [torch.bfloat16]
    assert terms.loss.dtype == norm.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert bool(terms.loss.isfinite().all())


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, merge(POINTS, SIMPLE), steps=150, batch=64, validate_every=0, learning_rate=1e-2)
    before = trainer.validate()["validation_loss"]
    trainer.run()
    assert trainer.validate()["validation_loss"] < 0.8 * before


class Terminal(io.StringIO):
    """What a user looks at."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_progress_with_loss_speed_and_time_left(tmp_path: Path) -> None:
    shown = Terminal()
    with redirect_stderr(shown):
        trainer_for(tmp_path / "shown", log_every=1).run()
    assert re.search(r"20/20 \[\d\d:\d\d<\d\d:\d\d, .*loss [\d.]+, \d+ examples/s", shown.getvalue())
    quiet = io.StringIO()
    with redirect_stderr(quiet):
        trainer_for(tmp_path / "quiet", log_every=1).run()
    assert "/20" not in quiet.getvalue()  # lines of the log are for a file too, a bar is not
