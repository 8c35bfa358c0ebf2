"""`export`: diffusers loads what is written and computes the same; what it cannot say is named."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from sde_diffusion.config.build import build_model, plain_config, read_config
from sde_diffusion.data.sources.digits import Digits
from sde_diffusion.training import Checkpoint, RunFolder, load_checkpoint
from tests.commands.running import invoke, succeed
from tests.exchange.models import DDPMPipeline, DDPMScheduler, UNet2DModel, random_model, save_pipeline
from tests.exchange.test_diffusers import CASES, inputs, trained

PLAIN = (
    *("sde.name=ddpm", "model.conditioning=step", "model.scale_input=false", "sampling.solver.name=ancestral"),
    "model.network={name: unet, channels: 8, multipliers: [1, 2], blocks: 1, groups: 2, embedding_scale: 1}",
)
"""What a run must set so that diffusers can hold it."""


def run_of(folder: Path, *assignments: str) -> Path:
    """A run on the digits whose weights are all random."""
    config = read_config(None, (*PLAIN, *assignments))
    model = build_model(config, Digits.spec, torch.device("cpu"))
    draws = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    tensors = {
        f"{kind}.{name}": value.clone() for kind in ("model", "ema") for name, value in model.state_dict().items()
    }
    meta = {"config": plain_config(config), "data": Digits.spec.to_dict(), "step": 7}
    RunFolder(folder).save(Checkpoint(tensors, meta), keep=1)
    return folder


def exported(run: Path, folder: Path, *more: object) -> UNet2DModel:
    """What diffusers makes of a run."""
    succeed("export", run, "--format", "diffusers", "--out", folder, *more)
    return UNet2DModel.from_pretrained(folder / "unet", local_files_only=True).eval().requires_grad_(False)


@pytest.mark.parametrize("case", [case for case in CASES if case != "learned variance"])
def test_import_export_import_is_exact_and_diffusers_computes_the_same(case: str, tmp_path: Path) -> None:
    """In float32; the halves of the time embedding change places, and with them the order of a sum."""
    model = random_model(**CASES[case])
    save_pipeline(tmp_path / "pipeline", model)
    succeed("import", tmp_path / "pipeline", "--out", tmp_path / "first")
    again = exported(tmp_path / "first", tmp_path / "exported")
    x, t, label = inputs(model)
    expected = model(x, t, class_labels=label).sample
    torch.testing.assert_close(again(x, t, class_labels=label).sample, expected, rtol=1e-5, atol=1e-5)
    succeed("import", tmp_path / "exported", "--out", tmp_path / "second")
    first, second = (load_checkpoint(RunFolder(tmp_path / name).checkpoints()[0]) for name in ("first", "second"))
    assert first.meta == second.meta
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())


@pytest.mark.parametrize("more", [(), ("model.conditional=true",), ("model.network.time=scale_shift",)])
def test_diffusers_computes_what_a_run_of_ours_does(more: tuple[str, ...], tmp_path: Path) -> None:
    """At every level, the class none being the last one there."""
    run = run_of(tmp_path / "run", *more)
    ours = trained(run).model
    theirs = exported(run, tmp_path / "exported")
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = [None] if not ours.net.classes else [torch.tensor([0, 3, 9]), torch.tensor([-1, 5, -1])]
    for label in labels:
        named = None if label is None else label.where(label >= 0, torch.tensor(10))
        for index in (0, 40, 999):
            t = torch.tensor((index + 1) / 1000, dtype=torch.float64)
            a, std = ours.sde.mean_coef(t).float(), ours.sde.std(t).float()
            v = theirs(x, index, class_labels=named).sample
            assert v.std() > 0.1
            torch.testing.assert_close(-std * ours(x, t, label), a * v + std * x, rtol=1e-5, atol=1e-5)


def test_diffusers_samples_an_exported_pipeline(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "model.prediction=eps", "sde.steps=12")
    exported(run, tmp_path / "exported")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = DDPMPipeline.from_pretrained(tmp_path / "exported", local_files_only=True)
    assert isinstance(pipeline.scheduler, DDPMScheduler)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=12, output_type="np").images
    assert images.shape == (2, 8, 8, 1)
    exported(run, tmp_path / "ddim", "--set", "sampling.solver.name=ddim")
    assert json.loads((tmp_path / "ddim" / "model_index.json").read_text())["_class_name"] == "DDIMPipeline"


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (
            "{name: linear, first: 0.001, last: 0.03}",
            {"beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.03},
        ),
        ("{name: quadratic}", {"beta_schedule": "scaled_linear"}),
        ("{name: cosine}", {"beta_schedule": "squaredcos_cap_v2"}),
        ("{name: sigmoid}", {"beta_schedule": "sigmoid"}),
        ("{name: cosine, cap: 0.9}", {"num_train_timesteps": 30}),
    ],
)
def test_the_scheduler_has_the_rates_of_the_chain(beta: str, expected: dict[str, Any], tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", f"sde.beta={beta}", "sde.steps=30")
    exported(run, tmp_path / "exported")
    raw = json.loads((tmp_path / "exported" / "scheduler" / "scheduler_config.json").read_text())
    assert raw | expected == raw
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "exported" / "scheduler", local_files_only=True)
    sde = trained(run).model.sde
    levels = torch.arange(1, 31, dtype=torch.float64) / 30
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), sde.mean_coef(levels) ** 2, rtol=1e-5, atol=1e-7)
    assert ("trained_betas" in raw) == ("cap" in beta)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ("clip=true", {"clip_sample": True, "_class_name": "DDPMScheduler", "variance_type": "fixed_small"}),
        ("solver={name: ancestral, variance: large}", {"clip_sample": False, "variance_type": "fixed_large"}),
        ("solver={name: ddim}", {"_class_name": "DDIMScheduler", "set_alpha_to_one": True}),
        ("project={name: clip, low: -2.0, high: 2.0}", {"clip_sample": True, "clip_sample_range": 2.0}),
        ("project={name: dynamic_threshold, quantile: 0.9}", {"thresholding": True, "dynamic_thresholding_ratio": 0.9}),
    ],
)
def test_the_scheduler_samples_as_the_config_does(sampling: str, expected: dict[str, Any], tmp_path: Path) -> None:
    """And an import of it has the same section again, but for the steps, which are no matter of a scheduler."""
    run = run_of(tmp_path / "run", f"sampling.{sampling}")
    exported(run, tmp_path / "exported")
    raw = json.loads((tmp_path / "exported" / "scheduler" / "scheduler_config.json").read_text())
    assert raw | expected == raw
    succeed("import", tmp_path / "exported", "--data", "digits", "--out", tmp_path / "again")
    before, after = (trained(folder).config.sampling for folder in (run, tmp_path / "again"))
    assert (before.projection, before.denoise) == (after.projection, after.denoise)
    assert type(before.solver) is type(after.solver)
    assert getattr(before.solver, "variance", None) == getattr(after.solver, "variance", None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["sde.name=vp", "model.conditioning=time"], "`sde.name` must be ddpm, a chain of levels, to be exported"),
        (["model.conditioning=time"], "`model.conditioning` must be step to be exported to diffusers, got time"),
        (["model.scale_input=true"], r"`model.scale_input` must be false, or model.sigma_data be 1, to be exported"),
        (["sampling.project={name: clip, low: 0, high: 1}"], r"`sampling.project.low` must be −`high` = -1.0 to be"),
        (
            ["sampling.project={name: dynamic_threshold, bound: 2}"],
            r"`sampling.project.bound` must be 1 to be exported",
        ),
        (["model.prediction=edm"], "`model.prediction` must be one of eps, x0, v to be exported to diffusers, got edm"),
        (["model.network=mlp"], "`model.network` must be unet to be exported to diffusers, got mlp"),
        (["model.network.groups=32"], "`model.network.groups` must be a number that all widths have to be exported"),
        (["model.network.embedding=fourier"], "`model.network.embedding` must be sinusoidal to be exported"),
        (["model.network.fourier=[3]"], r"`model.network.fourier` must be \[\] to be exported to diffusers, got \[3\]"),
        (["model.network.embedding_scale=2"], "`model.network.embedding_scale` must be 1 to be exported"),
        (["model.network.order=conv_first"], "`model.network.order` must be norm_first to be exported"),
        (["model.network.middle=bare_attention"], "`model.network.middle` must be attention or none where `time` is"),
        (
            ["model.network.attention=[]", "model.network.linear_attention=[8]"],
            r"`model.network.linear_attention` must be at no level .*, got \[8\]",
        ),
        (["model.network.multipliers=[2, 2]"], r"`model.network.multipliers` must begin with 1 .*, got \[2, 2\]"),
        (["model.network.multipliers=[1, 1, 1, 1, 1]"], "`data.name` must hold images whose sides 16 divides to be"),
    ],
)
def test_what_diffusers_cannot_express_names_our_setting(changed: list[str], message: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", *changed)
    outcome = invoke("export", run, "--out", tmp_path / "exported")
    assert outcome.code == 2
    assert re.search(message, outcome.err.splitlines()[-1])
    assert not list((tmp_path / "exported").iterdir())


def test_other_bad_input_is_one_line(tmp_path: Path) -> None:
    outcome = invoke("export", tmp_path, "--format", "difusers")
    assert (outcome.code, "unknown format 'difusers'; did you mean 'diffusers'" in outcome.error) == (2, True)
    assert "there is no checkpoint in" in invoke("export", tmp_path).error
