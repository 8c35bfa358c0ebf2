"""Imported models against diffusers itself: the same numbers from the same weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.config.build import Trained, load_trained, read_config
from sde_diffusion.sampling import sample
from sde_diffusion.solvers import NoiseSource
from sde_diffusion.training import RunFolder, load_checkpoint
from tests.commands.running import succeed
from tests.exchange.models import (
    DDIMScheduler,
    DDPMScheduler,
    UNet2DModel,
    random_model,
    save_pipeline,
    scheduling_ddpm,
)


def imported(model: UNet2DModel, folder: Path) -> nn.Module:
    """The network of ours that the saved model becomes."""
    model.save_pretrained(folder / "model")
    succeed("import", folder / "model", "--out", folder / "run")
    checkpoint = load_checkpoint(RunFolder(folder / "run").checkpoints()[0])
    config = read_config(None, (), checkpoint.meta["config"])
    return load_trained(checkpoint, config, torch.device("cpu")).model.net


CIFAR10: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (32, 64, 64, 64),  # published: 128, 256, 256, 256
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "attention_head_dim": None,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
"""The layout of google/ddpm-cifar10-32, a quarter as wide."""

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "ddpm-cifar10-32": CIFAR10,
    "classes and heads": {"num_class_embeds": 3, "attention_head_dim": 16, "layers_per_block": 2},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "bare middle": {"resnet_time_scale_shift": "scale_shift", "norm_eps": 1e-4, "sample_size": (8, 12)},
    "no middle": {"add_attention": False, "attention_head_dim": None, "downsample_padding": 0},
    "learned variance": {"out_channels": 2, "freq_shift": 1, "act_fn": "swish"},
    "narrow groups": {"norm_num_groups": 16, "block_out_channels": (16, 48)},
}


def inputs(model: UNet2DModel, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, timesteps and labels."""
    config, draws = model.config, torch.Generator().manual_seed(1)
    size = config.sample_size
    sides = (size, size) if isinstance(size, int) else size
    x = torch.randn(4, config.in_channels, *sides, generator=draws, dtype=dtype)
    label = None if config.num_class_embeds is None else torch.tensor([0, 2, 1, 2])
    return x, torch.tensor([0, 7, 400, 999]), label


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_diffusers(case: str, tmp_path: Path) -> None:
    """In float32, where the order of the sums differs: some hundred roundings of 6e-8 of numbers of about 1."""
    model = random_model(**CASES[case])
    net = imported(model, tmp_path)
    x, t, label = inputs(model)
    expected = model(x, t, class_labels=label).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(net(x, t.float(), label), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_in_float64_they_are_the_same_number(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the phases of the time embedding, which diffusers rounds to float32: here it is given them unrounded."""
    model = random_model(**CASES[case])
    net = imported(model, tmp_path).double()
    waves = net.get_submodule("condition.embedding")
    model = model.double()
    swapped = model.config.flip_sin_to_cos

    def embed(t: Tensor) -> Tensor:
        sines = waves(t.double())
        return sines.roll(sines.shape[1] // 2, 1) if swapped else sines

    monkeypatch.setattr(model.time_proj, "forward", embed)
    x, t, label = inputs(model, torch.float64)
    expected = model(x, t, class_labels=label).sample
    torch.testing.assert_close(net(x, t.double(), label), expected, rtol=1e-10, atol=1e-10)


def test_published_layouts_have_our_counts() -> None:
    """google/ddpm-cifar10-32 and google/ddpm-celebahq-256, as diffusers builds them."""
    with torch.device("meta"):
        small = UNet2DModel(**CIFAR10 | {"block_out_channels": (128, 256, 256, 256)})
        down, up = ["DownBlock2D"] * 6, ["UpBlock2D"] * 6
        down[4], up[1] = "AttnDownBlock2D", "AttnUpBlock2D"
        widths = (128, 128, 256, 256, 512, 512)
        large = UNet2DModel(**CIFAR10 | {"block_out_channels": widths, "down_block_types": down, "up_block_types": up})
    assert sum(p.numel() for p in small.parameters()) == 35_746_307
    assert sum(p.numel() for p in large.parameters()) == 113_673_219


def test_names_of_old_files_are_known(tmp_path: Path) -> None:
    """Before diffusers 0.15 attention had other names, and the pipeline's files lay beside each other."""
    model = random_model()
    net = imported(model, tmp_path)
    folder = tmp_path / "model"
    old = dict(model.state_dict())
    for new, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        old = {key.replace(f".{new}.", f".{name}."): value for key, value in old.items()}
    assert old.keys() != model.state_dict().keys()
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(old, folder / "diffusion_pytorch_model.bin")
    (folder / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}')
    succeed("import", folder, "--out", tmp_path / "old")
    tensors = load_checkpoint(RunFolder(tmp_path / "old").checkpoints()[0]).group("model")
    assert all(torch.equal(value, tensors[f"net.{name}"]) for name, value in net.state_dict().items())


# --- the whole: process, score, sampling, and back


def trained(run: Path, *assignments: str) -> Trained:
    """The model of a run with one checkpoint."""
    checkpoint = load_checkpoint(RunFolder(run).checkpoints()[0])
    return load_trained(checkpoint, read_config(None, assignments, checkpoint.meta["config"]), torch.device("cpu"))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_the_score_is_minus_eps_over_std(beta_schedule: str, prediction_type: str, tmp_path: Path) -> None:
    """At every tenth level, with ε of what the model predicts, which rounds to float32 before it is divided by std."""
    model = random_model(freq_shift=1)
    options = {"num_train_timesteps": 100, "beta_schedule": beta_schedule, "prediction_type": prediction_type}
    save_pipeline(tmp_path / "pipeline", model, **options)
    succeed("import", tmp_path / "pipeline", "--out", tmp_path / "run")
    score_model = trained(tmp_path / "run").model
    alphas = (1 - DDPMScheduler(**options).betas.double()).cumprod(0)
    x, *_ = inputs(model)
    for index in range(0, 100, 10):
        out, a, std = model(x, index).sample, alphas[index].sqrt().float(), (1 - alphas[index]).sqrt().float()
        eps = {"epsilon": out, "sample": (x - a * out) / std, "v_prediction": a * out + std * x}[prediction_type]
        t = torch.tensor((index + 1) / 100, dtype=torch.float64)
        found = -score_model(x, t) * score_model.sde.std(t).float()
        assert (found - eps).norm() < 1e-5 * (eps.norm() + (out.norm() + x.norm()) / std)


@dataclass
class Recorded(NoiseSource):
    """Noise drawn beforehand, one tensor a step, for both packages."""

    draws: Tensor
    used: int = 0

    def prior(self, shape: tuple[int, ...]) -> Tensor:
        return self.draws[0]

    def __call__(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        self.used += 1
        return self.draws[self.used]


def both_ways(tmp_path: Path, scheduler: Any, steps: int, monkeypatch: pytest.MonkeyPatch, **model: Any) -> None:
    """Sample with diffusers' own loop, and with the imported model and the solver that the import chose."""
    net = random_model(freq_shift=1, **model)
    net.save_pretrained(tmp_path / "pipeline" / "unet")
    scheduler.save_pretrained(tmp_path / "pipeline" / "scheduler")
    succeed("import", tmp_path / "pipeline", "--out", tmp_path / "run")
    ours = trained(tmp_path / "run", f"sampling.solver.steps={steps - 1}")

    grid = ours.config.sampling.solver.grid(ours.model.sde, 1.0, ours.model.sde.t_min, steps - 1)
    scheduler.timesteps = (grid * ours.model.sde.levels - 1).round().long()
    scheduler.num_inference_steps, scheduler.custom_timesteps = steps, True
    draws = torch.randn(steps, 3, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    fresh = iter(draws[1:])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **options: next(fresh))
    extra = {"use_clipped_model_output": True} if isinstance(scheduler, DDIMScheduler) else {}
    x = draws[0]
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample, t, x, **extra).prev_sample

    options = ours.config.sampling
    found = sample(
        ours.model,
        ours.model.sde,
        options.solver,
        tuple(x.shape),
        noise=Recorded(draws),
        denoise=options.denoise,
        project=options.projection,
    )
    assert found.nfe == steps
    assert x.std() > 0.1
    assert (found.x - x).norm() < 1e-4 * x.norm()


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize(("levels", "steps"), [(12, 12), (1000, 8)])
def test_ancestral_sampling_is_that_of_ddpm(
    variance_type: str, levels: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = {"out_channels": 2} if variance_type == "learned_range" else {}
    scheduler = DDPMScheduler(num_train_timesteps=levels, variance_type=variance_type)
    both_ways(tmp_path, scheduler, steps, monkeypatch, **learned)


@pytest.mark.parametrize("limits", [{"sample_max_value": 1e4, "dynamic_thresholding_ratio": 0.8}, {}])
def test_thresholding_is_that_of_ddpm(limits: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamic; or with the default limit of 1, which makes a clipping of it."""
    both_ways(tmp_path, DDPMScheduler(num_train_timesteps=12, thresholding=True, **limits), 12, monkeypatch)


@pytest.mark.parametrize("clip_sample", [True, False])
def test_ddim_is_that_of_ddim(clip_sample: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where x̂0 is clipped ε̂ follows from it, as an option of diffusers has it."""
    scheduler = DDIMScheduler(num_train_timesteps=40, clip_sample=clip_sample, beta_schedule="squaredcos_cap_v2")
    both_ways(tmp_path, scheduler, 40, monkeypatch)
