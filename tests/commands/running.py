"""The command line in this process: what it prints, and how it exits."""

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from sde_diffusion.commands import main

TINY = (
    *("--set", "model.network={name: unet, channels: 8, multipliers: [1, 2], blocks: 1, attention: []}"),
    *("--set", "training.warmup=0", "--set", "training.learning_rate=0.02"),  # two steps leave their mark
    *("--set", "training.batch=16", "--set", "training.preview={rtol: 0.1, atol: 0.1}"),
    *("--set", "training.precision=float32"),  # on every CPU
    *("--set", "training.preview_count=4", "--set", "training.validation_examples=20"),
)
"""Options of a run on the digits that takes a second."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what was wrong."""
        assert "Traceback" not in self.err
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line


def invoke(*arguments: object) -> Outcome:
    """Run `sde-diffusion` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["cli.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    code = stop.value.code
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> Outcome:
    """Run it and expect exit code 0."""
    outcome = invoke(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def train(out: Path, *more: object, steps: int = 2, base: Sequence[str] = TINY) -> Path:
    """Train a tiny model in the folder `out`."""
    succeed("train", *base, "--steps", steps, "--out", out, *more)
    return out
