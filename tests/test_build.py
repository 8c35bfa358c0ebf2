"""From configs to objects: every shipped file, the device and the first weights."""

import dataclasses
import re
from pathlib import Path
from typing import Literal

import pytest
import torch

from sde_diffusion.config.build import (
    Config,
    build_model,
    build_trainer,
    choose_device,
    count_parameters,
    load_trained,
    plain_config,
    read_config,
)
from sde_diffusion.data import DataSource, DataSpec, TensorDataset
from sde_diffusion.data.sources.cifar10 import CIFAR10
from sde_diffusion.data.sources.mnist import MNIST
from sde_diffusion.errors import InputError
from sde_diffusion.training import Checkpoint, RunFolder
from tests.exchange.score_sde_reference import PRESETS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
LARGE = {  # built without memory: 62 million parameters and more
    "cifar10_ncsnpp_ve": ("ncsnpp cifar10", (3, 32, 32)),
    "cifar10_ddpmpp_vp": ("ddpmpp cifar10", (3, 32, 32)),
    "cifar10_ddpmpp_subvp": ("ddpmpp cifar10", (3, 32, 32)),
    "celeba_ncsnpp_ve": ("ncsnpp celeba", (3, 64, 64)),
    "celebahq_ncsnpp_ve": ("ncsnpp celebahq 256", (3, 256, 256)),
}
"""Config -> the published preset that it is of, and its images."""
LATENTS = "latents_vp"  # built in tests/commands/test_latents.py
CPU = torch.device("cpu")
IMAGE = DataSpec("images", (1, 8, 8), levels=256, classes=("a", "b"))


def small(*assignments: str) -> Config:
    return read_config(None, ["model.network={name: unet, channels: 8, multipliers: [1], blocks: 1}", *assignments])


def invented(source: DataSource, split: Literal["train", "test"]) -> TensorDataset:
    """Six examples that look like the data."""
    spec = source.spec  # type: ignore[attr-defined]
    return TensorDataset(spec, torch.zeros(6, *spec.shape, dtype=torch.uint8), torch.arange(6))


def test_configs_are_shipped_for_every_data_set_and_process() -> None:
    expected = {
        f"{data}_{sde}" for data in ("digits", "fashion_mnist", "mnist", "cifar10") for sde in ("vp", "subvp", "ve")
    }
    assert expected <= {path.stem for path in CONFIGS}
    assert any(plain_config(read_config(path))["data"]["name"] == "two_moons" for path in CONFIGS)


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem not in {*LARGE, LATENTS}], ids=lambda path: path.stem)
def test_every_shipped_config_builds(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in (MNIST, CIFAR10):  # Fashion-MNIST is an MNIST
        monkeypatch.setattr(source, "read", invented)
    config = read_config(path)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, validation=0))  # few were invented
    resolved = plain_config(config)
    assert path.stem.startswith(resolved["data"]["name"])
    assert len(path.read_text().splitlines()) <= 30, "only what differs from the defaults"
    trainer = build_trainer(config, RunFolder(tmp_path), CPU)
    x = torch.zeros(2, *trainer.train.spec.shape)
    assert trainer.model(x, torch.tensor([0.1, 0.9])).shape == x.shape


@pytest.mark.parametrize("stem", LARGE)
def test_the_large_configs_are_the_published_presets(stem: str) -> None:
    """Fourier features of CelebA are 128 more columns of a matrix than the published 64 × 64 preset's positions."""
    preset, shape = LARGE[stem]
    (path,) = (path for path in CONFIGS if path.stem == stem)
    config = read_config(path)
    resolved = plain_config(config)
    assert stem == f"{stem.split('_')[0]}_{resolved['model']['network']['name']}_{resolved['sde']['name']}"
    assert resolved["data"]["name"] in ("cifar10", "images")
    assert tuple(resolved["data"].get("size", (32, 32))) == shape[1:]
    assert len(path.read_text().splitlines()) <= 35, "only what differs from the defaults"
    with torch.device("meta"):
        net = config.model.network(shape)
        fourier = 128 * 512 if preset == "ncsnpp celeba" else 0
        assert count_parameters(net) == PRESETS[preset][2] + fourier
        assert net.to("meta")(torch.zeros(1, *shape), torch.zeros(1)).shape == (1, *shape)


SIZED = [path for path in CONFIGS if "million parameters" in path.read_text()]


@pytest.mark.parametrize("path", SIZED, ids=lambda path: path.stem)
def test_a_config_that_tells_its_size_tells_it_rightly(path: Path) -> None:
    told = re.findall(r"\(([\d.]+) million parameters", path.read_text())
    config = read_config(path)
    data = plain_config(config)["data"]
    with torch.device("meta"):
        shape = (1, 28, 28) if "mnist" in data["name"] else (3, *data.get("size", (32, 32)))
        count = count_parameters(config.model.network(shape))
    decimals = len(told[0].partition(".")[2])
    assert told == [f"{count / 1e6:.{decimals}f}"]


def test_the_large_networks_tell_their_sizes() -> None:
    large = ("cifar", "celeb", "fashion_mnist_reference")
    assert {path.stem for path in SIZED} == {path.stem for path in CONFIGS if path.stem.startswith(large)}


@pytest.mark.parametrize("path", [p for p in CONFIGS if "for bits/dim" in p.read_text()], ids=lambda path: path.stem)
def test_what_is_for_bits_is_scored_by_the_noise_it_was_trained_with(path: Path) -> None:
    config = read_config(path)
    name = plain_config(config)["likelihood"]["dequantisation"]["name"]
    assert name == config.training.dequantise.scored_by


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = build_model(small(), IMAGE, CPU)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    other = build_model(small(), IMAGE, CPU)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    torch.manual_seed(1)
    build_model(small(), IMAGE, CPU)
    assert torch.equal(torch.get_rng_state(), state), "and leave the global generator alone"
    changed = build_model(small("seed=1"), IMAGE, CPU)
    assert not torch.equal(next(one.parameters()), next(changed.parameters()))


def test_a_conditional_model_needs_classes() -> None:
    assert build_model(small("model.conditional=true"), IMAGE, CPU).net.classes == 2
    assert build_model(small(), IMAGE, CPU).net.classes == 0
    bare = DataSpec("arrays", (1, 8, 8), levels=None)
    with pytest.raises(InputError, match=r"`model.conditional` must be false for arrays: these data have no labels"):
        build_model(small("model.conditional=true"), bare, CPU)


def test_a_network_that_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="'mlp' takes any shape"):
        build_model(small(), DataSpec("two_moons", (2,), levels=None), CPU)


@pytest.mark.parametrize("name", ["ncsnpp", "ddpmpp", "dit"])
def test_a_network_for_images_alone_names_those_for_series(name: str) -> None:
    config = read_config(None, [f"model.network={{name: {name}}}"])
    with pytest.raises(InputError, match=rf"'{name}'.*got \(2, 33\); 'unet' takes series and volumes too, 'mlp' any"):
        build_model(config, DataSpec("arrays", (2, 33), levels=None), CPU)


def test_a_trained_model_is_the_average_unless_the_last_weights_are_asked_for() -> None:
    config = small()
    first, last = build_model(config, IMAGE, CPU), build_model(small("seed=1"), IMAGE, CPU)
    tensors = {f"ema.{k}": v for k, v in first.state_dict().items()} | {
        f"model.{k}": v for k, v in last.state_dict().items()
    }
    checkpoint = Checkpoint(tensors, {"data": IMAGE.to_dict(), "step": 5, "config": plain_config(config)})
    for ema, expected in ((True, first), (False, last)):
        trained = load_trained(checkpoint, config, CPU, ema=ema)
        pairs = zip(trained.model.parameters(), expected.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert not trained.model.training
        assert not any(p.requires_grad for p in trained.model.parameters())
        assert (trained.spec, trained.step) == (IMAGE, 5)


def test_parameters_are_counted() -> None:
    assert count_parameters(torch.nn.Linear(3, 2)) == 8


@pytest.mark.parametrize("name", ["cpu:x", "gpu", "meta", "xpu", "", "cuda:-1"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"unknown device|CUDA"):
        choose_device(name)


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(InputError, match="asks for CUDA, but this machine has 0 CUDA devices; use --device cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="`device` cuda:2 asks for CUDA, but this machine has 2 CUDA devices"):
        choose_device("cuda:2")
