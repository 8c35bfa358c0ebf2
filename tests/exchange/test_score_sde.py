"""Checkpoints of score_sde_pytorch: against an independent copy of its networks, and as a user imports them."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_diffusion.config.build import build_model, read_config
from sde_diffusion.config.parse import Raw, merge
from sde_diffusion.data import DataSpec
from sde_diffusion.exchange import FORMATS, Imported, to_ours
from sde_diffusion.exchange.score_sde.layout import closed_up, infer
from sde_diffusion.exchange.score_sde.slots import slots
from sde_diffusion.model import ScoreModel
from sde_diffusion.networks import NCSNpp
from sde_diffusion.training import RunFolder, load_checkpoint
from tests.commands.running import invoke, succeed
from tests.exchange.score_sde_reference import DDPM, PRESETS, Published, ScoreSDENet

SHAPE = (3, 8, 8)
VP = Published(nf=8, mult=(1, 2), blocks=1, fir=False)
VE = replace(VP, fir=True, fourier=True, progressive_input="residual")
SKIPS = replace(VE, mult=(1, 2, 2), progressive_input="input_skip", progressive="output_skip")
SMALL = {
    "ddpm": replace(DDPM, nf=128, mult=(1, 1), blocks=1),
    "ddpmpp": VP,
    "ddpmpp, no attention, two blocks": replace(VP, attention=(), blocks=2),
    "ddpmpp of one level": replace(VP, mult=(2,), attention=(0,)),
    "ncsnpp": VE,
    "ncsnpp of vp": replace(VE, fourier=False),
    "ncsnpp with skips": SKIPS,
    "ncsnpp with skips, put beside": replace(SKIPS, combine="cat"),
    "ncsnpp with skips, older": replace(SKIPS, silent=True),
    "ncsnpp with a residual output": replace(VE, progressive="residual"),
    "ncsnpp without the filter": replace(VE, fir=False),
}


def network(config: Published, seed: int = 0) -> ScoreSDENet:
    """With random weights in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = ScoreSDENet(config).double()
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1 and not name.endswith("0.W"):
                parameter.data.add_(0.2 * torch.randn_like(parameter))
    return net.requires_grad_(False)


def checkpoint(net: ScoreSDENet, averaged: ScoreSDENet | None = None) -> dict[str, Any]:
    """As its training saves it: from within DataParallel, and with a learning rate that is a number of NumPy."""
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    shadow = [value for name, value in (averaged or net).named_parameters() if not re.fullmatch(r".*\.\d+\.W", name)]
    ema = {"decay": 0.999, "num_updates": 3, "shadow_params": shadow}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": np.float64(2e-4)}]}
    return {"optimizer": optimizer, "model": state, "ema": ema, "step": 3}


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def imported(path: Path, **sections: Any) -> Imported:
    return FORMATS["score_sde"]().read(path, shape=SHAPE, config=sections)


def model_of(found: Imported, weights: Mapping[str, Tensor], **sections: Any) -> ScoreModel:
    """Our model in float64."""
    raw: Raw = merge(merge(found.config, {"data": "cifar10"}), sections)
    model = build_model(read_config(None, (), raw), DataSpec("images", SHAPE, levels=256), torch.device("cpu")).double()
    like = model.net.state_dict() | {name: value.double() for name, value in found.implied.items()}
    model.net.load_state_dict(to_ours(found.slots(model.net), weights, like, "the file"))
    return model.eval()


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.tensor([0.13, 0.81], dtype=torch.float64)


@pytest.mark.parametrize("name", SMALL)
def test_the_score_is_the_published_one(name: str, tmp_path: Path) -> None:
    """In its own coordinates: −h(x, 999 t)/σ of images in [−1, 1], or h(2x − 1, log σ)/σ of images in [0, 1]."""
    config = SMALL[name]
    theirs = network(config)
    path = saved(checkpoint(theirs), tmp_path / "checkpoint.pth")
    fir = {"model": {"network": {"fir": config.fir}}}
    found = imported(path, **({} if config.fourier else {"sde": "subvp"}))
    model = model_of(found, found.weights, **fir)
    y, t = batch()
    std = model.sde.std(t)
    if config.fourier:
        sigma = 0.01 * (50 / 0.01) ** t  # of x = (y + 1)/2
        expected = theirs(y, sigma) / sigma[:, None, None, None] / 2
    else:
        expected = -theirs(y, 999 * t) / std[:, None, None, None]
    torch.testing.assert_close(model(y, t), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_a_model_of_images_around_zero_keeps_its_noise_levels(tmp_path: Path) -> None:
    theirs = network(VE)
    path = saved(checkpoint(theirs), tmp_path / "checkpoint.pth")
    found = imported(path, sde={"name": "ve", "sigma_max": 50})
    y, t = batch()
    sigma = 0.01 * (50 / 0.01) ** t
    expected = theirs(y, sigma) / sigma[:, None, None, None]
    torch.testing.assert_close(model_of(found, found.weights)(y, t), expected, rtol=1e-9, atol=1e-9)


def test_the_chain_is_told_its_step(tmp_path: Path) -> None:
    """Level k of 1000 has the published index k − 1."""
    theirs = network(VP)
    found = imported(saved(checkpoint(theirs), tmp_path / "checkpoint.pth"), sde="ddpm")
    model, (y, _) = model_of(found, found.weights), batch()
    levels = torch.tensor([1.0, 700.0], dtype=torch.float64)
    t = levels / 1000
    expected = -theirs(y, levels - 1) / model.sde.std(t)[:, None, None, None]
    torch.testing.assert_close(model(y, t), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("name", PRESETS)
def test_names_and_shapes_of_the_published_networks_tell_what_they_are(name: str) -> None:
    """Built without memory: every tensor has its one place, of its shape."""
    published, shape, _ = PRESETS[name]
    with torch.device("meta"):
        state = {key: value for key, value in ScoreSDENet(published).state_dict().items() if key != "sigmas"}
        found = infer(closed_up(state), name)
        assert found.attends == tuple(level in published.attention for level in range(len(published.mult)))
        assert found.options["fir"] == published.fir
        assert found.options["rescale"] == published.rescale
        options = {key: value for key, value in found.options.items() if key != "name"}
        ours = NCSNpp(shape, attention=(16,), **options)  # type: ignore[arg-type]
        tensors = ours.state_dict()
        places = {slot.theirs: slot.look(tensors).shape for slot in slots(ours, biggan=published.biggan)}
    assert places == {key: value.shape for key, value in state.items()}


def test_the_average_is_put_in_place_by_the_order_of_the_parameters(tmp_path: Path) -> None:
    raw, average = network(SKIPS), network(SKIPS, seed=1)
    average.all_modules[0].load_state_dict(raw.all_modules[0].state_dict())  # frequencies are not trained
    found = imported(saved(checkpoint(raw, average), tmp_path / "checkpoint.pth"))
    expected = imported(saved(checkpoint(average), tmp_path / "average.pth")).weights
    assert found.averaged is not None
    assert found.averaged.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.averaged.items())
    assert any(not torch.equal(value, found.weights[name]) for name, value in found.averaged.items())


def test_an_imported_checkpoint_is_a_run_like_any_other(tmp_path: Path) -> None:
    path, run = saved(checkpoint(network(VE).float()), tmp_path / "checkpoint_8.pth"), tmp_path / "run"
    outcome = succeed("import", path, "--shape", "3x8x8", "--out", run)
    assert "3×8×8, no classes, step 3" in outcome.out
    assert "images are taken to lie in [−1, 1] here and in [0, 1] there" in outcome.err
    stored = load_checkpoint(RunFolder(run).checkpoints()[0])
    expected = {"name": "ve", "sigma_max": 100.0, "sigma_min": 0.02, "t_min": 1e-5, "t_max": 1.0}
    assert stored.meta["config"]["sde"] == expected
    succeed("sample", run, "--solver", "em", "--steps", 3, "--count", 2)
    assert (run / "sample_em_seed0_steps3" / "samples.png").is_file()


def test_the_size_is_guessed_from_the_attention_and_said(tmp_path: Path) -> None:
    path = saved(checkpoint(network(VP).float()), tmp_path / "checkpoint.pth")
    outcome = succeed("import", path, "--set", "sde=vp", "--out", tmp_path / "run")
    assert "taken to be 32×32, where attention is at 16×16" in outcome.err
    assert "3×32×32" in outcome.out


def test_tensors_alone_are_enough(tmp_path: Path) -> None:
    path = saved(network(VE).float().state_dict(), tmp_path / "weights.pt")
    found = imported(path)
    assert found.averaged is None
    assert found.step == 0


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_a_hostile_checkpoint_is_not_executed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = saved(checkpoint(network(VP)) | {"step": Hostile(trace)}, tmp_path / "checkpoint.pth")
    torch.load(path, weights_only=False)
    assert trace.exists(), "it is hostile"
    trace.rmdir()
    outcome = invoke("import", path, "--set", "sde=vp", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "checkpoint.pth was not loaded: it names posix.mkdir" in outcome.error
    assert not trace.exists()
    assert not (tmp_path / "run").exists()


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: (content.pop("ema"), content["model"].pop(f"module.{name}"))


def put(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: (content.pop("ema"), content["model"].update({f"module.{name}": value}))


def one_block_more(content: dict[str, Any]) -> None:
    state = content["model"]
    block = {name: value for name, value in state.items() if name.startswith("module.all_modules.3.")}
    state |= {name.replace("all_modules.3", "all_modules.99"): value for name, value in block.items()}


@pytest.mark.parametrize(
    ("config", "damage", "arguments", "message"),
    [
        (VP, None, (), r"does not say its process: give --set sde=vp or sde=subvp .* sde=ddpm for one of DDPM's 1000"),
        (
            VP,
            None,
            ("sde=ve",),
            r"`sde` must be vp, subvp or ddpm for .*, whose network is told the time by its position",
        ),
        (VE, None, ("sde=vp",), r"`sde` must be ve for .*, whose network is told log σ by Fourier features, got vp"),
        (
            VE,
            None,
            ("sde.sigma_max=70",),
            r"`sde.sigma_max` must be 100 for .* images in \[0, 1\], or 50 if in \[−1, 1\]",
        ),
        (VE, without("sigmas"), (), r"does not hold its noise levels: give those for images in \[−1, 1\], twice"),
        (VP, without("all_modules.5.Conv_0.bias"), ("sde=vp",), r"lacks the tensor 'all_modules\.5\.Conv_0\.bias'"),
        (
            VP,
            put("all_modules.5.Conv_0.weight", torch.zeros(16, 9, 3, 3)),
            ("sde=vp",),
            r"tensor 'all_modules\.5\.Conv_0\.weight' of .* must have shape \(16, 8, 3, 3\)",
        ),
        (
            VP,
            without("all_modules.5.Conv_0.weight"),
            ("sde=vp",),
            r"has a residual block without a sound Conv_0.weight; fetch it again",
        ),
        (
            VE,
            put("all_modules.0.W", torch.zeros(3)),
            (),
            r"must have half as many Fourier frequencies as its first layer has columns, 16, got \(3,\)",
        ),
        (VP, put("all_modules.5.more", torch.zeros(1)), ("sde=vp",), r"has the tensor 'all_modules\.5\.more'"),
        (
            VP,
            put("all_modules.99.more", torch.zeros(1)),
            ("sde=vp",),
            r"has an entry of more, which is no part of DDPM",
        ),
        (
            VP,
            put("refine1.weight", torch.zeros(1)),
            ("sde=vp",),
            r"got 'refine1.weight'; its NCSN and NCSNv2 cannot be",
        ),
        (VP, without("all_modules.0.weight"), ("sde=vp",), r"has an entry of bias, which is no part of DDPM"),
        (
            VP,
            one_block_more,
            ("sde=vp",),
            r"must have n residual blocks a level down and n \+ 1 up to be imported",
        ),
        (VP, put("all_modules.2.weight", 3), ("sde=vp",), r"checkpoint.pth must hold tensors by name, got dict"),
        (
            VP,
            lambda content: content["ema"]["shadow_params"].pop(),
            ("sde=vp",),
            r"`ema.shadow_params` of .* must list (\d+) tensors of the shapes of the network's, .* got \d+ others",
        ),
        (VP, lambda content: content["ema"].clear(), ("sde=vp",), r"`ema.shadow_params` of .*, got NoneType"),
        (
            replace(VP, attention=()),
            None,
            ("sde=vp",),
            r"has attention at 0 levels.*; give it by --shape 3xHEIGHTxWIDTH",
        ),
        (
            replace(SMALL["ddpm"], nf=64),
            None,
            ("sde=vp",),
            r"must have at least 128 channels everywhere to be imported, .* got 64",
        ),
        (
            VP,
            None,
            ("sde=vp", "model.network={name: unet}"),
            r"`model.network.name` must be ncsnpp for a model of score_sde",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    config: Published,
    damage: Callable[[dict[str, Any]], object] | None,
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
) -> None:
    content = checkpoint(network(config).float())
    if damage:
        damage(content)
    path = saved(content, tmp_path / "checkpoint.pth")
    options = [word for argument in arguments for word in ("--set", argument)]
    outcome = invoke("import", path, *options, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert re.search(message, outcome.error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("1x8x8", "`--shape` must be 3xHEIGHTxWIDTH for .*, got 1x8x8"),
        ("3x1x8", "`--shape` must be large enough for the 2 levels of .* to differ in size, got 3x1x8"),
    ],
)
def test_a_shape_that_does_not_fit_is_one_line(shape: str, message: str, tmp_path: Path) -> None:
    path = saved(checkpoint(network(VP).float()), tmp_path / "checkpoint.pth")
    outcome = invoke("import", path, "--shape", shape, "--set", "sde=vp", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert re.search(message, outcome.error)


def test_a_list_is_no_checkpoint(tmp_path: Path) -> None:
    outcome = invoke("import", saved([1], tmp_path / "list.pth"), "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "must hold a checkpoint by name, got list" in outcome.error
