"""What must also hold on a CUDA device; `python -m pytest -m gpu` runs it where there is one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_diffusion.config.build import Config, ModelConfig, build_trainer, load_trained, read_config
from sde_diffusion.config.parse import Recipe
from sde_diffusion.data import dataset as base
from sde_diffusion.data import training_batches
from sde_diffusion.data.sources.arrays import Arrays
from sde_diffusion.guidance import ClassifierFree
from sde_diffusion.likelihood import ExactTrace, Hutchinson, log_likelihood
from sde_diffusion.model import ScoreModel
from sde_diffusion.networks import UNet
from sde_diffusion.runtime.cuda_graphs import Graphed
from sde_diffusion.runtime.performance import PerfConfig
from sde_diffusion.sampling import sample
from sde_diffusion.sde import VPSDE
from sde_diffusion.solvers import (
    Ancestral,
    DPMpp2M,
    EulerMaruyama,
    PerSampleODE,
    ReverseProcess,
    SeededNoise,
    Solver,
)
from sde_diffusion.training import RunFolder, TrainingConfig, load_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # what another torch or its compiler warns of is no error
]
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


@pytest.mark.parametrize("label", [None, 1])
def test_recorded_networks_sample_what_eager_ones_do(tmp_path: Path, label: int | None) -> None:
    """The same kernels in the same order; cuDNN may choose others under recording, so up to rounding."""
    model = dataclasses.replace(TINY, conditional=label is not None)
    config = Config(model=model, training=TrainingConfig(steps=1, sample_every=0, validate_every=0))
    folder = RunFolder(tmp_path / "run")
    build_trainer(config, folder, DEVICE).run()
    newest = folder.latest()
    assert newest is not None
    found = []
    for choice in ("always", "never"):
        chosen = dataclasses.replace(config, perf=PerfConfig(cuda_graphs=choice))
        score_fn = load_trained(load_checkpoint(newest, DEVICE), chosen, DEVICE).model.bind(label)
        for solver in (EulerMaruyama(steps=8, eta=0.0), PerSampleODE(rtol=1e-3, atol=1e-3), EulerMaruyama(steps=8)):
            noise = SeededNoise(0, device=DEVICE)
            found.append(sample(score_fn, config.sde, solver, (4, 1, 8, 8), noise=noise).x)
    for recorded, eager in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(recorded, eager, rtol=1e-2, atol=1e-2)


def test_a_recorded_network_replays_one_graph() -> None:
    network = UNet((1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,)).to(DEVICE).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    graphed = Graphed(network)
    with torch.no_grad():
        for seed in range(6):
            draws = torch.Generator(DEVICE).manual_seed(seed)
            x, c_noise = (torch.randn(*shape, generator=draws, device=DEVICE) for shape in ((4, 1, 8, 8), (4,)))
            torch.testing.assert_close(graphed(x, c_noise).clone(), network(x, c_noise), rtol=1e-3, atol=1e-3)
    assert len(graphed._recordings) == 1, "the recording failed"


def test_the_loop_of_a_grid_solver_does_not_wait_for_the_device() -> None:
    """Under CUDA's own watch for synchronisation, which makes of each an error, no step stops."""
    sde, solver = VPSDE(), DPMpp2M(steps=6)
    model = ScoreModel(UNet((1, 8, 8), channels=8, multipliers=(1, 2), blocks=1).to(DEVICE).eval(), sde)
    x, noise = torch.randn(4, 1, 8, 8, device=DEVICE), SeededNoise(0, device=DEVICE)
    noise.prior((4, 1, 8, 8))
    with torch.no_grad():
        for chosen in (solver, EulerMaruyama(steps=6)):
            plan, state, y = chosen.plan(sde, chosen.grid(sde, 1.0, 0.1, 6)), None, x
            process = ReverseProcess(sde, model, noise=noise)
            process = process.along([t for row in plan for t in (row.t, row.t_next)], x)
            chosen.update(process, x, plan[0], None)  # what is set up once may wait
            torch.cuda.set_sync_debug_mode("error")
            try:
                for row in plan:
                    y, state = chosen.update(process, y, row, state)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert y.isfinite().all()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_data_reach_the_device_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Streamed and held on the device they are the same batches, and no copy, flip or draw waits for the device."""
    values = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=values, labels=np.arange(40) % 3)
    held = Arrays(file=str(tmp_path / "a.npz")).load("train")
    monkeypatch.setattr(base, "MEMORY_LIMIT", 0)
    stream = Arrays(file=str(tmp_path / "a.npz")).load("train")
    assert not stream.in_memory
    batches = [
        training_batches(data, batch=16, seed=0, device=DEVICE, flip=True, workers=workers) for data in (held, stream)
    ]
    for step in range(6):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first makes what stays
        try:
            a, b = (next(rest) for rest in batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert a.x.device.type == b.x.device.type == "cuda"
        assert torch.equal(a.x, b.x)
        assert a.label is not None
        assert b.label is not None
        assert torch.equal(a.label, b.label)


PERFS = ["{}", "{memory_format: contiguous}", "{compile: always}", "{memory_format: contiguous, compile: always}"]


@pytest.mark.parametrize("perf", PERFS)
def test_every_choice_of_perf_trains_alike(tmp_path: Path, perf: str) -> None:
    """The same losses as the plain network, step by step, within what TF32 in convolutions rounds: 2^-11 relative."""
    losses = []
    for number, choice in enumerate((perf, "{memory_format: contiguous, compile: never}")):
        more = ["training.precision=float32", "training.sample_every=0", "training.validate_every=0"]
        settings = [f"model.network={TINY_UNET}", "training.steps=3", "training.log_every=1", *more, f"perf={choice}"]
        folder = RunFolder(tmp_path / str(number))
        trainer = build_trainer(read_config(None, settings), folder, DEVICE)
        trainer.run()
        compiled = trainer.model.net._compiled_call_impl
        assert compiled is None or not compiled.failed
        rows = (json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in rows])
    assert len(losses[0]) == 3
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=5e-3, atol=5e-3)


def test_a_training_step_waits_for_nothing(tmp_path: Path) -> None:
    """No operation of a step stops until the device is done."""
    settings = [f"model.network={TINY_UNET}", "training.steps=9", "training.batch=16", "perf.compile=never"]
    trainer = build_trainer(read_config(None, settings), RunFolder(tmp_path / "run"), DEVICE)
    batches = training_batches(trainer.train, batch=16, seed=0, start=0, device=DEVICE)
    for _ in range(3):  # the first steps make the optimizer's state and what is cached
        trainer.train_step(next(batches))
        trainer.step += 1
    batch = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_auto_on_cuda_is_channels_last_and_bfloat16(tmp_path: Path) -> None:
    settings = [f"model.network={TINY_UNET}", "training.steps=2"]
    trainer = build_trainer(read_config(None, settings), RunFolder(tmp_path / "run"), DEVICE)
    weight = trainer.model.net.get_submodule("middle.0.block.conv1").weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert trainer.step_loss.rough == (torch.cuda.get_device_capability(DEVICE) >= (8, 0))
