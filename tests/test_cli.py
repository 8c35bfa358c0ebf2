"""The command line as a whole: help, exit codes, and one clear line for each bad input."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sde_diffusion import __version__
from sde_diffusion.commands import cli, main
from sde_diffusion.networks import UNet
from sde_diffusion.runtime import atomic_write as files
from sde_diffusion.sde import VPSDE
from sde_diffusion.solvers import SOLVERS, PerSampleODE
from sde_diffusion.training import RunFolder
from tests.commands.conftest import labelled, trained  # noqa: F401  fixtures
from tests.commands.running import TINY, Outcome, invoke, succeed
from tests.training.test_checkpoint import fail

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("name", cli.commands)
def test_help_shows_examples_that_parse(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = succeed(name, "--help").out
    examples = re.findall(rf"^ *sde-diffusion ({name}.*?)(?:  +#.*)?$", text, re.MULTILINE)
    assert len(examples) >= 3
    command = cli.commands[name]
    for example in examples:
        command.make_context(name, example.split()[1:]).close()
    for option in ("--config", "--set", "--seed", "--device", "--out", "--dry-run"):
        assert option in text or name in ("verify", "configs"), "which take no config"


def test_help_and_version_of_the_whole() -> None:
    outcome = succeed("--help")
    assert "sde-diffusion train --sde vp" in outcome.out
    assert set(cli.commands) <= set(outcome.out.split())
    assert __version__ in succeed("--version").out
    bare = invoke()
    assert bare.code == 2
    assert bare.err.startswith("Usage:"), "not an error line, but what to do"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], r"No such command 'trian'"),
        (["train", "--stepz", "3"], r"No such option.*--steps"),
        (["train", "--steps", "many"], r"'many' is not a valid integer"),
        (["sample", "a", "b"], r"unexpected extra argument"),
        (["likelihood", "--rtol"], r"requires an argument"),
    ],
)
def test_usage_errors_are_one_line_and_exit_with_two(arguments: list[str], message: str) -> None:
    outcome = invoke(*arguments)
    assert outcome.code == 2
    assert re.search(message, outcome.error)


# --- bad input: what is typed, given a folder and two trained runs, and what is said


def folder_with(tmp_path: Path, name: str, content: bytes | None) -> str:
    folder = tmp_path / "data"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "whole.png")
    if content is None:
        (folder / "whole.png").unlink()
    else:
        (folder / name).write_bytes(content)
    return str(folder)


def images(root: object) -> list[str]:
    return ["train", "--set", "data.name=images", "--set", f"data.root={root}"]


def broken(tmp_path: Path, run: Path, mend: Callable[[bytes], bytes]) -> str:
    checkpoint = RunFolder(run).checkpoints()[0]
    (tmp_path / "bad.safetensors").write_bytes(mend(checkpoint.read_bytes()))
    return str(tmp_path / "bad.safetensors")


def text_file(tmp_path: Path, text: str) -> str:
    (tmp_path / "config.yaml").write_text(text)
    return str(tmp_path / "config.yaml")


def labelled_arrays(tmp_path: Path) -> list[str]:
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 1, 8, 8), np.uint8), labels=np.array([0, 1, 2, 3]))
    return ["train", "--set", f"data={{name: arrays, file: {tmp_path}/a.npz, classes: [a, b, c]}}"]


def saved(tmp_path: Path, values: Any = None, **arrays: Any) -> str:
    np.savez(tmp_path / "latents.npz", **(arrays or {"z": values}))
    return str(tmp_path / "latents.npz")


def pickled(tmp_path: Path) -> str:
    torch.save({"model": torch.zeros(3)}, tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


def flipped(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


Given = Callable[[Path, Path, Path], list[Any]]

BAD: dict[str, tuple[Given, str]] = {
    "unknown sde": (lambda d, t, c: ["train", "--sde", "vpp"], "unknown sde 'vpp'; did you mean 'vp'?"),
    "unknown solver": (lambda d, t, c: ["sample", t, "--solver", "oed"], "'oed'; did you mean 'ode'?"),
    "unknown grid": (
        lambda d, t, c: ["sample", t, "--solver", "em", "--grid", "log-snr"],
        "'log-snr'; did you mean 'log_snr'?",
    ),
    "unknown data": (lambda d, t, c: ["train", "--set", "data=digit"], "unknown data 'digit'; did you mean 'digits'?"),
    "unknown key": (
        lambda d, t, c: ["train", "--set", "training.stepz=3"],
        "unknown config key 'training.stepz'; did you mean 'steps'?",
    ),
    "unknown key in a file": (
        lambda d, t, c: ["train", "--config", text_file(d, "trainig: {steps: 3}")],
        "unknown config key 'trainig'; did you mean 'training'?",
    ),
    "option of another solver": (
        lambda d, t, c: ["sample", t, "--solver", "ode", "--steps", 3],
        "--steps is no option of the solver 'ode'; its options: --rtol, --atol, and by --set sampling.solver.NAME",
    ),
    "option of a solver with a grid": (
        lambda d, t, c: ["sample", t, "--solver", "ddim", "--rtol", 1e-3],
        "--rtol is no option of the solver 'ddim'; its options: --steps, --grid, and by --set "
        "sampling.solver.NAME=VALUE: eta; --rtol goes with adaptive_sde, ode",
    ),
    "option of no solver": (
        lambda d, t, c: ["sample", t, "--set", "sampling.solver.stepz=3", "--steps", 4, "--solver", "em"],
        "unknown config key 'sampling.solver.stepz' of 'em'; did you mean 'steps'? known: steps, grid, eta",
    ),
    "option of another solver by its key": (
        lambda d, t, c: ["sample", t, "--solver", "ode", "--set", "sampling.solver.steps=3"],
        "unknown config key 'sampling.solver.steps' of 'ode'; ",
    ),
    "a grid with equal times": (
        lambda d, t, c: [
            *("sample", t, "--solver", "ddim", "--grid", "karras", "--set", "sampling.solver.grid.rho=0.001"),
            *("--out", d / "out"),
        ],
        "the times of a grid must be distinct and in order, but step",
    ),
    "a grid between equal times": (
        lambda d, t, c: ["sample", t, "--solver", "em", "--t-end", 1 - 1e-15, "--out", d / "out"],
        "take fewer steps, ends further apart, or another grid",
    ),
    "unknown split": (lambda d, t, c: ["likelihood", t, "--split", "tset"], "must be one of train, validation, test"),
    "unknown distribution": (lambda d, t, c: ["likelihood", t, "--distribution", "normal"], "rademacher, gaussian"),
    "wrong type": (
        lambda d, t, c: ["train", "--set", "training.batch=big"],
        "`training.batch` must be a whole number, got 'big'",
    ),
    "no assignment": (lambda d, t, c: ["train", "--set", "training.batch"], "must have the form section.key=value"),
    "config missing": (lambda d, t, c: ["train", "--config", d / "no.yaml"], "no.yaml: No such file or directory"),
    "config a folder": (lambda d, t, c: ["train", "--config", d], "Is a directory"),
    "config not YAML": (lambda d, t, c: ["train", "--config", text_file(d, "a: [")], "config.yaml is not YAML"),
    "config no mapping": (lambda d, t, c: ["train", "--config", text_file(d, "- a")], "must hold a mapping"),
    "checkpoint missing": (lambda d, t, c: ["sample", d / "no.safetensors"], "there is no checkpoint at"),
    "checkpoint missing to score": (lambda d, t, c: ["likelihood", d / "no"], "there is no checkpoint at"),
    "folder without a run": (lambda d, t, c: ["sample", d], "there is no checkpoint in"),
    "checkpoint truncated": (
        lambda d, t, c: ["sample", broken(d, t, lambda content: content[:-100])],
        "bad.safetensors as a checkpoint",
    ),
    "checkpoint flipped": (lambda d, t, c: ["sample", broken(d, t, flipped)], "does not match its hash"),
    "checkpoint pickled": (lambda d, t, c: ["likelihood", pickled(d)], "pickles never"),
    "checkpoint a text": (lambda d, t, c: ["sample", text_file(d, "hello")], "of another format"),
    "data folder missing": (lambda d, t, c: images(d / "no"), "must exist and be a folder"),
    "data folder empty": (lambda d, t, c: images(folder_with(d, "", None)), "no images in"),
    "data folder a file": (lambda d, t, c: images(text_file(d, "x")), "must exist and be a folder"),
    "broken image": (lambda d, t, c: images(folder_with(d, "torn.png", b"\x89PNG\r\n")), "torn.png"),
    "data absent": (
        lambda d, t, c: ["train", "--set", f"data={{name: mnist, root: {d}}}"],
        "set `data.root` to a folder with",
    ),
    "labels in a file": (lambda d, t, c: labelled_arrays(d), "must be from 0 to 2"),
    "label too large": (lambda d, t, c: ["sample", c, "--label", 10], "`label` must be from 0 to 9, or −1 for none"),
    "label too small": (lambda d, t, c: ["sample", c, "--label", -2], "`label` must be a class ≥ 0"),
    "label without classes": (lambda d, t, c: ["sample", t, "--label", 3], "the network has no classes"),
    "batch 0": (lambda d, t, c: ["sample", t, "--batch", 0], "`batch` must be > 0, got 0"),
    "batch 0 to train": (lambda d, t, c: ["train", "--set", "training.batch=0"], "`batch` must be > 0, got 0"),
    "batch -1 to score": (lambda d, t, c: ["likelihood", t, "--batch", -1], "`batch` must be > 0, got -1"),
    "count 0": (lambda d, t, c: ["sample", t, "--count", 0], "`count` must be > 0, got 0"),
    "steps 0": (lambda d, t, c: ["train", "--steps", 0], "`steps` must be > 0, got 0"),
    "solver steps -1": (lambda d, t, c: ["sample", t, "--solver", "em", "--steps", -1], "`steps` must be > 0, got -1"),
    "nfe 0": (lambda d, t, c: ["sample", t, "--nfe", 0], "--nfe must be > 0, got 0"),
    "nfe no number": (lambda d, t, c: ["sample", t, "--nfe", "ten"], "'ten' is not a valid integer"),
    "nfe and steps": (
        lambda d, t, c: ["sample", t, "--nfe", 10, "--steps", 5],
        "--nfe decides how many steps there are, so --steps cannot be given beside it; leave one of them out",
    ),
    "nfe and steps by key": (
        lambda d, t, c: ["sample", t, "--nfe", 10, "--solver", "em", "--set", "sampling.solver.steps=5"],
        "so --set sampling.solver.steps cannot be given beside it",
    ),
    "nfe and a tolerance": (
        lambda d, t, c: ["sample", t, "--nfe", 10, "--rtol", 1e-3],
        "so --rtol cannot be given beside it",
    ),
    "nfe and a grid alone": (
        lambda d, t, c: ["sample", t, "--nfe", 10, "--grid", "karras"],
        "--nfe chooses the grid with the solver; name a --solver too, or leave --grid out",
    ),
    "nfe of an adaptive solver": (
        lambda d, t, c: ["sample", t, "--nfe", 10, "--solver", "ode"],
        "--nfe cannot set the steps of the solver 'ode', which chooses its own by its tolerances; take one of em, ",
    ),
    "nfe too small": (
        lambda d, t, c: ["sample", t, "--nfe", 1, "--solver", "heun"],
        "`nfe` must be ≥ 2, got 1: a step of Heun takes 2",
    ),
    "nfe too small to denoise": (
        lambda d, t, c: ["sample", t, "--nfe", 1, "--denoise"],
        "`nfe` must be ≥ 2, got 1: a step of UniPC takes 1 and the final denoising 1",
    ),
    "rtol 0": (lambda d, t, c: ["sample", t, "--solver", "ode", "--rtol", 0], "`rtol` must be > 0"),
    "atol -1 to score": (lambda d, t, c: ["likelihood", t, "--atol", -1], "`atol` must be > 0"),
    "atol nan": (lambda d, t, c: ["likelihood", t, "--atol", "nan"], "must be a finite number"),
    "probes 0": (lambda d, t, c: ["likelihood", t, "--probes", 0], "`probes` must be > 0, got 0"),
    "limit 0": (lambda d, t, c: ["likelihood", t, "--limit", 0], "`limit` must be > 0, got 0"),
    "start -1": (lambda d, t, c: ["likelihood", t, "--start", -1], "`start` must be ≥ 0, got -1"),
    "start beyond the end": (lambda d, t, c: ["likelihood", t, "--start", 297], "must be < 297, the size of the data"),
    "t_end too small": (
        lambda d, t, c: ["sample", t, "--t-end", 1e-6, "--out", d / "out"],
        "`t_end` must be ≥ `sde.t_min` = 1e-05, got 1e-06",
    ),
    "t_end too large": (
        lambda d, t, c: ["sample", t, "--t-end", 1, "--out", d / "out"],
        "`t_end` must be < `sde.t_max`",
    ),
    "encode by a stochastic solver": (
        lambda d, t, c: ["encode", t, "--solver", "em"],
        "`solver` must be deterministic to encode and decode, got 'em', which draws noise; try 'ode', or one of ddim",
    ),
    "decode by a stochastic solver": (
        lambda d, t, c: ["decode", t, "--latents", d / "no.npy", "--solver", "ddim", "--set", "sampling.solver.eta=1"],
        "got 'ddim', which draws noise",
    ),
    "interpolate by a stochastic solver": (
        lambda d, t, c: ["interpolate", t, "--pair", 0, 1, "--solver", "adaptive_sde"],
        "got 'adaptive_sde', which draws noise",
    ),
    "encode by a solver that an option makes stochastic": (
        lambda d, t, c: ["encode", t, "--solver", "heun", "--set", "sampling.solver.s_churn=3"],
        "got 'heun', which draws noise; set `s_churn` = 0.0",
    ),
    "steps beyond all measure": (
        lambda d, t, c: ["sample", t, "--solver", "ddim", "--steps", 10**11],
        "`steps` must be ≤ 1000000, got 100000000000",
    ),
    "encode with an option of another solver": (
        lambda d, t, c: ["encode", t, "--solver", "ddim", "--rtol", 0.1],
        "--rtol is no option of the solver 'ddim'",
    ),
    "encode from beyond the end": (
        lambda d, t, c: ["encode", t, "--start", 297, "--out", d / "out"],
        "`--start` must be < 297, the size of the data, got 297",
    ),
    "encode a negative number": (
        lambda d, t, c: ["encode", t, "--limit", -1],
        "-1 is not in the range x>=1",
    ),
    "encode an unknown split": (lambda d, t, c: ["encode", t, "--split", "tset"], "'tset' is not one of 'train', 'val"),
    "encode a split and a file": (
        lambda d, t, c: ["encode", t, "--split", "test", "--file", d / "x.npy"],
        "--file and --split exclude each other",
    ),
    "no latents": (lambda d, t, c: ["decode", t], "Missing option '--latents'"),
    "latents missing": (lambda d, t, c: ["decode", t, "--latents", d / "no.npy"], "no.npy must exist"),
    "latents of another shape": (
        lambda d, t, c: ["decode", t, "--latents", saved(d, np.zeros((2, 64)))],
        "must have the shape (B, 1, 8, 8), got (2, 64)",
    ),
    "no latents in the file": (
        lambda d, t, c: ["decode", t, "--latents", saved(d, np.zeros((0, 1, 8, 8)))],
        "must have the shape (B, 1, 8, 8), got (0, 1, 8, 8)",
    ),
    "latents not finite": (
        lambda d, t, c: ["decode", t, "--latents", saved(d, np.full((2, 1, 8, 8), np.nan))],
        "must be finite, got 128 numbers that are not",
    ),
    "latents of text": (
        lambda d, t, c: ["decode", t, "--latents", saved(d, np.full((2, 1, 8, 8), "a"))],
        "must hold real numbers, got <U1",
    ),
    "several arrays of latents": (
        lambda d, t, c: ["decode", t, "--latents", saved(d, a=np.zeros(2), b=np.zeros(2))],
        "must hold latents as `z` or as its only array, got a, b",
    ),
    "decode to too small a time": (
        lambda d, t, c: [
            *("decode", t, "--latents", saved(d, np.zeros((2, 1, 8, 8))), "--t-end", 1e-6, "--out", d / "out")
        ],
        "`t_end` must be ≥ `sde.t_min` = 1e-05",
    ),
    "no pair": (lambda d, t, c: ["interpolate", t], "Missing option '--pair'"),
    "half a pair": (lambda d, t, c: ["interpolate", t, "--pair", 3], "'--pair' requires 2 arguments"),
    "a pair beyond the end": (
        lambda d, t, c: ["interpolate", t, "--pair", 3, 297],
        "`--pair` must be indices from 0 to 296, got 297",
    ),
    "one frame": (lambda d, t, c: ["interpolate", t, "--pair", 3, 4, "--frames", 1], "1 is not in the range x>=2"),
    "unknown device": (lambda d, t, c: ["train", "--device", "gpu"], "unknown device 'gpu'; known: auto, cpu"),
    "out below a file": (lambda d, t, c: ["train", "--out", text_file(d, "") + "/run"], "choose another --out"),
    "out a file": (lambda d, t, c: ["sample", t, "--out", text_file(d, "")], "it is no folder; choose another --out"),
    "out below a file to score": (
        lambda d, t, c: ["likelihood", t, "--out", text_file(d, "") + "/x"],
        "Not a directory; choose another --out",
    ),
    "a name too long": (lambda d, t, c: ["train", "--config", "x" * 5000], "File name too long"),
    "a checkpoint's name too long": (lambda d, t, c: ["sample", "x" * 5000], "File name too long"),
    "another process": (lambda d, t, c: ["sample", t, "--set", "sde.t_min=1e-3"], "cannot be changed to 0.001 here"),
    "file missing": (lambda d, t, c: ["likelihood", t, "--file", d / "no.npy"], "no.npy must exist"),
    "validation too large": (lambda d, t, c: ["train", "--set", "data.validation=1500"], "`data.validation` must be <"),
    "classes without labels": (
        lambda d, t, c: ["train", "--set", "data=swiss_roll", "--set", "model={network: mlp, conditional: true}"],
        "`model.conditional` must be false",
    ),
    "network for images only": (lambda d, t, c: ["train", "--set", "data=rings"], "'mlp' takes any shape"),
    "flips of points": (
        lambda d, t, c: ["train", "--set", "data=rings", "--set", "model.network=mlp", "--set", "training.flip=true"],
        "`flip` must be false",
    ),
}


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: default run folders go there."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name: str, away: Path, trained: Path, labelled: Path) -> None:  # noqa: F811
    arguments, message = BAD[name]
    outcome = invoke(*arguments(away, trained, labelled))
    assert outcome.code == 2, outcome.err
    assert message in outcome.error


def refused(outcome: Outcome, message: str) -> None:
    assert outcome.code == 2
    assert message in outcome.error


PER_SAMPLE = next(name for name, row in SOLVERS.items() if row is PerSampleODE)


def test_a_tolerance_out_of_reach(away: Path, trained: Path) -> None:  # noqa: F811
    budget = ("--solver", PER_SAMPLE, "--set", "sampling.solver.max_nfe=20", "--out", away / "out")
    message = (
        r"stopped at t = [\de.-]+ for sample 0 .*: max_nfe = 20 were not enough; raise max_nfe, loosen rtol = 1e-05"
    )
    for command in (["sample", trained, "--count", 2], ["encode", trained, "--limit", 2]):
        outcome = invoke(*command, *budget)
        assert outcome.code == 2
        assert re.search(message, outcome.error)
    budget = ("--solver", "adaptive_sde", "--set", "sampling.solver.max_steps=5", "--out", away / "out")
    outcome = invoke("sample", trained, "--count", 2, *budget)
    refused(outcome, "for sample 0 and 1 more: `max_steps` = 5 were not enough; loosen `rtol` and `atol`")


def test_a_network_that_gives_nan_is_told_with_the_sample(
    away: Path,
    trained: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sample 4 of the run: the first of the second batch of four."""
    inner, calls = UNet.forward, []
    noisy = -0.25 * VPSDE().half_log_snr(torch.tensor(0.5))  # c_noise at t = ½, which rises with t

    def forward(net: UNet, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        out = inner(net, x, c_noise, label)
        calls.append(x)
        if len(calls) > 11 and c_noise[0] < noisy:  # 10 and the denoising
            out[0] = torch.nan
        return out

    monkeypatch.setattr(UNet, "forward", forward)
    options = ("--solver", "ddim", "--steps", 10, "--count", 6, "--batch", 4, "--out", away / "out")
    outcome = invoke("sample", trained, *options)
    assert outcome.code == 2
    assert "the solve stopped for sample 4: the state is not finite at the end: the network gave NaN" in outcome.error


def test_cuda_where_there_is_none(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in (["train"], ["sample", trained], ["likelihood", trained]):
        refused(invoke(*command, "--device", "cuda"), "asks for CUDA, but this machine has 0 CUDA devices")


def test_an_unreadable_folder(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_with(away, "other.txt", b"")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != root)  # root may read anything
    refused(invoke(*images(root)), "cannot be read; check its permissions")


def test_a_full_disk_while_results_are_written(
    away: Path,
    trained: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files.os, "fsync", fail)
    loose = ("--rtol", 1, "--atol", 1, "--limit", 2)
    for command in (["sample", trained, "--solver", "em", "--steps", 1], ["likelihood", trained, *loose]):
        refused(invoke(*command, "--out", away / "out"), "No space left on device; free space")
    outcome = invoke("train", *TINY, "--steps", 1, "--out", away / "run")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("error: cannot write")
    assert not RunFolder(away / "run").checkpoints()


def test_interrupts_and_memory_have_their_own_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, code, line in (
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (click.Abort(), 130, "error: interrupted"),
        (torch.OutOfMemoryError("tried\nto allocate"), 1, "error: out of memory: tried to allocate; try a smaller"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: out of memory: DefaultCPUAllocator: "),
        (MemoryError("Unable to allocate"), 1, "error: out of memory: Unable to allocate; try a smaller"),
    ):

        def stop(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("sde_diffusion.commands.cli", stop)
        outcome = invoke("train")
        assert outcome.code == code
        assert outcome.err.startswith(line)


def test_the_installed_program_and_the_script_are_this_one() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert 'sde-diffusion = "sde_diffusion_cli:main"' in text
    assert callable(main)


def test_a_reader_that_leaves_is_no_error_and_errors_reach_the_shell(tmp_path: Path) -> None:
    script = (
        f"set -o pipefail; {sys.executable} {REPOSITORY}/cli.py train --dry-run | true; echo $?; "
        f"{sys.executable} {REPOSITORY}/cli.py train --sde vpp; echo $?"
    )
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2"]
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unknown sde 'vpp'")
