"""The checkpoint file: nothing is lost, nothing is believed unchecked, nothing is unpickled."""

import errno
import os
import pickle
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sde_diffusion.errors import InputError
from sde_diffusion.runtime import atomic_write as files
from sde_diffusion.training import Checkpoint, RunFolder, load_checkpoint, save_checkpoint
from tests.training.tiny import same_bits


def example(step: int = 3, size: int = 4) -> Checkpoint:
    draws = torch.Generator().manual_seed(step)
    image = torch.randn(2, 3, size, size, generator=draws)
    tensors = {
        "model.a": image,
        "model.b": image.to(memory_format=torch.channels_last),
        "model.half": image.bfloat16(),
        "ema.a": torch.tensor([float("nan"), -0.0, float("inf")]),
        "optimizer.step.a": torch.tensor(7, dtype=torch.int64),
        "window.sums": torch.randn(5, generator=draws, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
    }
    return Checkpoint(tensors, {"step": step, "config": {"näme": "ü", "list": [1, None, 1e-5]}})


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "new" / "a.safetensors", example())
    loaded = load_checkpoint(tmp_path / "new" / "a.safetensors")
    assert same_bits(loaded, example())
    assert loaded.meta == example().meta


def test_group_gives_the_tensors_under_one_prefix() -> None:
    assert set(example().group("model")) == {"a", "b", "half"}
    assert set(example().group("mod")) == set()


def test_a_flipped_byte_is_noticed_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, example(size=2))
    content = path.read_bytes()
    for offset in range(0, len(content), 3):
        flip = 0xFF if offset % 2 else 0x01  # the header is about a thousand bytes, the tensors some hundred
        path.write_bytes(content[:offset] + bytes([content[offset] ^ flip]) + content[offset + 1 :])
        with pytest.raises(InputError, match=r"a\.safetensors"):
            load_checkpoint(path)
    path.write_bytes(content)
    load_checkpoint(path)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 1000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, example())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"cannot read .*a\.safetensors as a checkpoint.*truncated"):
        load_checkpoint(path)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self._path), "w")


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, write: Callable[[Any, Path], None]) -> None:
    write({"model": Payload(tmp_path / "ran")}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="another format"):
        load_checkpoint(tmp_path / "a.safetensors")
    assert not (tmp_path / "ran").exists()


def test_safetensors_of_others_are_refused(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}, {"format": "sde_diffusion/1"}):
        save_file({"a": torch.zeros(3)}, tmp_path / "a", metadata=metadata)
        with pytest.raises(InputError, match="no checkpoint of this package"):
            load_checkpoint(tmp_path / "a")
    save_file({"a": torch.zeros(3)}, tmp_path / "a", metadata={"format": "sde_diffusion/1", "meta": "{}"})
    with pytest.raises(InputError, match="does not match its hash"):
        load_checkpoint(tmp_path / "a")


def test_other_files_folders_and_nothing_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    (tmp_path / "text").write_text("hello " * 100)
    for name in ("a.npz", "text"):
        with pytest.raises(InputError, match=f"cannot read .*{name}"):
            load_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match=r"there is no checkpoint at .*missing"):
        load_checkpoint(tmp_path / "missing")
    with pytest.raises(InputError, match="is not a file"):
        load_checkpoint(tmp_path)


def fail(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, example(1))
    with monkeypatch.context() as patch:
        patch.setattr(files.os if call == "fsync" else files.Path, call, fail)
        with pytest.raises(InputError, match=r"cannot write .*a\.safetensors: No space left on device; free space"):
            save_checkpoint(path, example(2))
    assert same_bits(load_checkpoint(path), example(1))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_that_cannot_grow_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, example(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*: File too large"):
            save_checkpoint(path, example(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same_bits(load_checkpoint(path), example(1))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_newest_are_kept_and_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.latest() is None
    (tmp_path / "checkpoints").mkdir()
    left_over = tmp_path / "checkpoints" / ".step_00000002.safetensors.1.tmp"
    left_over.write_bytes(b"half a checkpoint")
    assert folder.latest() is None
    for step in (5, 10, 100):
        folder.save(example(step), keep=2)
    assert [path.stem for path in folder.checkpoints()] == ["step_00000010", "step_00000100"]
    assert len(os.listdir(tmp_path / "checkpoints")) == 2
    newest = folder.latest()
    assert newest is not None
    assert load_checkpoint(newest).meta["step"] == 100


def test_a_full_disk_drops_no_kept_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.save(example(5), keep=1)
    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        folder.save(example(10), keep=1)
    assert [path.stem for path in folder.checkpoints()] == ["step_00000005"]


def test_ctrl_c_while_it_is_read_is_an_interruption(tmp_path: Path) -> None:
    """Within a tensor too, where PyTorch would make another error of it."""
    path = tmp_path / "step_00000001.safetensors"
    save_checkpoint(path, Checkpoint({f"model.{i}": torch.zeros(64, 8) for i in range(200)}, {"step": 1}))
    seen = set()
    for delay in (1e-4, 1e-3, 2e-3, 4e-3) * 5:
        timer = threading.Timer(delay, signal.raise_signal, [signal.SIGINT])
        try:
            timer.start()
            load_checkpoint(path)
            timer.join()
            time.sleep(0.1)
        except KeyboardInterrupt:
            seen.add("interrupted")
    assert seen == {"interrupted"}
