"""The front door: what a program does in three lines, and what it is told when it does something else."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sde_diffusion as sd
from sde_diffusion.errors import InputError
from tests.commands.running import invoke

PRETRAINED = "pretrained:fashion_mnist_vp"
FAST = sd.PerSampleODE(rtol=1e-2, atol=1e-2)


class Own(nn.Module):
    """A network of the user's own class that takes no label."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([x, c_noise[:, None]], 1))
        return out


class OwnSDE(sd.VPSDE):
    """A process of the user's own class."""


@pytest.fixture(scope="module")
def points() -> Tensor:
    return torch.randn(256, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.1])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, points: Tensor) -> Path:
    torch.manual_seed(0)
    score = sd.ScoreModel(sd.MLP((2,), width=32, depth=2), sd.VPSDE())
    optimizer = torch.optim.Adam(score.parameters(), lr=1e-3)
    for x in points.split(64):
        optimizer.zero_grad()
        sd.dsm_loss(score, x).mean().backward()
        optimizer.step()
    return sd.save(tmp_path_factory.mktemp("own") / "mine", score, units=sd.Continuous((2,)))


@pytest.fixture(scope="module")
def model(file: Path) -> sd.Model:
    return sd.load(file)


def test_a_pretrained_model_gives_images_in_their_units() -> None:
    model = sd.load(PRETRAINED)
    images = model.sample(2, nfe=4, seed=0)
    assert images.shape == (2, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert "1,623,169" in repr(model)


def test_sample_i_is_the_same_in_any_batch_and_any_run(model: sd.Model) -> None:
    all_at_once = model.sample(6, nfe=6, seed=3)
    torch.testing.assert_close(model.sample(6, nfe=6, seed=3, batch=4), all_at_once)
    torch.testing.assert_close(model.sample(2, nfe=6, seed=3, start=4), all_at_once[4:])
    assert not torch.equal(model.sample(6, nfe=6, seed=4), all_at_once)


@pytest.mark.parametrize("solver", ["em", sd.DDIM(steps=5), sd.for_budget(5), sd.PerSampleODE(rtol=1e-2, atol=1e-2)])
def test_a_solver_is_a_name_an_object_or_a_plan(model: sd.Model, solver: Any) -> None:
    if solver == "em":
        solver = sd.EulerMaruyama(steps=5)
        torch.testing.assert_close(model.sample(2, solver="em", nfe=6), model.sample(2, solver=solver))
    assert model.sample(2, solver=solver).isfinite().all()


def test_decode_undoes_encode(model: sd.Model, points: Tensor) -> None:
    ode = sd.PerSampleODE(rtol=1e-6, atol=1e-6)
    z = model.encode(points[:5], solver=ode)
    torch.testing.assert_close(model.decode(z, solver=ode), points[:5], atol=1e-4, rtol=1e-3)


def test_interpolation_begins_and_ends_at_its_examples(model: sd.Model, points: Tensor) -> None:
    path = model.interpolate(points[:2], points[2:4], frames=3)
    assert path.shape == (2, 3, 2)
    torch.testing.assert_close(path[:, 0], points[:2], atol=5e-3, rtol=1e-2)
    torch.testing.assert_close(path[:, -1], points[2:4], atol=5e-3, rtol=1e-2)


def test_log_prob_is_in_nats_and_in_the_units_of_the_data(file: Path, points: Tensor) -> None:
    plain = sd.load(file)
    scaled = sd.save(file.with_name("scaled"), plain.score_model, units=sd.Continuous((2,), shift=5.0, scale=4.0))
    options = {"divergence": "exact", "ode": sd.PerSampleODE(rtol=1e-5, atol=1e-5)}
    base = plain.log_prob(points[:4], **options)
    other = sd.load(scaled).log_prob(4 * points[:4] + 5, **options)
    torch.testing.assert_close(other, base - 2 * math.log(4), atol=1e-3, rtol=0)
    bits = plain.bits_per_dim(points[:4], **options)
    assert bits.mean == pytest.approx(float(-base.mean() / (2 * math.log(2))), rel=1e-9)
    assert str(bits) == f"{bits.mean:.2f} ± {bits.half_width:.2f}"


def test_values_may_be_an_array(model: sd.Model, points: Tensor) -> None:
    torch.testing.assert_close(model.encode(points[:2].numpy(), solver=FAST), model.encode(points[:2], solver=FAST))


@pytest.mark.parametrize(
    "view",
    [lambda a: a[:, ::-1][:, ::-1], lambda a: np.broadcast_to(a, a.shape), lambda a: a.astype(">f4")],
    ids=["negative strides", "read-only", "big-endian"],
)
def test_an_array_may_lie_in_memory_as_it_likes(
    model: sd.Model, points: Tensor, view: Callable[[Any], Any], recwarn: pytest.WarningsRecorder
) -> None:
    expected = model.encode(points[:2], solver=FAST)
    torch.testing.assert_close(model.encode(view(points[:2].numpy()), solver=FAST), expected, rtol=0, atol=0)
    assert not recwarn.list


def test_what_is_saved_loads_with_the_same_scores(file: Path, points: Tensor) -> None:
    model = sd.load(str(file))
    again = sd.load(sd.save(file.with_name("again.safetensors"), model))
    t = torch.full((3,), 0.5)
    torch.testing.assert_close(again.score(points[:3], t), model.score(points[:3], 0.5), atol=0, rtol=0)
    assert again.config["model"]["network"]["width"] == 32


def test_commands_read_what_the_library_saved(file: Path) -> None:
    out = file.parent / "drawn"
    result = invoke("sample", str(file), "--count", "3", "--nfe", "4", "--out", str(out))
    assert result.code == 0, result.err
    assert np.load(out / "samples.npz")["samples"].shape == (3, 2)


def test_a_network_and_a_process_of_ones_own_are_noted_by_name(tmp_path: Path, points: Tensor) -> None:
    net = Own()
    score = sd.ScoreModel(net, OwnSDE())
    file = sd.save(tmp_path / "own", score, units=sd.Continuous((2,)))
    with pytest.raises(InputError, match=r"the net Own and the sde OwnSDE.*load\(path, net=…, sde=…\)"):
        sd.load(file)
    loaded = sd.load(file, net=Own(), sde=OwnSDE())
    torch.testing.assert_close(loaded.score(points[:2], 0.5), score(points[:2], torch.full((2,), 0.5)))
    refused = invoke("sample", str(file))
    assert refused.code == 2
    assert "the net Own" in refused.err


def test_a_trainer_on_own_tensors_makes_a_run_that_commands_read(tmp_path: Path, points: Tensor) -> None:
    data = sd.TensorDataset(sd.Continuous((2,)), points)
    score = sd.ScoreModel(sd.MLP((2,), width=16, depth=1), sd.VPSDE())
    options = sd.TrainingConfig(steps=4, batch=32, sample_every=0, precision="float32")
    trainer = sd.Trainer(score, data, folder=tmp_path / "run", config=options)
    trainer.run()
    assert sd.load(tmp_path / "run").step == 4
    result = invoke("sample", str(tmp_path / "run"), "--count", "2", "--nfe", "3")
    assert result.code == 0, result.err


@pytest.mark.parametrize("scale", [1.0, 4.0, (4.0, 0.25)])
def test_commands_score_a_librarys_run_in_its_own_units(tmp_path: Path, points: Tensor, scale: Any) -> None:
    units = sd.Continuous((2,), shift=0.5, scale=scale)
    score = sd.ScoreModel(sd.MLP((2,), width=16, depth=1), sd.VPSDE())
    file = sd.save(tmp_path / "own", score, units=units)
    np.save(tmp_path / "points.npy", points[:8].numpy())
    options = ("--set", f"data.file={tmp_path / 'points.npy'}", "--set", "data.test_fraction=0.5")
    result = invoke("likelihood", str(file), *options, "--exact", "--out", str(tmp_path / "scored"))
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "scored" / "likelihood.json").read_text())
    assert found["bits_per_dim"] == pytest.approx(sd.load(file).bits_per_dim(points[4:8], divergence="exact").mean)


def test_train_goes_on_where_a_run_stands(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "model": {"network": {"channels": 8, "multipliers": [1]}},
        "training": {"steps": 2, "batch": 8, "sample_every": 0, "validate_every": 0, "precision": "float32"},
    }
    assert sd.train(config, out=tmp_path / "run").step == 2
    config["training"]["steps"] = 3
    model = sd.train(config, out=tmp_path / "run")
    assert (model.step, model.spec.name) == (3, "digits")
    config["training"]["batch"] = 16
    with pytest.raises(InputError, match=r"training.batch = 8, not 16"):
        sd.train(config, out=tmp_path / "run")


def test_library_functions_have_defaults(points: Tensor) -> None:
    score = sd.ScoreModel(sd.MLP((2,), width=16, depth=1), sd.VPSDE())
    assert sd.sample(score, shape=(3, 2)).x.shape == (3, 2)
    assert torch.equal(sd.sample(score, shape=(3, 2), noise=1).x, sd.sample(score, None, "ode", (3, 2), noise=1).x)
    assert sd.log_likelihood(score, points[:2]).log_prob.shape == (2,)
    torch.manual_seed(0)
    first = sd.dsm_loss(score, points).mean()
    torch.manual_seed(0)
    assert torch.equal(sd.dsm_loss(score, score.sde, points).mean(), first)


def wrong_uses() -> list[tuple[str, Callable[[sd.Model], object], str]]:
    x = torch.zeros(2, 2)
    return [
        ("a solver's class", lambda m: m.sample(1, solver=sd.DDIM), r"`solver`.*the class DDIM; add \(\)"),
        ("a solver's typo", lambda m: m.sample(1, solver="dimm"), r"unknown solver 'dimm'; did you mean 'ddim'"),
        ("noise that is no seed", lambda m: sd.sample(m.score_model, shape=(1, 2), noise="0"), r"`noise` must be"),
        ("no shape", lambda m: sd.sample(m.score_model), r"`shape` must be"),
        ("no process", lambda m: sd.sample(lambda x, t: -x, shape=(1, 2)), r"`sde` must be given"),
        ("a process's class", lambda m: sd.sample(m.score_model, sd.VPSDE, shape=(1, 2)), r"`sde`.*add \(\)"),
        ("a count of none", lambda m: m.sample(0), r"`count` must be a whole number > 0, got 0"),
        ("half a seed", lambda m: m.sample(1, seed=0.5), r"`seed` must be a whole number"),
        ("a budget for an adaptive solver", lambda m: m.sample(1, solver="ode", nfe=5), r"`nfe` cannot set the steps"),
        ("a label without classes", lambda m: m.sample(1, label=3), r"`label`"),
        ("a class name without classes", lambda m: m.sample(1, label="shoe"), r"it has no classes"),
        ("a solver for an ODE", lambda m: m.log_prob(x, ode=sd.DDIM()), r"`ode` must be one of"),
        ("an unknown trace", lambda m: m.log_prob(x, divergence="hutch"), r"unknown divergence 'hutch'"),
        ("NaN", lambda m: m.log_prob(x / 0), r"`values` must be finite, got 4"),
        ("another shape", lambda m: m.log_prob(torch.zeros(2, 3)), r"shape \(B, 2\), got \(2, 3\)"),
        ("no batch", lambda m: m.log_prob(torch.zeros(2)), r"values\[None\]"),
        ("no example", lambda m: m.log_prob(x[:0]), r"got \(0, 2\); it holds no example"),
        ("a guide by name", lambda m: m.sample(1, guide="worse"), r"`guide` must be what sde_diffusion.load gave"),
        ("a word for denoise", lambda m: m.sample(1, denoise="yes"), r"`denoise` must be true or false, got 'yes'"),
        ("a number for partners", lambda m: m.interpolate(x, 5), r"`values` must be a tensor or an array of numbers"),
        ("a folder for a file", lambda m: sd.save(".", m), r"`path` must name a file, got the folder \."),
        ("a list", lambda m: m.log_prob([[0.0, 0.0]]), r"`values` must be a tensor or an array"),
        ("complex numbers", lambda m: m.log_prob(x.to(torch.complex64)), r"`values` must be.*complex64"),
        ("partners that are not there", lambda m: m.interpolate(x, x[:1]), r"hold 2 partners, got 1"),
        ("a score at no time", lambda m: m.score(x, 2.0), r"`t` must be in \(0, 1\]"),
        ("a score at three times", lambda m: m.score(x, torch.ones(3)), r"one for each of 2 states"),
        ("a negative start", lambda m: m.sample(1, start=-1), r"`start` must be a whole number ≥ 0"),
        ("a label between classes", lambda m: m.sample(1, label=torch.tensor([0.5])), r"`label`.*float32"),
        ("an end that is no time", lambda m: m.sample(1, t_end="0"), r"`t_end` must be a time, got '0'"),
        ("a projection's name", lambda m: m.sample(1, project="clip"), r"`project` must be a function"),
        ("a network's class", lambda m: sd.ScoreModel(sd.MLP, sd.VPSDE()), r"`net` must be.*the class MLP; add \(\)"),
        ("a process's name", lambda m: sd.ScoreModel(sd.MLP((2,)), "vp"), r"`sde` must be a process.*got a str"),
        ("a batch of another shape", lambda m: sd.dsm_loss(m.score_model, torch.zeros(2, 3)), r"shape \(B, 2\) of the"),
        ("a weighting's name", lambda m: sd.dsm_loss(m.score_model, x, weighting="simple"), r"`weighting` must be a W"),
        ("a sampler's class", lambda m: sd.dsm_loss(m.score_model, x, time_sampler=sd.UniformTime), r"`time_sampler`"),
        ("a seed for a loss", lambda m: sd.dsm_loss(m.score_model, x, generator=0), r"`generator` must be a torch.G"),
        ("a list for a path", lambda m: sd.load(["a"]), r"`path` must be a path, as text or pathlib.Path, got a list"),
        ("a pretrained model's bare name", lambda m: sd.load("fashion_mnist_vp"), r"pretrained:fashion_mnist_vp"),
        ("a side for a shape", lambda m: sd.Continuous(2), r"`shape` must be the sides"),
        ("data with NaN", lambda m: sd.TensorDataset(sd.Continuous((2,)), x / 0), r"`values` must be finite, got 4"),
        ("grey values out of range", lambda m: sd.TensorDataset(sd.Discrete((2,), 4), x.int() + 4), r"from 0 to 3"),
        ("a word for a budget", lambda m: sd.for_budget("ten"), r"`nfe` must be a whole number > 0, got 'ten'"),
        ("an average that was not kept", lambda m: sd.load("pretrained:fashion_mnist_vp", ema=0.2), r"length 0.2"),
        ("fractions for whole numbers", lambda m: sd.TensorDataset(sd.Discrete((2,)), x), r"whole numbers.*float32"),
        ("a tensor for batches", lambda m: sd.sweep(x, batch=2, seed=0), r"`dataset` must be a Dataset such as Tensor"),
        ("a mapping for options", lambda m: sd.Trainer(m.score_model, sd.TensorDataset(sd.Continuous((2,)), x),
            folder="n", config={"steps": 3}), r"`config` must be a TrainingConfig such as"),
        ("an array for a loss", lambda m: sd.dsm_loss(m.score_model, np.zeros((2, 2))), r"torch.as_tensor"),
        ("whole numbers for a loss", lambda m: sd.dsm_loss(m.score_model, x.long()), r"floating-point batch"),
        ("a stochastic encoder", lambda m: m.encode(x, solver="em"), r"must be deterministic"),
        ("no units", lambda m: sd.save("nowhere", m.score_model), r"`units` must say"),
        ("other units", lambda m: sd.save("n", m.score_model, units=sd.Continuous((3,))), r"shape \(2,\) of the net"),
        ("an unwritable place", lambda m: sd.save("/proc/none/x", m), r"/proc/none"),
        ("a missing file", lambda m: sd.load("missing.safetensors"), r"there is no checkpoint at missing"),
        ("an unknown pretrained model", lambda m: sd.load("pretrained:none"), r"unknown pretrained model"),
        ("a foreign file", lambda m: sd.load(__file__), r"cannot read .* as a checkpoint"),
        ("values of another spec", lambda m: sd.TensorDataset(sd.Continuous((3,)), x), r"`values` must have the shape"),
        ("a tensor for a data set", lambda m: sd.Trainer(m.score_model, x, folder="n"), r"`train` must be a Dataset"),
    ]  # fmt: skip


@pytest.mark.parametrize(("use", "message"), [pytest.param(u, m, id=name) for name, u, m in wrong_uses()])
def test_wrong_use_says_what_is_wrong(model: sd.Model, use: Callable[[sd.Model], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        use(model)


def test_double_data_and_single_weights_are_reconciled_or_explained(model: sd.Model, points: Tensor) -> None:
    found = model.log_prob(points[:2].double(), ode=FAST)
    torch.testing.assert_close(found, model.log_prob(points[:2], ode=FAST), atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match=r"float64.*float32"):
        sd.dsm_loss(model.score_model, points.double())


def test_a_network_with_classes_needs_their_names(tmp_path: Path) -> None:
    score = sd.ScoreModel(sd.MLP((2,), classes=2, width=16, depth=1), sd.VPSDE())
    with pytest.raises(InputError, match=r"`units` must name the 2 classes that the network knows, got 0"):
        sd.save(tmp_path / "classes", score, units=sd.Continuous((2,)))
    model = sd.load(sd.save(tmp_path / "classes", score, units=sd.Continuous((2,), classes=("a", "b"))))
    named, numbered = (model.sample(2, nfe=3, label=label) for label in ("b", 1))
    assert torch.equal(named, numbered)
    with pytest.raises(InputError, match=r"`label` must be from 0 to 1, or −1 for none, got 2"):
        model.sample(2, label=2)


def test_a_loss_takes_what_loaders_give(points: Tensor) -> None:
    """A pair of values and labels; labels count where the network knows classes."""
    torch.manual_seed(0)
    labels = torch.arange(len(points)) % 2
    plain = sd.ScoreModel(sd.MLP((2,), width=16, depth=1), sd.VPSDE())
    known = sd.ScoreModel(sd.MLP((2,), classes=2, width=16, depth=1), sd.VPSDE())
    for weight in known.parameters():  # its last layers start at zero
        nn.init.normal_(weight, std=0.2)
    losses = {}
    for name, score, batch in (
        ("tensor", plain, points),
        ("list", plain, [points]),
        ("pair", plain, (points, labels)),
        ("without", known, points),
        ("labelled", known, sd.Batch(points, labels)),
        ("bound", known.bind(labels), points),
    ):
        sde = known.sde if name == "bound" else None
        losses[name] = sd.dsm_loss(score, sde or batch, batch if sde else None, generator=sd.generator(0)).mean()
    assert losses["tensor"] == losses["list"] == losses["pair"]
    assert losses["labelled"] == losses["bound"] != losses["without"]


def test_a_worse_model_guides(model: sd.Model) -> None:
    """With itself for a guide nothing changes, whatever the scale; without one there is a message."""
    for guidance in ("autoguidance", sd.Autoguidance(scale=3.0)):
        torch.testing.assert_close(model.sample(2, nfe=3, guidance=guidance, guide=model), model.sample(2, nfe=3))
    with pytest.raises(InputError, match=r"autoguidance needs a worse model as `guide`"):
        model.sample(2, nfe=3, guidance="autoguidance")


def tiny_trainer(points: Tensor, folder: Path, steps: int, **options: Any) -> sd.Trainer:
    config = sd.TrainingConfig(steps=steps, batch=32, sample_every=0, validate_every=0, keep=2, precision="float32")
    data = sd.TensorDataset(sd.Continuous((2,)), points)
    torch.manual_seed(0)
    score = sd.ScoreModel(sd.MLP((2,), width=16, depth=1), sd.VPSDE())
    return sd.Trainer(score, data, folder=folder, config=config, **options)


def test_a_trainer_does_not_mix_runs(tmp_path: Path, points: Tensor) -> None:
    """A shorter run in the folder of a longer one lost its checkpoints, and the older weights were loaded."""
    tiny_trainer(points, tmp_path / "run", 6).run()
    with pytest.raises(InputError, match=r"holds a run already; choose another, or continue it by resume=True"):
        tiny_trainer(points, tmp_path / "run", 3)
    assert sd.load(tmp_path / "run").step == 6


def test_a_trainer_continues_bit_for_bit(tmp_path: Path, points: Tensor) -> None:
    config = {"learning_rate": 1e-3, "warmup": 0, "decay": "constant"}
    ends = []
    for name, lengths in (("whole", [6]), ("parts", [3, 6])):
        for steps in lengths:
            torch.manual_seed(0)
            score = sd.ScoreModel(sd.MLP((2,), width=16, depth=1), sd.VPSDE())
            options = sd.TrainingConfig(steps=steps, batch=32, sample_every=0, precision="float32", **config)
            data = sd.TensorDataset(sd.Continuous((2,)), points)
            sd.Trainer(score, data, folder=tmp_path / name, config=options, resume=True).run()
        ends.append(sd.load(tmp_path / name, ema=False).score_model.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_a_trainer_refuses_to_continue_another_run(tmp_path: Path, points: Tensor) -> None:
    tiny_trainer(points, tmp_path / "run", 2).run()
    with pytest.raises(InputError, match=r"was started with seed = 0, not 1; continue it as it is, or choose another"):
        tiny_trainer(points, tmp_path / "run", 4, resume=True, seed=1)
    with pytest.raises(InputError, match=r"had 256 examples and now has 100; restore the data, or continue with"):
        tiny_trainer(points[:100], tmp_path / "run", 4, resume=True)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_saves_and_ends_the_program(
    tmp_path: Path, points: Tensor, monkeypatch: pytest.MonkeyPatch, stop: signal.Signals
) -> None:
    trainer = tiny_trainer(points, tmp_path / "run", 100)
    step = trainer.train_step

    def stopped(batch: Any) -> Any:
        if trainer.step == 4:
            os.kill(os.getpid(), stop)
        return step(batch)

    monkeypatch.setattr(trainer, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt if stop == signal.SIGINT else SystemExit):
        trainer.run()
    assert sd.load(tmp_path / "run").step == 5


def test_what_was_trained_beside_a_model_is_saved_with_it(tmp_path: Path) -> None:
    config = {
        "model": {"network": {"channels": 8, "multipliers": [1]}},
        "training": {"steps": 1, "batch": 8, "sample_every": 0, "validate_every": 0, "dequantise": "flow"},
        "likelihood": {"dequantisation": "flow", "ode": {"rtol": 0.1, "atol": 0.1}},
    }
    model = sd.train(config, out=tmp_path / "run")
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    again = sd.load(sd.save(tmp_path / "saved", model))
    assert torch.equal(again.log_prob(images), model.log_prob(images))
    with pytest.raises(InputError, match=r"do not fit the part '\w+' beside it"):
        sd.load(sd.save(tmp_path / "bare", model.score_model, units=model.spec, config=config))
