"""`verify` on the command line: tables, files and exit codes."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sde_diffusion.sde import VPSDE
from tests.commands.running import invoke, succeed, train


def test_an_area(tmp_path: Path) -> None:
    outcome = succeed("verify", "--only", "sde", "--only", "training", "--out", tmp_path)
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["area", "what", "worst", "case", "error", "bound", "checks"]
    assert any(
        line.startswith("sde") and "f and g² against autograd" in line and re.search(r" \d ok$", line) for line in lines
    )
    facts = json.loads((tmp_path / "verify.json").read_text())
    assert facts["dtype"] == "float64"
    assert {check["area"] for check in facts["checks"]} == {"sde", "training"}
    shown = [check for check in facts["checks"] if check["status"] != "skipped"]
    assert all(check["status"] == "ok" and check["error"] <= check["bound"] for check in shown)
    assert lines[-1].startswith(f"{len(shown)} checks passed")


def test_a_line_for_every_check() -> None:
    short, long = (succeed("verify", "--only", "sde", *more).out.splitlines() for more in ([], ["--verbose"]))
    assert len(long) > 2 * len(short)
    assert any("vp-cosine diffusion" in line for line in long)


def test_what_fails_is_named_and_the_exit_code_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_half(self: VPSDE, t: Tensor) -> Tensor:
        return -self.beta.rate(t)

    monkeypatch.setattr(VPSDE, "drift_coef", without_half)
    outcome = invoke("verify", "--only", "sde")
    assert outcome.code == 1
    assert outcome.error.startswith("error: 2 of ")
    assert "checks failed: sde: f and g² against autograd of a and std (vp, 1 > 2.2e-12)" in outcome.error
    assert re.search(r"\d ok 2 failed", outcome.out)


def test_a_check_that_raises_fails_with_its_message_and_may_be_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: VPSDE, t: Tensor) -> Tensor:
        raise ZeroDivisionError("no time left")

    monkeypatch.setattr(VPSDE, "std", broken)
    outcome = invoke("verify", "--only", "sde", "--fail-fast")
    assert outcome.code == 1
    assert "1 of 3 checks failed" in outcome.error
    assert "(vp, ZeroDivisionError: no time left)" in outcome.error


def test_what_float32_cannot_show_is_said() -> None:
    outcome = succeed("verify", "--only", "sde", "--dtype", "float32")
    assert outcome.out.splitlines()[-1].endswith("in float32")


def test_a_model_that_has_been_trained_badly(tmp_path: Path) -> None:
    """It is consistent with itself, but a Gaussian denoises better."""
    points = "{name: two_moons, train: 500, test: 300}"
    options = ("--set", f"data={points}", "--set", "model.network={name: mlp, width: 8, depth: 1}")
    trained = train(tmp_path / "run", *options, "--set", "training.sample_every=0", "--set", "training.learning_rate=1")
    outcome = invoke("verify", "--run", trained, "--only", "model")
    assert outcome.code == 1
    assert "1 of 15 checks failed: model: denoises better than a Gaussian (256 held-out examples" in outcome.error
    folder = trained / "verify"
    assert (folder / "score_error.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((folder / "model.json").read_text())
    assert len(facts["levels"]) == 10
    noise_levels = [level["half_log_snr"] for level in facts["levels"]]
    assert noise_levels == sorted(noise_levels)
    assert facts["gain_bits_per_dim"][0] < 0
    assert [solve["tolerance"] for solve in facts["solves"]] == pytest.approx([1e-3, 1e-4, 1e-5, 1e-6])
    assert "error of ε̂ by noise level, per dimension, on 256 held-out examples" in outcome.out


def test_bad_options_exit_with_two() -> None:
    for arguments, message in [
        (["--only", "solver"], "unknown area 'solver'; did you mean 'solvers'? known: sde, score"),
        (["--only", "model"], "`--only model` needs a trained model: add --run RUN"),
        (["--dtype", "float16"], "unknown dtype 'float16'; did you mean 'float64'"),
        (["--device", "quantum"], "unknown device 'quantum'"),
        (["--run", "nowhere.safetensors"], "there is no checkpoint at nowhere.safetensors"),
    ]:
        outcome = invoke("verify", *arguments)
        assert outcome.code == 2
        assert message in outcome.error


def test_a_device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    outcome = invoke("verify", "--device", "mps")
    assert outcome.code == 2
    assert "`device` must have float64" in outcome.error
