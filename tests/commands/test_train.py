"""`train`: one run, its folder and its life."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from sde_diffusion.config.build import plain_config, read_config
from sde_diffusion.runtime import atomic_write as files
from sde_diffusion.training import Checkpoint, RunFolder, Trainer, load_checkpoint, save_checkpoint
from tests.commands.running import TINY, invoke, succeed, train
from tests.training.test_checkpoint import fail
from tests.training.tiny import last_checkpoint, one_thread, same_bits, timeless_metrics

REPOSITORY = Path(__file__).parents[2]


def on_a_cpu_with(patch: pytest.MonkeyPatch, instructions: str, slowdown: float) -> None:
    patch.setattr("sde_diffusion.runtime.performance.bfloat16_instructions", lambda: instructions)
    patch.setattr("sde_diffusion.runtime.performance.bfloat16_slowdown", lambda: slowdown)


def test_a_run_keeps_its_precision_on_another_cpu_and_says_what_that_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", *TINY, "--set", "training.precision=auto", "--out", tmp_path / "run", "--steps")
    on_a_cpu_with(monkeypatch, "AMX", 0.5)
    outcome = succeed(*command, 1)
    assert "parameters on cpu in bfloat16\n" in outcome.out
    assert "convolution" not in outcome.err
    assert last_checkpoint(tmp_path / "run").meta["config"]["training"]["precision"] == "bfloat16"
    on_a_cpu_with(monkeypatch, "", 8.0)
    outcome = succeed(*command, 2)
    assert "in bfloat16\n" in outcome.out
    assert "no instructions for bfloat16" in outcome.err
    assert "8.0 times as long as in float32" in outcome.err
    assert "training.precision was" not in outcome.err
    outcome = succeed(*command, 3, "--set", "training.precision=float32")
    assert "in float32\n" in outcome.out
    assert "training.precision is now float32 instead of bfloat16; the result will differ" in outcome.err
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["training"]["precision"] == "float32"
    on_a_cpu_with(monkeypatch, "AMX", 0.5)
    outcome = succeed(*command, 4)  # `auto` again: the run's own
    assert "in float32\n" in outcome.out
    assert "0.50 of its time in float32. --set training.precision=bfloat16 uses them" in outcome.err


def test_more_steps_before_the_cooldown_are_the_same_run(tmp_path: Path) -> None:
    """12 steps with the last 3 cooling down: at once, or planned as 8, of which 5 are taken, and then given 4 more."""
    decay = ("--set", "training.decay=cooldown", "--set", "training.cooldown=0.25", "--set", "training.sample_every=0")
    command = ("train", *TINY, *decay, "--set", "training.validate_every=0", "--out")
    succeed(*command, tmp_path / "whole", "--steps", 12)
    succeed(*command, tmp_path / "parts", "--steps", 5, "--set", "training.decay=constant")
    run = RunFolder(tmp_path / "parts")
    newest = run.latest()
    assert newest is not None
    stored = load_checkpoint(newest)  # as a run of 8 steps that was stopped at 5
    training = stored.meta["config"]["training"] | {"steps": 8, "decay": "cooldown"}
    save_checkpoint(
        newest, Checkpoint(stored.tensors, stored.meta | {"config": stored.meta["config"] | {"training": training}})
    )
    outcome = succeed(*command, tmp_path / "parts", "--steps", 12)
    assert "learning rate" not in outcome.err
    assert same_bits(last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "parts"))
    outcome = succeed(*command, tmp_path / "whole", "--steps", 14)
    assert "the learning rate now falls until step 14 instead of 12; the result will differ" in outcome.err
    refused = invoke(*command, tmp_path / "whole", "--steps", 20, "--set", "training.batch=8")
    assert "learning rate" not in refused.error, "nothing is said of what will not be done"


def test_a_run_leaves_its_config_checkpoint_metrics_and_picture(tmp_path: Path) -> None:
    outcome = succeed("train", *TINY, "--sde", "subvp", "--steps", 3, "--seed", 5, "--out", tmp_path / "run")
    run = tmp_path / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["sde"]["name"], config["training"]["steps"], config["seed"]) == ("subvp", 3, 5)
    checkpoint = last_checkpoint(run)
    assert checkpoint.meta["config"] == config == plain_config(read_config(run / "config.yaml"))
    assert checkpoint.meta["data"]["name"] == "digits"
    assert (run / "samples" / "step_00000003.png").exists()
    assert [row["step"] for row in timeless_metrics(run)] == [3]
    assert "digits: 1500 examples of shape (1, 8, 8); subvp" in outcome.out
    assert "done at step 3" in outcome.out
    assert "%|" not in outcome.err, "no progress bar where nobody looks"
    assert re.search(r"^step 3 of 3: loss [\d.]+, \d+ examples/s, 00:00 left$", outcome.err, re.MULTILINE), "but a line"


def test_the_default_folder_names_data_and_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    succeed("train", *TINY, "--sde", "ve", "--steps", 1, "--set", "training.sample_every=0")
    assert (tmp_path / "runs" / "digits_ve" / "checkpoints" / "step_00000001.safetensors").exists()


def test_dry_run_prints_a_config_that_is_itself(tmp_path: Path) -> None:
    outcome = succeed("train", "--sde", "ve", "--set", "sde.sigma_max=20", "--out", tmp_path / "run", "-n")
    (tmp_path / "printed.yaml").write_text(outcome.out)
    process = yaml.safe_load(outcome.out)["sde"]
    assert process == {"name": "ve", "t_min": 1e-5, "t_max": 1.0, "sigma_min": 0.01, "sigma_max": 20.0}
    assert succeed("train", "--config", tmp_path / "printed.yaml", "--dry-run").out == outcome.out
    assert re.search("# on cpu: (float32|bfloat16), contiguous, not compiled", outcome.out)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_says_so_and_can_be_given_more_steps(tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=2)
    outcome = succeed("train", *TINY, "--steps", 2, "--out", run)
    assert f"already has 2 steps; to go on: python cli.py train --resume {run} --steps 1002" in outcome.out
    outcome = succeed("train", *TINY, "--steps", 4, "--set", "training.log_every=1", "--out", run)
    assert "resuming" in outcome.out
    assert "from step 2 to 4" in outcome.out
    assert last_checkpoint(run).meta["step"] == 4


def test_another_config_on_a_run_is_refused_by_its_key(tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=1)
    before = (run / "config.yaml").read_text()
    for key, value, old in (("training.batch", 32, 16), ("sde.beta.max", 10.0, 20.0), ("seed", 3, 0)):
        outcome = invoke("train", *TINY, "--steps", 9, "--out", run, "--set", f"{key}={value}")
        assert outcome.code == 2
        assert f"was started with {key} = {old}, not {value}; continue it as it is: " in outcome.error
        assert f": python cli.py train --resume {run}; or start another" in outcome.error
    assert (run / "config.yaml").read_text() == before
    free = ("training.keep=5", "training.preview.rtol=0.2", "likelihood.batch=7")
    free += ("training.save_every=1", "training.snapshot_every=3")
    succeed("train", *TINY, "--steps", 2, "--out", run, *(part for item in free for part in ("--set", item)))


def test_a_run_is_resumed_by_its_folder_alone(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", "--sde", "ve", steps=4)
    run = train(tmp_path / "run", "--sde", "ve", steps=4)
    (run / "checkpoints" / "step_00000004.safetensors").unlink()
    again = succeed("train", "--resume", run)  # as after a kill before the first checkpoint
    assert f"training {run} from step 0 to 4" in again.out
    assert same_bits(last_checkpoint(whole), last_checkpoint(run))
    more = succeed("train", "--resume", run, "--steps", 6, "--set", "training.keep=1")
    assert f"resuming {run} from step 4 to 6" in more.out
    config = last_checkpoint(run).meta["config"]
    assert (config["sde"]["name"], config["training"]["keep"]) == ("ve", 1)
    assert "was started with sde.name = ve, not vp" in invoke("train", "--resume", run, "--sde", "vp").error
    for name, value in (("--config", "digits_vp"), ("--out", tmp_path)):
        assert f"drop {name}" in invoke("train", "--resume", run, name, value).error
    assert "there is no run in" in invoke("train", "--resume", tmp_path / "none").error
    assert not (tmp_path / "none").exists()


def test_a_run_that_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    missing = ("--set", f"data={{name: images, root: {tmp_path / 'nowhere'}}}")
    assert invoke("train", *missing, "--out", tmp_path / "runs" / "a").code == 2
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    assert invoke("train", *missing, "--out", tmp_path / "mine").code == 2
    assert (tmp_path / "mine").is_dir()
    assert not list((tmp_path / "mine").iterdir())


def test_a_warning_is_printed_once() -> None:
    outcome = succeed("train", "--set", "model.network.attention=[5]", "--set", "training.batch=2", "--dry-run")
    (line,) = [line for line in outcome.err.splitlines() if "attention" in line]
    assert "5" in line


def test_a_dry_run_explains_each_key_and_shows_what_training_reads() -> None:
    out = succeed("train", "--dry-run", "--no-estimate").out
    assert set(yaml.safe_load(out)) == {"seed", "sde", "data", "model", "loss", "training", "perf"}
    assert re.search(r"^  steps: 1000 +# Optimizer steps in all\.", out, re.MULTILINE)
    assert re.search(r"^    max: 20\.0 +# β\(1\), ≥ `min`\.", out, re.MULTILINE)
    keys = [line for line in out.splitlines() if re.match(r" *\w+:", line)]
    bare = [line for line in keys if "#" not in line]
    assert bare == ["model:", "loss:", "training:", "perf:"]
    assert max(map(len, out.splitlines())) <= 120


def test_a_checkpoint_of_fewer_options_takes_the_defaults(tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=2)
    path = RunFolder(run).checkpoints()[0]
    checkpoint = load_checkpoint(path)
    config = checkpoint.meta["config"]
    del config["likelihood"], config["training"]["beta2"], config["model"]["network"]["groups"], config["sde"]["t_min"]
    tensors = {name: value for name, value in checkpoint.tensors.items() if name != "window.sums"}
    save_checkpoint(path, Checkpoint(tensors, checkpoint.meta))
    succeed("sample", run, "--solver", "em", "--steps", 1, "--count", 1)
    succeed("train", *TINY, "--steps", 3, "--out", run)

    config["likelihood"] = {"method": "dopri5", "rtol": 1e-3, "batch": 7}
    config["sampling"]["solver"] = {"name": "ode", "max_steps": 3}
    save_checkpoint(path.with_name("step_00000008.safetensors"), Checkpoint(tensors, checkpoint.meta))
    outcome = invoke("likelihood", run, "--dry-run")
    assert outcome.code == 0
    assert "its solvers give way to the defaults (unknown config key" in outcome.err
    assert yaml.safe_load(outcome.out)["likelihood"]["batch"] == 7, "what both versions know stays"

    config["training"]["no_such_option"] = 1
    save_checkpoint(path.with_name("step_00000009.safetensors"), Checkpoint(tensors, checkpoint.meta))
    outcome = invoke("sample", run)
    assert outcome.code == 2
    assert "is of another version of this package: unknown config key 'training.no_such_option'" in outcome.error


def test_a_run_whose_data_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(tmp_path / "run", steps=1)
    path = RunFolder(run).checkpoints()[0]
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, Checkpoint(checkpoint.tensors, checkpoint.meta | {"data": {"levels": 256}}))
    outcome = invoke("train", *TINY, "--steps", 3, "--out", run)
    assert outcome.code == 2
    assert "the data of the run" in outcome.error


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(tmp_path / "run", steps=2)
    with monkeypatch.context() as patch:
        inner = RunFolder.save

        def save(folder: RunFolder, checkpoint: Checkpoint, *, keep: int) -> Path:
            patch.setattr(files.os, "fsync", fail)
            return inner(folder, checkpoint, keep=keep)

        patch.setattr(RunFolder, "save", save)
        outcome = invoke("train", *TINY, "--steps", 4, "--set", "training.keep=1", "--out", run)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("error: cannot write")
    assert "step_00000004.safetensors: No space left on device; free space" in outcome.err
    assert last_checkpoint(run).meta["step"] == 2
    train(run, "--set", "training.keep=1", steps=4)
    assert [path.stem for path in RunFolder(run).checkpoints()] == ["step_00000004"]


def test_nan_exits_with_one(tmp_path: Path) -> None:
    wild = ("--set", "training.learning_rate=1e30", "--set", "training.warmup=0", "--set", "training.log_every=1")
    outcome = invoke("train", *TINY, *wild, "--steps", 9, "--out", tmp_path / "run")
    assert outcome.code == 1
    assert "error: training stopped in step" in outcome.err
    assert "at t = " in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    inner = Trainer.train_step

    def train_step(trainer: Trainer, batch: object) -> object:
        if trainer.step == 1:
            os.kill(os.getpid(), number)
        return inner(trainer, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train_step", train_step)
    outcome = invoke("train", *TINY, "--steps", 9, "--out", tmp_path / "run")
    assert outcome.code == code
    assert "stopped at step 2" in outcome.out
    assert "the same command resumes it" in outcome.out
    assert last_checkpoint(tmp_path / "run").meta["step"] == 2


LONG = (
    *TINY,
    *("--set", "training.save_every=5", "--set", "training.sample_every=0", "--set", "training.log_every=7"),
)


@contextmanager
def training(run: Path, steps: int) -> Iterator["subprocess.Popen[str]"]:
    """A process of its own that trains `run`."""
    command = [sys.executable, REPOSITORY / "cli.py", "train", *LONG, "--steps", str(steps), "--out", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, cwd=run.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_checkpoint(run: Path, beyond: int, process: "subprocess.Popen[str]") -> int:
    """The step of the first checkpoint after `beyond`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        newest = RunFolder(run).latest()
        if newest is not None and (step := int(newest.stem.removeprefix("step_"))) > beyond:
            return step
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    raise AssertionError("no checkpoint in time")


def test_kill_minus_nine_loses_only_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    run, steps = tmp_path / "killed", 60
    with training(run, steps) as process:
        wait_for_checkpoint(run, 0, process)
        process.send_signal(signal.SIGSTOP)  # alive, but it gets no further meanwhile
        refused = invoke("train", *LONG, "--steps", steps, "--out", run)
        assert refused.code == 2
        assert f"is being trained by another process (pid {process.pid}); wait for it, stop it" in refused.error
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    reached = last_checkpoint(run).meta["step"]
    assert reached % 5 == 0
    assert reached < steps, "killed on its way"

    with training(run, steps) as process:
        wait_for_checkpoint(run, reached, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stdout is not None
        assert f"from step {reached} to {steps}" in process.stdout.read()
    stopped = last_checkpoint(run).meta["step"]
    assert reached < stopped < steps

    with one_thread():
        train(run, steps=steps, base=LONG)
        train(tmp_path / "whole", steps=steps, base=LONG)
    assert same_bits(last_checkpoint(run), last_checkpoint(tmp_path / "whole"))
    assert timeless_metrics(run) == timeless_metrics(tmp_path / "whole")
