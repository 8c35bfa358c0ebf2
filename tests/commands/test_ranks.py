"""`sample`, `likelihood`, `encode` and the like by several processes: byte for byte what one gives."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.commands.running import Outcome, invoke
from tests.ranks import free_port, on_ranks

REPOSITORY = Path(__file__).parents[2]
LOOSE = ("--rtol", 0.1, "--atol", 0.1)
CHEAP = ("--set", "likelihood.ledger={chain_steps: [5], importance_draws: 2, draws: 3}")

COMMANDS: dict[str, tuple[Any, ...]] = {
    "sample": ("--solver", "em", "--steps", 3, "--count", 7, "--batch", 2, "--trajectory"),
    "sample, one batch": ("--count", 2, *LOOSE),
    "likelihood": (*LOOSE, "--limit", 5, "--batch", 2),
    "likelihood --tol": ("--tol", 0.2, *LOOSE, "--limit", 5, "--batch", 2, "--max-solves", 20),
    "likelihood --ledger": ("--ledger", *LOOSE, *CHEAP, "--limit", 3, "--batch", 2),
    "encode": ("--solver", "dpmpp_2m", "--steps", 3, "--limit", 5, "--batch", 2),
    "interpolate": ("--solver", "dpmpp_2m", "--steps", 3, "--pair", 0, 1, "--frames", 3, "--batch", 2),
}


def command(name: str, run: Path, out: Path) -> list[Any]:
    return [name.partition(",")[0].split()[0], run, *COMMANDS[name], "--out", out / name]


def run_all(run: Path, out: Path, ports: list[int]) -> list[Outcome]:
    """Every command, and `decode` of what `encode` gave; for each the processes meet anew."""
    latents = ("--latents", out / "encode" / "latents.npz", "--solver", "dpmpp_2m", "--steps", 3, "--batch", 2)
    commands = [command(name, run, out) for name in COMMANDS] + [["decode", run, *latents, "--out", out / "decode"]]
    outcomes = []
    for arguments, port in zip(commands, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        outcomes.append(invoke(*arguments))
    return outcomes


def same(one: Path, other: Path) -> None:
    """Two folders with the same results, but for seconds and the folders' own names."""
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for file in files:
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
def one_thread() -> Any:
    """As torchrun gives each process: sums in another order would not be the same bytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def test_two_processes_give_what_one_gives(tmp_path: Path, trained: Path) -> None:
    ports = [free_port() for _ in range(len(COMMANDS) + 1)]
    both = on_ranks(2, run_all, trained, tmp_path / "two", ports)
    with one_thread():
        alone = run_all(trained, tmp_path / "one", ports)
    for main, other, single in zip(*both, alone, strict=True):
        assert [main.code, other.code, single.code] == [0, 0, 0], main.err + other.err
        assert "on cpu, 2 processes" in main.out
        assert main.out.replace("two", "one").count("\n") == single.out.count("\n")
        assert other.out == other.err == "", "the others are silent"
    same(tmp_path / "one", tmp_path / "two")
