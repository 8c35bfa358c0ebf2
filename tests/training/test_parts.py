"""EMA, learning rate, the loss window, TensorBoard and the run's folder, each alone."""

import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tqdm import tqdm

from sde_diffusion.errors import InputError, RunError
from sde_diffusion.losses import DSMLoss
from sde_diffusion.training import EMA, RunFolder, TrainingConfig, newest_run
from sde_diffusion.training.board import Board
from sde_diffusion.training.speed import Progress
from sde_diffusion.training.window import HELD, LossWindow
from tests.training.test_checkpoint import example


def test_ema_is_its_closed_form() -> None:
    draws = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2)
    first = model.weight.detach().clone().double()
    ema, steps = EMA(model, 0.9), 100
    weights = torch.randn(steps, 2, 3, generator=draws)
    for step in range(steps):
        model.weight.data.copy_(weights[step])
        ema.update(model, step)
    d = [min(0.9, (1 + k) / (10 + k)) for k in range(steps)]
    expected = math.prod(d) * first
    for k in range(steps):
        expected = expected + (1 - d[k]) * math.prod(d[k + 1 :]) * weights[k].double()
    # float32: each of 100 updates rounds to 6e-8 of values about 1, and older errors fade
    torch.testing.assert_close(ema.model.weight.double(), expected, rtol=0, atol=1e-6)
    assert d[79] < 0.9 == d[81], "the warm-up ends within the test"


def test_ema_takes_buffers_as_they_are_and_starts_as_the_model() -> None:
    model = nn.BatchNorm1d(3)
    ema = EMA(model, 0.999)
    assert torch.equal(ema.model.weight, model.weight)
    model(torch.randn(10, 3, generator=torch.Generator().manual_seed(0)))
    ema.update(model, 0)
    assert torch.equal(ema.model.running_mean, model.running_mean)  # type: ignore[arg-type]
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_learning_rate_rises_then_falls_to_zero() -> None:
    config = TrainingConfig(steps=1000, warmup=100, learning_rate=2e-3, decay="cosine")
    rate = config.learning_rate_at
    assert rate(0) == pytest.approx(2e-5, rel=1e-5)
    assert rate(49) == pytest.approx(1e-3 * 0.5 * (1 + math.cos(0.049 * math.pi)), rel=1e-12)
    assert rate(500) == pytest.approx(1e-3, rel=1e-12)
    assert 0 < rate(999) < 1e-8
    constant = TrainingConfig(steps=10, warmup=0, learning_rate=2e-3, decay="constant").learning_rate_at
    assert [constant(step) for step in (0, 5, 9)] == [2e-3] * 3


def test_a_cooldown_leaves_the_rates_before_it_to_any_number_of_steps() -> None:
    short, long = (
        TrainingConfig(steps=n, warmup=10, learning_rate=2e-3, decay="cooldown", cooldown=0.25) for n in (80, 200)
    )
    assert (short.falling_from(), long.falling_from()) == (60, 150)
    same = [short.learning_rate_at(k) == long.learning_rate_at(k) for k in range(80)]
    assert same == [True] * 61 + [False] * 19
    assert short.learning_rate_at(30) == 2e-3
    assert short.learning_rate_at(70) == pytest.approx(1e-3, rel=1e-12)
    assert short.learning_rate_at(79) == pytest.approx(2e-3 / 20, rel=1e-12)
    assert [TrainingConfig(steps=9, decay=name).falling_from() for name in ("constant", "cosine")] == [9, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cooldown": 0.0}, r"`cooldown` must be in \(0, 1\], got 0.0"),
        *(({name: 0}, f"`{name}` must be > 0") for name in ("steps", "batch", "accumulate", "keep", "preview_count")),
        *(({name: -1}, f"`{name}` must be ≥ 0") for name in ("warmup", "weight_decay", "log_every", "workers")),
        ({"learning_rate": 0.0}, "`learning_rate` must be > 0"),
        ({"validation_examples": -5}, "`validation_examples` must be > 0"),
        ({"accumulate": 65}, "`accumulate` must be ≤ `batch` = 64"),
        ({"label_dropout": 1.5}, r"`label_dropout` must be in \[0, 1\]"),
        ({"ema_decay": (1.0,)}, r"`ema_decay` must be in \[0, 1\)"),
        ({"beta2": -0.1}, r"`beta2` must be in \[0, 1\)"),
        ({"clip": 0.0}, "`clip` must be > 0 or null"),
    ],
)
def test_training_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingConfig(**options)


def terms(step: int, count: int = 8) -> DSMLoss:
    draws = torch.Generator().manual_seed(step)
    loss, error, t = torch.rand(3, count, generator=draws)
    return DSMLoss(loss, error, t, torch.ones(8), trained=loss)


def test_window_reports_means_and_the_error_by_time() -> None:
    window = LossWindow(t_max=1.0)
    steps = [terms(k) for k in range(2 * HELD + 5)]
    for k, step in enumerate(steps):
        window.add(k, step, torch.tensor(float(k)))
    report = window.report()
    loss, error, t, *_ = (torch.cat(column).double() for column in zip(*steps, strict=True))
    assert report["loss"] == pytest.approx(float(loss.mean()), rel=1e-10)
    assert report["grad_norm"] == pytest.approx((len(steps) - 1) / 2, rel=1e-10)
    by_t = report["error_by_t"]
    assert isinstance(by_t, list)
    for i, value in enumerate(by_t):
        assert value == pytest.approx(float(error[(t * 10).long() == i].mean()), rel=1e-10)
    assert window.report() == {}


def test_window_leaves_empty_bins_empty_and_puts_t_max_in_the_last() -> None:
    window = LossWindow(t_max=2.0)
    two = DSMLoss(torch.ones(2), torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.3]), torch.ones(2), torch.ones(2))
    window.add(0, two, torch.zeros(()))
    assert window.report()["error_by_t"] == [None, 3.0, *[None] * 7, 1.0]


def test_window_is_bounded_and_its_report_does_not_depend_on_when_it_sums() -> None:
    seen, unseen = LossWindow(1.0), LossWindow(1.0)
    for k in range(5 * HELD + 3):
        seen.add(k, terms(k), torch.tensor(0.1 * k))
        unseen.add(k, terms(k), torch.tensor(0.1 * k))
        assert len(unseen._held) < HELD
        if k % 7 == 0:
            restored = LossWindow(1.0)
            restored.sums = seen.sums
            seen = restored
    assert seen.report() == unseen.report()


def test_window_diagnoses_what_is_not_finite() -> None:
    window = LossWindow(1.0)
    window.add(4, terms(0), torch.tensor(1.0))
    bad = terms(1)
    bad.loss[:2] = torch.tensor([math.nan, math.inf])
    bad.t[:2] = torch.tensor([0.125, 0.5])
    window.add(5, bad, torch.tensor(1.0))
    message = "training stopped in step 6: the loss of 2 of 8 samples was not finite, at t = 0.125, 0.5. The last"
    with pytest.raises(RunError, match=message):
        window.report()
    window = LossWindow(1.0)
    window.add(7, terms(0), torch.tensor(math.inf))
    with pytest.raises(RunError, match=r"in step 8: the gradient was not finite although the loss was"):
        _ = window.sums
    window = LossWindow(1.0)
    window.add(0, bad, torch.tensor(1.0))
    for k in range(1, HELD - 1):
        window.add(k, terms(k), torch.tensor(1.0))
    with pytest.raises(RunError, match="in step 1:"):  # though nobody asks for a report
        window.add(HELD, terms(HELD), torch.tensor(1.0))


def test_board_writes_scalars(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = Board(tmp_path, 0)
    board.write({"loss": 0.5, "error_by_t": [0.25, None], "note": "text"}, 10)
    board.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["error_by_t/0", "loss"]
    assert [(row.step, row.value) for row in events.Scalars("loss")] == [(10, 0.5)]


def test_board_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = Board(tmp_path, 0)
    board.write({"loss": 0.5}, 1)
    board.close()
    assert not list(tmp_path.iterdir())


def test_board_that_cannot_write_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    board = Board(tmp_path, 0)
    board.write({"loss": 0.5}, 1)
    assert "no more numbers for TensorBoard" in caplog.text


def test_metrics_survive_a_line_cut_short(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.metrics() == []
    folder.rewind(0)
    for step in (5, 10, 15):
        folder.log({"step": step, "loss": 0.1 * step})
    with folder.metrics_path.open("a") as file:
        file.write('{"step": 20, "lo')
    folder.rewind(10)
    folder.log({"step": 15})
    assert [json.loads(line)["step"] for line in folder.metrics_path.read_text().splitlines()] == [5, 10, 15]


def test_newest_run_is_the_one_whose_checkpoint_is_newest(tmp_path: Path) -> None:
    assert newest_run(tmp_path / "missing") is None
    assert newest_run(tmp_path) is None
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)  # stopped before its first checkpoint
    assert newest_run(tmp_path) is None
    for age, name in enumerate(["a", "b/inner", "c"]):
        path = RunFolder(tmp_path / name).save(example(100 * age), keep=1)
        os.utime(path, (1e9 - age, 1e9 - age))
    found = newest_run(tmp_path)
    assert found is not None
    assert found.path == tmp_path / "a"


def test_lock_holds_within_one_process_too_and_names_its_holder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with (
        folder.locked(),
        pytest.raises(InputError, match=f"is being trained by another process \\(pid {os.getpid()}\\)"),
        folder.locked(),
    ):
        pass
    assert not (tmp_path / "run").exists(), "nothing was written into it"
    with folder.locked():
        assert (tmp_path / "run" / "lock").stat().st_mode & 0o111 == 0


def test_lock_is_not_held_by_children(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    read, write = os.pipe()
    running, started = os.pipe()
    with folder.locked():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: as torch's workers do
            child = os.fork()
        if not child:
            os.write(started, b"1")
            os.close(write)
            os.read(read, 1)  # until the parent closes its end
            os._exit(0)
        os.read(running, 1)
    with folder.locked():  # as after a kill of the parent: the child lives
        pass
    os.close(write)
    os.waitpid(child, 0)
    for end in (read, running, started):
        os.close(end)


def test_lines_of_progress_come_at_once_and_then_each_half_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr("sde_diffusion.training.speed.time.monotonic", lambda: now)
    caplog.set_level("INFO")
    bar: tqdm[Any] = tqdm(total=1000, disable=True)
    for progress in (Progress(bar, 64, lines=True), Progress(bar, 64, lines=False)):
        for now in (0.0, 29.0, 31.0, 60.0, 62.0):
            progress.show(int(now) + 100, 0.12345, 640.0)
    assert caplog.messages == [
        "step 100 of 1000: loss 0.1235, 640 examples/s, 01:30 left",
        "step 131 of 1000: loss 0.1235, 640 examples/s, 01:26 left",
        "step 162 of 1000: loss 0.1235, 640 examples/s, 01:23 left",
    ]
