"""`sample`, `likelihood`, `encode` and the like by several processes: byte for byte what one gives."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sde_diffusion.commands.growing import FAILED
from sde_diffusion.runtime import atomic_write as files
from tests.commands.running import Outcome, invoke
from tests.ranks import free_port, on_ranks

REPOSITORY = Path(__file__).parents[2]
LOOSE = ("--rtol", 0.5, "--atol", 0.5)
CHEAP = ("--set", "likelihood.ledger={chain_steps: [5], importance_draws: 2, draws: 3}")
GRID = ("--solver", "dpmpp_2m", "--steps", 2, "--batch", 2)

FAST: dict[str, tuple[Any, ...]] = {
    "sample": ("--solver", "em", "--steps", 3, "--count", 5, "--batch", 2),
    "likelihood": (*LOOSE, "--limit", 5, "--batch", 2, "--no-reference"),
    "likelihood --tol": ("--tol", 2, *LOOSE, "--limit", 5, "--batch", 2),
    "encode": (*GRID, "--limit", 5),
}
SLOW: dict[str, tuple[Any, ...]] = {
    "sample --trajectory": ("--solver", "em", "--steps", 3, "--count", 7, "--batch", 2, "--trajectory"),
    "sample, one batch": ("--count", 2, *LOOSE),
    "likelihood --reference": (*LOOSE, "--limit", 3, "--batch", 1),
    "likelihood, a smaller tolerance": ("--tol", 0.02, *LOOSE, "--limit", 6, "--batch", 4, "--max-solves", 24),
    "likelihood --ledger": ("--ledger", *LOOSE, *CHEAP, "--limit", 3, "--batch", 2),
    "encode": (*GRID, "--limit", 5),
    "decode": GRID,
    "interpolate": (*GRID, "--pair", 0, 1, "--frames", 3),
}


def run_all(run: Path, out: Path, options: dict[str, tuple[Any, ...]], ports: list[int]) -> list[Outcome]:
    """Each command; for each the processes meet anew."""
    outcomes = []
    for (name, more), port in zip(options.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        command = name.replace(",", "").split()[0]
        if command == "decode":
            more = (*more, "--latents", out / "encode" / "latents.npz")
        outcomes.append(invoke(command, run, *more, "--out", out / name))
    return outcomes


def same(one: Path, other: Path) -> None:
    """Two folders with the same results, but for seconds and the folders' own names."""
    found = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert found == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for file in found:
        if file.suffix == ".json":
            assert timeless(json.loads((one / file).read_text())) == timeless(json.loads((other / file).read_text()))
        elif file.suffix == ".npz":
            with np.load(one / file) as a, np.load(other / file) as b:
                assert a.files == b.files
                for name in set(a.files) - {"seconds_each"}:
                    assert (a[name].dtype, a[name].tobytes()) == (b[name].dtype, b[name].tobytes()), (file, name)
        else:
            assert (one / file).read_bytes() == (other / file).read_bytes(), file


def timeless(facts: Any) -> Any:
    if isinstance(facts, list):
        return [timeless(fact) for fact in facts]
    if isinstance(facts, dict):
        return {key: timeless(value) for key, value in facts.items() if key not in ("seconds", "file")}
    return facts


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As torchrun gives each process: sums in another order would not be the same bytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("options", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["", "all"])
def test_two_processes_give_what_one_gives(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, tuple[Any, ...]]
) -> None:
    ports = [free_port() for _ in options]
    both = on_ranks(2, run_all, trained, tmp_path / "two", options, ports)
    monkeypatch.setenv("MASTER_PORT", "")
    with one_thread():
        alone = run_all(trained, tmp_path / "one", options, ports)
    for main, other, single in zip(*both, alone, strict=True):
        assert [main.code, other.code, single.code] == [0, 0, 0], main.err + other.err
        assert "on cpu, 2 processes" in main.out
        assert main.out.count("\n") == single.out.count("\n")
        assert other.out == other.err == "", "the others are silent"
    same(tmp_path / "one", tmp_path / "two")


def full_disk(run: Path, out: Path) -> Outcome:
    """The second process cannot write; the first has more to do than its share if that is not told."""

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == "1":
            patch.setattr(files.os, "fsync", fail)
        return invoke("sample", run, "--solver", "em", "--steps", 1, "--count", 6, "--batch", 1, "--out", out)


def test_a_full_disk_on_one_process_ends_all_with_one_line(tmp_path: Path, trained: Path) -> None:
    main, other = on_ranks(2, full_disk, trained, tmp_path / "out")
    assert (main.code, other.code) == (2, 2)
    assert main.error.startswith("error: rank 1: cannot write ")
    assert "No space left on device; free space" in main.error
    assert other.err == ""
    left = {part.name for part in (tmp_path / "out" / "samples.partial").iterdir()}
    assert left - {FAILED} <= {"000000000.npz", "000000002.npz", "000000004.npz"}, "what was done is kept"
    invoke("sample", trained, "--solver", "em", "--steps", 1, "--count", 6, "--batch", 1, "--out", tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"samples.npz", "samples.png", "sample.json"}


def torchrun(processes: int, *arguments: object) -> "subprocess.Popen[str]":
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    place = ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), str(REPOSITORY / "cli.py")]
    return subprocess.Popen(
        [*launch, *place, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_any_number_goes_on(tmp_path: Path, trained: Path) -> None:
    options = (trained, "--solver", "em", "--steps", 20, "--count", 60, "--batch", 1)
    with one_thread():
        assert invoke("sample", *options, "--out", tmp_path / "one").code == 0
    first = torchrun(2, "sample", *options, "--out", tmp_path / "many")
    parts = tmp_path / "many" / "samples.partial"
    while not (parts.exists() and len(list(parts.glob("0*.npz"))) > 4):
        time.sleep(0.01)
        assert first.poll() is None
    _, victim = map(int, Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split())
    os.kill(victim, signal.SIGKILL)
    first.communicate(timeout=60)
    assert first.returncode != 0
    done = len(list(parts.glob("0*.npz")))
    assert 4 < done < 60
    again = torchrun(3, "sample", *options, "--out", tmp_path / "many")
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert out.count("60 samples, 21 score evaluations each") == 1
    same(tmp_path / "one", tmp_path / "many")


@pytest.mark.slow
def test_what_is_wrong_for_all_is_said_by_the_first(tmp_path: Path, trained: Path) -> None:
    process = torchrun(2, "sample", trained, "--label", 3, "--out", tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert told[0].startswith("error: ")
    assert "the network has no classes" in told[0]
