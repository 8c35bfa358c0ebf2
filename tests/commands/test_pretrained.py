"""`--pretrained`: models that come with the package, and `export --format weights`, which makes their files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sde_diffusion.pretrained import FOLDER, PRETRAINED, pretrained
from sde_diffusion.training import load_checkpoint
from tests.commands.running import invoke, succeed, train

QUICK = ("--solver", "em", "--steps", "3", "--count", "4")


def test_every_row_has_its_file_and_every_file_its_row() -> None:
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == set(PRETRAINED)


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_pretrained_model_needs_no_more_than_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = succeed("sample", "--pretrained", name, *QUICK)
    assert f"using pretrained {name} (step " in told.out
    (folder,) = Path("runs/pretrained", name).iterdir()
    assert folder.name == "sample_em_seed0_steps3"
    with np.load(folder / "samples.npz") as stored:
        assert len(stored["samples"]) == 4
    assert f'"checkpoint": "pretrained {name}"' in (folder / "sample.json").read_text()
    assert sum(value.numel() for value in load_checkpoint(pretrained(name)).tensors.values()) < 4_100_000


def test_weights_are_the_model_without_what_training_needs(tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    succeed("export", run, "--format", "weights", "--out", tmp_path / "small")
    file = tmp_path / "small" / "weights.safetensors"
    newest = next((run / "checkpoints").iterdir())
    assert file.stat().st_size < newest.stat().st_size / 4
    whole, small = load_checkpoint(newest), load_checkpoint(file)
    assert small.tensors.keys() == {f"ema.{key}" for key in whole.group("ema")}
    assert all(torch.equal(value, whole.tensors[key]) for key, value in small.tensors.items())
    for source, out in ((run, "a"), (file, "b")):
        succeed("sample", source, *QUICK, "--out", tmp_path / out)
    drawn = [np.load(tmp_path / out / "samples.npz")["samples"] for out in ("a", "b")]
    assert np.array_equal(*drawn)
    assert invoke("sample", file, "--no-ema").error == (
        "error: the checkpoint holds averaged weights only; use it without --no-ema"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--pretrained", "fashion_mnist"),
            "unknown pretrained model 'fashion_mnist'; did you mean 'fashion_mnist_vp'",
        ),
        (("runs", "--pretrained", "fashion_mnist_vp"), "--pretrained and a checkpoint exclude each other, got runs"),
    ],
)
def test_what_it_refuses(options: tuple[str, ...], message: str) -> None:
    outcome = invoke("sample", *options)
    assert outcome.code == 2
    assert message in outcome.error


def test_weights_want_no_import(tmp_path: Path) -> None:
    succeed("export", train(tmp_path / "run"), "--format", "weights", "--out", tmp_path)
    refused = invoke("import", tmp_path / "weights.safetensors", "--format", "weights", "--out", tmp_path / "new")
    assert refused.code == 2
    assert "weights of this package need no import: use" in refused.error
