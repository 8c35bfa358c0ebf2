"""Classes and guidance on the command line, and the classifier that one kind of it needs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from PIL import Image

from sde_diffusion.data import DATASETS
from sde_diffusion.training import CLASSIFIERS, RunFolder, load_checkpoint
from tests.commands.running import TINY, invoke, succeed, train
from tests.training.tiny import same_bits, timeless_metrics

EM = ("--solver", "em", "--steps", 3)
FLOW = ("--solver", "ddim", "--steps", 4, "--grid", "log_snr")
NET = ("--set", "classifier.network={name: encoder, channels: 8, multipliers: [1, 2]}")
QUICK = (*TINY[2:], *NET, "--set", "training.learning_rate=0.05")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a classifier's run on the digits."""
    out = tmp_path_factory.mktemp("runs") / "classifier"
    succeed("classifier", *QUICK, "--steps", 2, "--out", out)
    return out


def guide(name: str, path: Path) -> tuple[object, ...]:
    named = ("--set", f"sampling.guidance.name={name}")
    return named if name == "classifier_free" else (*named, "--set", f"sampling.guidance.checkpoint={path}")


def arrays(folder: Path, name: str = "samples") -> dict[str, npt.NDArray[Any]]:
    with np.load(folder / f"{name}.npz") as stored:
        return dict(stored)


def drawn(run: Path, out: Path, *more: object) -> npt.NDArray[Any]:
    """Samples, as numbers that have a sign."""
    succeed("sample", run, *more, "--out", out)
    return arrays(out)["samples"].astype(int)


def test_labels_come_in_turn_whatever_the_batch_and_have_a_row_each(tmp_path: Path, labelled: Path) -> None:
    base = (labelled, *EM, "--count", 7)
    whole = drawn(*base[:1], tmp_path / "a", *base[1:], "--label", "4,1,9")
    parts = drawn(*base[:1], tmp_path / "b", *base[1:], "--label", "4,1,9", "--batch", 2)
    for out in ("a", "b"):
        assert arrays(tmp_path / out)["labels"].tolist() == [4, 1, 9, 4, 1, 9, 4]
    assert (whole != parts).mean() < 0.01  # rounding, over the edge of a level
    alone = drawn(*base[:1], tmp_path / "c", *base[1:], "--label", 4)
    same = (whole == alone).reshape(7, -1).all(1)
    assert same[[0, 3, 6]].all()
    assert not same[[1, 2, 4, 5]].all()
    drawn(labelled, tmp_path / "all", *EM, "--count", 12, "--label", "all")
    assert arrays(tmp_path / "all")["labels"].tolist() == [*range(10), 0, 1]
    with Image.open(tmp_path / "all" / "samples.png") as image:
        assert image.height == 10 * 50 + 2
        assert image.width > 2 * 50 + 2, "names at the left"


@pytest.mark.parametrize("name", ["classifier_free", "autoguidance", "classifier"])
def test_guidance_changes_samples_and_scale_one_does_not(
    tmp_path: Path, labelled: Path, classifier: Path, name: str
) -> None:
    weak = train(tmp_path / "weak", "--set", "model.conditional=true", "--set", "training.sample_every=0", steps=1)
    options = guide(name, classifier if name == "classifier" else weak)
    plain = drawn(labelled, tmp_path / "plain", *EM, "--count", 4, "--label", 3)
    for scale in (1, 8):
        out = tmp_path / str(scale)
        found = drawn(labelled, out, *EM, "--count", 4, "--label", 3, *options, "--guidance", scale)
        assert np.array_equal(found, plain) == (scale == 1)
        told = json.loads((out / "sample.json").read_text())
        assert told["config"]["sampling"]["guidance"]["scale"] == scale
        assert ("guide_sha256" in told) == (scale != 1 and name != "classifier_free")
    limited = ("--guidance", 8, "--set", "sampling.guidance.interval=[1e6, 1e7]")
    assert np.array_equal(drawn(labelled, tmp_path / "i", *EM, "--count", 4, "--label", 3, *options, *limited), plain)


def test_scale_zero_is_the_model_without_the_label(tmp_path: Path, labelled: Path) -> None:
    none = drawn(labelled, tmp_path / "none", *EM, "--count", 4)
    zero = drawn(labelled, tmp_path / "zero", *EM, "--count", 4, "--label", 3, "--guidance", 0)
    assert np.array_equal(none, zero)


def test_models_without_labels_are_guided_by_a_classifier_or_a_worse_model(
    tmp_path: Path, trained: Path, classifier: Path
) -> None:
    weak = train(tmp_path / "weak", "--set", "training.sample_every=0", steps=1)
    plain = drawn(trained, tmp_path / "a", *EM, "--count", 4)
    outcome = succeed("sample", trained, *EM, "--count", 4, *guide("autoguidance", weak), "--out", tmp_path / "b")
    assert "guided by autoguidance, scale 2: a score evaluation costs one call of each network" in outcome.out
    assert not np.array_equal(arrays(tmp_path / "b")["samples"], plain)
    file = RunFolder(classifier, CLASSIFIERS).latest()
    assert file is not None
    by_class = (*guide("classifier", file), "--guidance", 30)
    assert not np.array_equal(drawn(trained, tmp_path / "c", *EM, "--count", 4, *by_class, "--label", 3), plain)
    assert arrays(tmp_path / "c")["labels"].tolist() == [3] * 4


def test_the_dry_run_tells_scale_and_interval(labelled: Path) -> None:
    options = ("--label", "3,5", "--guidance", 2.5, "--set", "sampling.guidance.interval=[0.2, 5]", "--dry-run")
    outcome = succeed("sample", labelled, *options)
    told = yaml.safe_load(outcome.out)["sampling"]
    assert told["guidance"] == {"name": "classifier_free", "scale": 2.5, "interval": [0.2, 5.0]}
    assert told["label"] == [3, 5]
    assert (
        "# guided by classifier_free, scale 2.5 for σ/a in (0.2, 5]: a score evaluation costs one call" in outcome.out
    )


def test_examples_are_encoded_with_their_own_labels_and_decoded_again(tmp_path: Path, labelled: Path) -> None:
    own = DATASETS["digits"]().load("test").fetch(torch.arange(5))[1]
    assert own is not None
    succeed("encode", labelled, *FLOW, "--limit", 5, "--label", "own", "--guidance", 1.5, "--out", tmp_path / "own")
    z = arrays(tmp_path / "own", "latents")["z"]
    for i, k in enumerate(own.tolist()):
        out = tmp_path / str(i)
        each = ("--start", i, "--limit", 1, "--label", k, "--guidance", 1.5, "--no-check", "--out", out)
        succeed("encode", labelled, *FLOW, *each)
        np.testing.assert_allclose(arrays(out, "latents")["z"][0], z[i], rtol=0, atol=1e-4)  # float32
    again = ("--latents", tmp_path / "own" / "latents.npz", *FLOW, "--guidance", 1.5, "--label", "own", "--no-denoise")
    succeed("decode", labelled, *again, "--out", tmp_path / "back")
    back = arrays(tmp_path / "back")
    assert back["labels"].tolist() == own.tolist()
    originals = DATASETS["digits"]().load("test").fetch(torch.arange(5))[0].numpy()
    same = (back["samples"] == originals).reshape(5, -1).mean(1)
    assert np.array_equal(same, arrays(tmp_path / "own", "latents")["exact"])


def test_a_classifier_resumes_bit_for_bit_and_reports_accuracy(tmp_path: Path, classifier: Path) -> None:
    rows = RunFolder(classifier).metrics()
    assert len(rows[-1]["validation_accuracy_by_t"]) == 10
    assert rows[-1]["validation_accuracy"] == pytest.approx(np.mean(rows[-1]["validation_accuracy_by_t"]))
    more = ("--set", "training.decay=constant", "--set", "training.validation_examples=20")
    for steps, out in ((4, "whole"), (2, "parts"), (4, "parts")):
        succeed("classifier", *QUICK, *more, "--steps", steps, "--out", tmp_path / out)
    whole, parts = (RunFolder(tmp_path / name, CLASSIFIERS).latest() for name in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    assert same_bits(load_checkpoint(whole), load_checkpoint(parts))
    last = [[row for row in timeless_metrics(tmp_path / name) if row["step"] == 4] for name in ("whole", "parts")]
    assert last[0][0]["validation_loss"] == last[1][0]["validation_loss"]
    assert "already has 4 steps" in succeed("classifier", *QUICK, *more, "--steps", 4, "--out", tmp_path / "whole").out


def test_the_dry_run_of_a_classifier_trains_nothing(tmp_path: Path) -> None:
    outcome = succeed("classifier", "--sde", "ve", "--steps", 7, "--out", tmp_path / "out", "--dry-run")
    told = yaml.safe_load(outcome.out)
    assert (told["sde"]["name"], told["training"]["steps"]) == ("ve", 7)
    assert told["classifier"]["network"]["name"] == "encoder"
    assert not (tmp_path / "out").exists()


def test_a_classifiers_run_is_not_taken_for_a_models(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    succeed("classifier", *QUICK, "--steps", 1, "--out", "runs/classifier")
    assert "there is no checkpoint in runs;" in invoke("sample").error


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "words": (("--label", "three"), "'three' is not a class such as 3, nor several such as 0,1,2, or 'all'"),
    "none among several": (("--label", "3,-1"), "`label` must be a class ≥ 0, several of them, or −1 for none"),
    "too large among several": (("--label", "3,10"), "`label` must be from 0 to 9, or −1 for none, got 10"),
    "no label": (
        ("--guidance", 2),
        "guidance by 'classifier_free' goes towards a class, but there is none; give --label",
    ),
    "infinite": (("--label", 3, "--guidance", "inf"), "`sampling.guidance.scale` must be a finite number, got"),
    "reversed interval": (
        ("--label", 3, "--guidance", 2, "--set", "sampling.guidance.interval=[5, 0.2]"),
        "`interval` must be two noise levels 0 ≤ low < high of σ/a, got [5.0, 0.2]",
    ),
    "unknown kind": (("--set", "sampling.guidance=free"), "unknown sampling.guidance 'free'"),
    "no checkpoint": (
        ("--label", 3, "--guidance", 2, "--set", "sampling.guidance.name=classifier"),
        "guidance by 'classifier' needs the checkpoint of a classifier; name its file or run with --set sampling.",
    ),
    "empty folder": (
        ("--label", 3, "--guidance", 2, *guide("autoguidance", Path("tests"))),
        "there is no checkpoint of a model in tests",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_guidance_is_one_clear_line(tmp_path: Path, labelled: Path, name: str) -> None:
    options, message = BAD[name]
    refused(tmp_path, message, labelled, *options)


def refused(tmp_path: Path, message: str, run: Path, *options: object) -> None:
    outcome = invoke("sample", run, *EM, "--count", 2, *options, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert message in outcome.error


def test_models_that_guidance_does_not_suit_are_refused(tmp_path: Path, trained: Path, classifier: Path) -> None:
    quiet = ("--set", "training.sample_every=0")
    refused(tmp_path, "needs a model that was trained with labels", trained, "--label", 3, "--guidance", 2)
    refused(tmp_path, "`label` must be −1 (none): the network has no classes", trained, "--label", "all")
    blunt = ("--set", "model.conditional=true", "--set", "training.label_dropout=0")
    certain = train(tmp_path / "certain", *blunt, *quiet, steps=1)
    message = "needs the score without a label, which "
    refused(tmp_path, message, certain, "--label", 3, "--guidance", 2)
    refused(tmp_path, "has never been trained without a class, for its training.label_dropout is 0", certain)
    by_class = guide("classifier", classifier)
    drawn(certain, tmp_path / "by_class", *EM, "--count", 2, "--label", 3, "--guidance", 2, *by_class)
    moons = ("--set", "data=two_moons", "--set", "model.network=mlp", "--set", "model.sigma_data=1")
    points = train(tmp_path / "points", *moons, *quiet, base=TINY[2:], steps=1)
    refused(tmp_path, "must fit the model: its shape is (1, 8, 8)", points, "--label", 1, *by_class)
    rings = ("--set", "data=swiss_roll", *moons[2:])
    bare = train(tmp_path / "bare", *rings, *quiet, base=TINY[2:], steps=1)
    refused(tmp_path, "--label all needs classes, but swiss_roll has none", bare, "--label", "all")


def test_no_guidance_can_be_said_as_null(tmp_path: Path, labelled: Path) -> None:
    (tmp_path / "guided.yaml").write_text("sampling: {guidance: {scale: 3}}")
    (tmp_path / "not.yaml").write_text("sampling: {guidance: null}")
    ask, none = ("--label", 3, "--dry-run"), ("--set", "sampling.guidance=null")
    assert "guided by" in succeed("sample", labelled, "--config", tmp_path / "guided.yaml", *ask).out
    for options in (("--config", tmp_path / "guided.yaml", *none), ("--config", tmp_path / "not.yaml"), none):
        assert "guided by" not in succeed("sample", labelled, *options, *ask).out
    assert "guided by" in succeed("sample", labelled, "--config", tmp_path / "not.yaml", "--guidance", 2, *ask).out


def test_a_wrong_class_says_so_before_any_work(tmp_path: Path, labelled: Path) -> None:
    outcome = invoke("sample", labelled, "--label", 12, "--dry-run")
    assert outcome.code == 2
    assert "`label` must be from 0 to 9, or −1 for none, got 12" in outcome.error
    refused(tmp_path, "got 12", labelled, "--label", "3,12")
    assert not (tmp_path / "out").exists()


def test_guides_that_do_not_fit_are_refused(tmp_path: Path, labelled: Path, trained: Path, classifier: Path) -> None:
    quiet, ask = ("--set", "training.sample_every=0"), ("--label", 3, "--guidance", 2)
    file = RunFolder(classifier, CLASSIFIERS).latest()
    assert file is not None
    auto = guide("autoguidance", file)
    refused(tmp_path, "needs the checkpoint of a model, but", labelled, *ask, *auto)
    newest = RunFolder(labelled).latest()
    assert newest is not None
    refused(tmp_path, "needs the checkpoint of a classifier, but", labelled, *ask, *guide("classifier", newest))
    refused(tmp_path, "must fit the model: its classes is ()", labelled, *ask, *guide("autoguidance", trained))
    other = train(tmp_path / "other", "--set", "sde.beta.max=10", "--set", "model.conditional=true", *quiet, steps=1)
    refused(tmp_path, "its sde.beta.max is 10.0, the model's 20.0", labelled, *ask, *guide("autoguidance", other))
    outcome = invoke("sample", file)
    assert outcome.code == 2
    assert "holds a classifier, not a model; it is a guide" in outcome.error


def test_a_classifier_needs_labels_and_a_network_that_suits(tmp_path: Path) -> None:
    for options, message in (
        (("--set", "data=swiss_roll"), "a classifier needs data with labels, but swiss_roll has none"),
        (("--set", "data=rings"), "for the classifier 'encoder', got (2,); 'mlp' takes any"),
        (("--set", "classifier.network=unet"), "unknown classifier.network 'unet'"),
        (("--set", "classifier.network.width=3"), "unknown config key 'classifier.network.width' of 'encoder'"),
    ):
        outcome = invoke("classifier", *options, "--out", tmp_path / "out")
        assert outcome.code == 2
        assert message in outcome.error


def test_labels_of_examples_that_have_none(tmp_path: Path, labelled: Path) -> None:
    np.save(tmp_path / "mine.npy", np.zeros((2, 1, 8, 8), np.uint8))
    outcome = invoke(
        "encode", labelled, *FLOW, "--file", tmp_path / "mine.npy", "--label", "own", "--out", tmp_path / "o"
    )
    assert outcome.code == 2
    assert "--label own needs examples with labels, but these have none" in outcome.error
    np.save(tmp_path / "z.npy", np.zeros((2, 1, 8, 8)))
    outcome = invoke("decode", labelled, *FLOW, "--latents", tmp_path / "z.npy", "--label", "own")
    assert outcome.code == 2
    assert "must hold the classes of its latents as `labels`" in outcome.error
    np.savez(tmp_path / "z.npz", z=np.zeros((2, 1, 8, 8)), labels=np.zeros(3, int))
    outcome = invoke("decode", labelled, *FLOW, "--latents", tmp_path / "z.npz", "--label", "own")
    assert outcome.code == 2
    assert "must be 2 whole numbers, one for each latent" in outcome.error
    outcome = invoke("interpolate", labelled, *FLOW, "--pair", 1, 2, "--label", "3,4")
    assert outcome.code == 2
    assert "--label must be one class, got [3, 4]" in outcome.error


def test_classes_can_be_named(tmp_path: Path) -> None:
    """By the names of the data; a number is still the number of a class."""
    named = ("--set", "data.name=rings", "--set", "model={network: mlp, conditional: true, sigma_data: 1}")
    run = train(tmp_path / "run", *named, "--set", "training.sample_every=0", base=TINY[2:])
    ask = ("--dry-run",)
    for command, section in (("sample", "sampling"), ("likelihood", "likelihood")):
        by_name, by_number = (succeed(command, run, "--label", label, *ask).out for label in ("middle", 1))
        assert by_name == by_number
        assert yaml.safe_load(by_name)[section]["label"] in (1, [1])
    assert yaml.safe_load(succeed("sample", run, "--label", "middle,0", *ask).out)["sampling"]["label"] == [1, 0]
    outcome = invoke("sample", run, "--label", "middlex", *ask)
    assert outcome.code == 2
    assert "did you mean 'middle'?" in outcome.error
