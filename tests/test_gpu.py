"""What must also hold on a CUDA device; `python -m pytest -m gpu` runs it where there is one."""

import dataclasses
from pathlib import Path

import pytest
import torch

from sde_diffusion.build import Config, ModelConfig, build_trainer, load_trained, read_config
from sde_diffusion.config import Recipe
from sde_diffusion.guidance import ClassifierFree
from sde_diffusion.likelihood import ExactTrace, Hutchinson, log_likelihood
from sde_diffusion.networks import UNet
from sde_diffusion.sampling import sample
from sde_diffusion.solvers import Ancestral, EulerMaruyama, PerSampleODE, SeededNoise, Solver
from sde_diffusion.training import RunFolder, TrainingConfig, load_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = torch.device("cuda")
TINY_UNET = "{name: unet, channels: 8, multipliers: [1, 2], blocks: 1, attention: [4]}"
TINY = ModelConfig(network=Recipe(UNet, {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_train_save_and_use(tmp_path: Path, precision: str) -> None:
    training = TrainingConfig(steps=4, batch=16, log_every=2, validate_every=2, sample_every=4)
    config = Config(model=TINY, training=dataclasses.replace(training, precision=precision))
    folder = RunFolder(tmp_path / "run")
    build_trainer(config, folder, DEVICE).run()
    newest = folder.latest()
    assert newest is not None
    trained = load_trained(load_checkpoint(newest, DEVICE), config, DEVICE)
    solvers: list[Solver] = [EulerMaruyama(steps=5), Ancestral(steps=5), PerSampleODE(rtol=1e-2, atol=1e-2)]
    for solver in solvers:
        drawn = sample(trained.model, config.sde, solver, (4, 1, 8, 8), noise=SeededNoise(0, device=DEVICE))
        assert drawn.x.device.type == "cuda"
        assert drawn.x.isfinite().all()


CHAIN = ["sde=ddpm", "sde.steps=20", "model.conditioning=step"]
SETTINGS = {
    "a learned variance": [
        *CHAIN,
        "model.learned_variance=true",
        "loss={objective: vlb, time_sampler: loss_second_moment}",
        "training.steps=300",
        "sampling.solver={name: ancestral, variance: learned, grid: levels, steps: 9}",
    ],
    "DDPM": [*CHAIN, "loss.time_sampler=discrete", "sampling.solver={name: ddim, grid: levels, steps: 9}"],
    "labels": ["model.conditional=true"],
    "learned dequantisation": ["training.dequantise=flow", "loss={weighting: likelihood, time_sampler: importance}"],
    "a learned weighting": ["loss={weighting: {name: uncertainty, base: edm}, time_sampler: log_normal}"],
    "NCSN++": ["model.network={name: ncsnpp, channels: 8, multipliers: [1, 2], blocks: 1, attention: [4]}"],
    "DiT": ["model.network={name: dit, width: 32, depth: 1, head_channels: 16}"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_kind_of_model_trains_and_samples(tmp_path: Path, setting: str) -> None:
    small = ["training.batch=16", "training.steps=4", "training.sample_every=0", "training.validate_every=2"]
    tiny = [] if "network" in SETTINGS[setting][0] else [f"model.network={TINY_UNET}"]
    config = read_config(None, [*small, *tiny, "sampling.solver={name: em, steps: 5}", *SETTINGS[setting]])
    folder = RunFolder(tmp_path / "run")
    build_trainer(config, folder, DEVICE).run()
    newest = folder.latest()
    assert newest is not None
    trained = load_trained(load_checkpoint(newest, DEVICE), config, DEVICE)
    guided = ClassifierFree(scale=2.0).apply(
        trained.model.bind,
        torch.arange(4, device=DEVICE) if config.model.conditional else torch.full((4,), -1, device=DEVICE),
        config.sde,
        conditional=config.model.conditional,
    )
    drawn = sample(guided, config.sde, config.sampling.solver, (4, 1, 8, 8), noise=SeededNoise(0, device=DEVICE))
    assert drawn.x.device.type == DEVICE.type
    assert drawn.x.isfinite().all()


@pytest.mark.parametrize("divergence", [Hutchinson(probes=2), ExactTrace()])
def test_likelihoods_are_those_of_the_cpu(tmp_path: Path, divergence: Hutchinson | ExactTrace) -> None:
    config = Config(model=TINY, training=TrainingConfig(steps=1, sample_every=0, validate_every=0))
    folder = RunFolder(tmp_path / "run")
    build_trainer(config, folder, torch.device("cpu")).run()
    newest = folder.latest()
    assert newest is not None
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = []
    for device in (torch.device("cpu"), DEVICE):
        model = load_trained(load_checkpoint(newest, device), config, device).model
        found.append(
            log_likelihood(model, config.sde, x.to(device), divergence=divergence, ode=PerSampleODE()).log_prob
        )
    # each solve is within its tolerance, 1e-5 relative to each of some hundred evaluations
    torch.testing.assert_close(found[1].cpu(), found[0], rtol=2e-3, atol=2e-3)
