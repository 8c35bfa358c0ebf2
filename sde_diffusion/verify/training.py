"""Training: averages, rates, the order of the data, checkpoints, and a run that resumes bit for bit."""

import itertools
import math
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from sde_diffusion.config.build import build_trainer, read_config
from sde_diffusion.config.parse import Raw
from sde_diffusion.data import DataSpec, TensorDataset, sweep, training_batches
from sde_diffusion.networks import NETWORKS
from sde_diffusion.training import EMA, Checkpoint, RunFolder, Trainer, TrainingConfig, load_checkpoint, save_checkpoint
from sde_diffusion.training.power_profile import Profile, exponent, synthesise
from sde_diffusion.verify.check import Check, Measured, Setting, worst

TINY: Raw = {
    "data": {"name": "two_moons", "train": 50, "test": 20},
    "model": {"network": {"name": "mlp", "width": 8, "depth": 1}, "sigma_data": 1.0},
    "training": {"steps": 6, "batch": 16, "warmup": 3, "learning_rate": 0.01, "ema_decay": 0.5},
}
SMALL: dict[str, Raw] = {
    "unet": {"name": "unet", "channels": 4, "multipliers": [1, 2], "blocks": 1},
    "ddpmpp": {"name": "ddpmpp", "channels": 4, "multipliers": [1, 2], "blocks": 1},
    "ncsnpp": {"name": "ncsnpp", "channels": 4, "multipliers": [1, 2], "blocks": 1},
    "dit": {"name": "dit", "width": 16, "depth": 1},
    "mlp": {"name": "mlp", "width": 16, "depth": 1},
}
"""Networks that take a second; a row that is not here is built with its defaults."""


def checks(setting: Setting) -> Iterator[Check]:
    """All checks of this area."""
    yield Check("EMA against its closed form", "decay 0.5", partial(_ema, setting))
    yield Check("EMA against its closed form", "lengths 0.05 and 0.1", partial(_profiles, setting))
    yield Check("an average of another length, from snapshots, within its bound", "0.15 at step 60", _synthesis)
    for decay in ("constant", "cosine"):
        yield Check("learning rate", decay, partial(_learning_rate, decay))
    yield Check("each epoch sees each example once", "7 examples in batches of 3", _epochs)
    yield Check("batch k follows from (seed, k)", "uint8, flipped, dequantised", partial(_batches, setting))
    yield Check("a sweep's example i in any batch", "uint8, dequantised", partial(_sweep, setting))
    yield Check("checkpoint, written and read", "bits", partial(_checkpoint, setting))
    yield Check("a training step updates the average", "first step", partial(_average, setting))
    yield Check("gradients are clipped", "to a norm of 1e-12", partial(_clipped, setting))
    yield Check("validation moves with the weights alone", "two steps", partial(_validation, setting))
    yield Check("a run resumes bit for bit", "2 + 2 steps of 4", partial(_resume, setting))
    for name in NETWORKS:
        yield Check("label −1 is no label, and labels matter", name, partial(_labels, setting, name))
        yield Check("a gradient step lowers the loss", name, partial(_descent, setting, name))


def _ema(setting: Setting) -> Measured:
    """θ̄ = d θ̄ + (1 − d) θ with d = min(decay, (1 + k)/(10 + k)), of weights that are the step number."""
    source = torch.nn.Linear(1, 1, bias=False).to(setting.device, setting.dtype)
    torch.nn.init.constant_(source.weight, 1.0)
    ema, expected = EMA(source, 0.5), 1.0
    for k in range(12):
        torch.nn.init.constant_(source.weight, k + 2.0)
        ema.update(source, k)
        decay = min(0.5, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * (k + 2)
    return Measured(worst(ema.model.weight, expected), 256 * setting.eps)


def _profiles(setting: Setting) -> Measured:
    """θ̂(t) = Σ_τ (τ^(γ+1) − (τ − 1)^(γ+1))/t^(γ+1) θ(τ), with the published γ of 0.05 and 0.1."""
    source = torch.nn.Linear(1, 1, bias=False).to(setting.device, setting.dtype)
    ema = EMA(source, 0.5, profiles=(0.05, 0.1))
    for k in range(12):
        torch.nn.init.constant_(source.weight, math.sin(k))
        ema.update(source, k)
    off = 0.0
    for found, gamma in zip(ema.profiles().values(), (16.9721986, 6.9372039), strict=True):
        expected = sum(
            (((k + 1) ** (gamma + 1) - k ** (gamma + 1)) / 12 ** (gamma + 1)) * math.sin(k) for k in range(12)
        )
        off = max(off, worst(found, expected))
    return Measured(off, 256 * setting.eps + 1e-8)


def _synthesis() -> Measured:
    """The combination's weights of each step against those of the average itself: at most ‖Δ‖, and that is small."""
    times, length, gamma = range(6, 61, 6), 0.15, exponent(0.15)

    def cells(profile: Profile) -> torch.Tensor:
        edges = (torch.arange(61, dtype=torch.float64) / profile.time).clamp(max=1)
        return (edges ** (exponent(profile.length) + 1)).diff()

    profiles = [Profile(length, time) for time in times for length in (0.05, 0.1)]
    found = synthesise(profiles, Profile(length, 60))
    off = -cells(Profile(length, 60))
    for c, profile in zip(found.coefficients, profiles, strict=True):
        off += c * cells(profile)
    bound = found.error * (gamma + 1) / math.sqrt((2 * gamma + 1) * 60)
    return Measured(float(off.norm()) / bound + float(found.error > 0.03), 1.0)


def _learning_rate(decay: str) -> Measured:
    """k/warmup of the full rate in the k-th step, then all of it, times the cosine; step 0 is not idle."""
    config = TrainingConfig(steps=10, learning_rate=2.0, warmup=4, decay=decay)  # type: ignore[arg-type]
    off = 0.0
    for k in range(10):
        cosine = 0.5 + 0.5 * math.cos(math.pi * k / 10) if decay == "cosine" else 1.0
        off = max(off, abs(config.learning_rate_at(k) - 2.0 * min(1.0, (k + 1) / 4) * cosine))
    return Measured(off, 1e-14)


def _numbers(count: int, levels: int = 256) -> TensorDataset:
    """Example i is an image of two grey values i."""
    values = torch.arange(count).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, -1, -1, 2)
    return TensorDataset(DataSpec("", (1, 1, 2), levels), values)


def _epochs() -> Measured:
    batches = training_batches(_numbers(7), batch=3, seed=1, dequantise=False)
    seen = torch.cat([batch.x[:, 0, 0, 0] for batch in itertools.islice(batches, 14)]).reshape(6, 7)
    expected = _numbers(7).spec.to_model(torch.arange(7))
    wrong = (seen.sort(dim=1).values != expected).sum() + (seen[0] == seen[1]).all()
    return Measured(float(wrong), 0.0)


def _batches(setting: Setting) -> Measured:
    def batches(seed: int, start: int) -> torch.Tensor:
        found = training_batches(_numbers(20), batch=6, seed=seed, start=start, flip=True, device=setting.device)
        return torch.stack([batch.x for batch in itertools.islice(found, 5 - start)])

    whole = batches(1, 0)
    wrong = (whole[2:] != batches(1, 2)).sum() + (whole == batches(2, 0)).all()
    grey = whole.flatten(0, 1)[:, 0, 0]
    spread = float((_numbers(20).spec.from_model(grey) != _numbers(20).spec.from_model(grey[:, :1])).sum())
    return Measured(float(wrong) + spread + float((grey[:, 0] == grey[:, 1]).all()), 0.0)


def _sweep(setting: Setting) -> Measured:
    def rows(batch: int, start: int = 0) -> torch.Tensor:
        found = sweep(_numbers(20), batch=batch, seed=1, start=start, device=setting.device)
        return torch.cat([examples.x for _, examples in found])

    whole = rows(6)
    levels = torch.arange(20, device=setting.device)
    wrong = (whole != rows(20)).sum() + (whole[9:] != rows(4, 9)).sum()
    wrong += (_numbers(20).spec.from_model(whole)[:, 0, 0, 0].long() != levels).sum()
    return Measured(float(wrong), 0.0)


def _checkpoint(setting: Setting) -> Measured:
    tensors = {"a.x": setting.normal(3, 2), "a.y": torch.arange(5), "b.x": torch.tensor([math.inf, -0.0])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"
        save_checkpoint(path, Checkpoint(tensors, {"step": 3}))
        found = load_checkpoint(path, setting.device)
    wrong = sum(not torch.equal(found.tensors[name], value.to(setting.device)) for name, value in tensors.items())
    return Measured(float(wrong + (found.meta != {"step": 3}) + (found.group("a").keys() != {"x", "y"})), 0.0)


def _trainer(setting: Setting, folder: str, network: Raw | None = None, **training: float) -> Trainer:
    model = TINY["model"] | ({"network": network} if network else {})
    raw = TINY | {"training": TINY["training"] | training, "model": model}
    if network and network["name"] != "mlp":
        raw = raw | {"data": {"name": "digits"}}
    return build_trainer(read_config(None, (), raw), RunFolder(Path(folder)), setting.device)


def _train(trainer: Trainer, until: int) -> Checkpoint:
    config = trainer.config
    batches = training_batches(trainer.train, batch=config.batch, seed=0, start=trainer.step, device=trainer.device)
    for batch in itertools.islice(batches, until - trainer.step):
        trainer.window.add(trainer.step, *trainer.train_step(batch))
        trainer.step += 1
    return trainer.state()


@torch.no_grad()
def _average(setting: Setting) -> Measured:
    """After the first step θ̄ = 0.1 θ_0 + 0.9 θ_1, and the step has moved the weights."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(setting, folder)
        before = [weight.clone() for weight in trainer.model.parameters()]
        with torch.enable_grad():
            _train(trainer, 1)
    after, average = trainer.model.parameters(), trainer.ema.model.parameters()
    moved, off = 0.0, 0.0
    for old, new, mean in zip(before, after, average, strict=True):
        moved = max(moved, worst(new, old.double()))
        off = max(off, worst(mean, 0.1 * old.double() + 0.9 * new.double()))
    return Measured(off + float(moved == 0), 1e-6)


def _clipped(setting: Setting) -> Measured:
    """Adam's first step is lr g/(|g| + 1e-8), whatever the size of g, unless that is far below 1e-8."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(setting, folder, clip=1e-12)
        before = [weight.detach().clone() for weight in trainer.model.parameters()]
        _train(trainer, 1)
    moved = (worst(new, old.double()) for old, new in zip(before, trainer.model.parameters(), strict=True))
    return Measured(max(moved), 1e-3 * trainer.config.learning_rate_at(0))


def _validation(setting: Setting) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(setting, folder)
        first = trainer.validate()["validation_loss"]
        trainer.step += 1
        return Measured(abs(trainer.validate()["validation_loss"] - first), 0.0)


def _resume(setting: Setting) -> Measured:
    """Weights, averages and moments after 4 steps are those of 2 steps, a checkpoint and 2 more."""
    with tempfile.TemporaryDirectory() as folder:
        whole = _train(_trainer(setting, folder), 4)
        path = Path(folder) / "half.safetensors"
        save_checkpoint(path, _train(_trainer(setting, folder), 2))
        resumed = _trainer(setting, folder)
        resumed.restore(load_checkpoint(path, setting.device))
        found = _train(resumed, 4)
    wrong = sum(not torch.equal(value, found.tensors[name]) for name, value in whole.tensors.items())
    return Measured(float(wrong + (whole.tensors.keys() != found.tensors.keys())), 0.0)


@torch.no_grad()
def _labels(setting: Setting, network: str) -> Measured:
    """Of a network with random weights in every layer: those of a new one end in zeros."""
    net = NETWORKS[network]((1, 8, 8), classes=3, **{k: v for k, v in SMALL.get(network, {}).items() if k != "name"})
    net.to(setting.device, setting.dtype).eval()
    for k, weight in enumerate(net.parameters()):
        weight.copy_(0.3 * setting.normal(*weight.shape, seed=k))
    x, c_noise = setting.normal(3, 1, 8, 8), setting.normal(3, seed=2)
    none, hidden, first, last = (
        net(x, c_noise, None if label is None else torch.full((3,), label, device=setting.device))
        for label in (None, -1, 0, 2)
    )
    same = (hidden == first).all() + (first == last).all()
    return Measured(float((none != hidden).sum() + same), 0.0)


def _descent(setting: Setting, network: str) -> Measured:
    """Eight steps on one batch, at one draw of times and noise, after which the loss there is lower."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(setting, folder, SMALL.get(network, {"name": network}))
        batch = next(training_batches(trainer.train, batch=16, seed=0, device=trainer.device))
        losses = [trainer.train_step(batch)[0].loss.mean().item() for _ in range(8)]
    return Measured(losses[-1] / losses[0], 0.999)
