"""The competitors of throughput.py: one step of training, one forward pass, fifty steps of sampling.

Each is in the form that its own documentation gives:

- ours: `build_trainer`, `load_trained` and `sample` on a config, as the command line has them. `default` sets nothing;
  the other modes set one or two choices of the section `perf`.
- diffusers: its example train_unconditional.py with `--use_ema`: noise, `DDPMScheduler.add_noise`, `UNet2DModel`, MSE,
  clipping, AdamW, a cosine learning rate, `EMAModel`, the loss read back each step; bfloat16 is Accelerate's autocast
  around the model. Inference in bfloat16 is on weights in bfloat16, as `torch_dtype` gives. Without Accelerate's own
  overhead.
- denoising-diffusion-pytorch: `GaussianDiffusion` around `Unet(flash_attn=True)` with its `Trainer`'s step: autocast,
  clipping, Adam, `EMA` every tenth step, the loss read back.

`compiled` is `torch.compile` of the network at its defaults. Batches lie on the device beforehand.
"""

import copy
import importlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sde_diffusion.config.build import build_trainer, load_trained, read_config, resolve_perf
from sde_diffusion.data import Batch, DataSpec
from sde_diffusion.sampling import sample
from sde_diffusion.solvers import SOLVERS, SeededNoise
from sde_diffusion.training import RunFolder

OURS, DIFFUSERS, LUCIDRAINS = "sde_diffusion", "diffusers", "denoising-diffusion-pytorch"
Run = Callable[[], Any]

# our modes: what each sets beside the config
MODES: dict[str, tuple[str, ...]] = {
    "default": (),
    "eager": ("perf.compile=never",),
    "compiled": ("perf.compile=always",),
}


@dataclass(frozen=True)
class Problem:
    """One network on images of one shape, in the words of each tool.

    Attributes:
        ours: Overrides of `config`, or of the defaults where that is empty.
        diffusers, lucidrains: Arguments of their networks; None where the tool does not take part.
    """

    name: str
    shape: tuple[int, int, int]
    batch: int
    ours: tuple[str, ...]
    diffusers: Mapping[str, Any]
    lucidrains: Mapping[str, Any] | None = None
    config: str = ""
    steps: int = 50  # of sampling
    samples: int = 256


@dataclass(frozen=True)
class Variant:
    """One competitor: a tool, how it runs, and the precision of its network."""

    tool: str
    mode: str
    precision: str

    @property
    def key(self) -> str:
        return f"{self.tool}, {self.mode}"

    @property
    def rough(self) -> bool:
        return self.precision == "bfloat16"


@dataclass
class Job:
    """One competitor, ready to run: `run` is the unit that is timed.

    Attributes:
        flops: Of one forward pass of one image.
        setting: What was chosen, for the record.
        keep: What must live as long as the job.
    """

    run: Run
    flops: int
    setting: str = ""
    keep: Any = field(default=None, repr=False)


def forward_flops(net: nn.Module, shape: tuple[int, ...]) -> int:
    """FLOPs of one image through a copy of `net` on the CPU; a multiply-add is two, and only products count."""
    net = copy.deepcopy(net).to("cpu", torch.float32).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(torch.zeros(1, *shape), torch.zeros(1))
    return int(counter.get_total_flops())


def images(problem: Problem, device: torch.device) -> Tensor:
    """A batch in [-1, 1), (batch, *shape); what is in it does not change the time."""
    return torch.rand(problem.batch, *problem.shape, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1


def autocast(device: torch.device, rough: bool) -> Any:
    """bfloat16 where `rough`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=rough)


# --------------------------------------------------------------------------------------------------------------- ours


def our_trainer(problem: Problem, variant: Variant, device: torch.device) -> tuple[Any, Any]:
    """The trainer of the problem's config on 256 images, and that config."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, np.random.default_rng(0).integers(0, 256, (256, *problem.shape), dtype=np.uint8))
        config = read_config(
            ROOT / "configs" / problem.config if problem.config else None,
            [
                f"data={{name: arrays, file: {file}}}",
                f"training.batch={problem.batch}",
                f"training.precision={variant.precision}",
                *problem.ours,
                *MODES[variant.mode],
            ],
        )
        trainer = build_trainer(config, RunFolder(Path(folder) / "run"), device)
    trainer.model.train()
    return trainer, config


def our_setting(config: Any, device: torch.device, spec: DataSpec | None = None) -> str:
    """What the section `perf` stands for on the device: in training, or for a model in use on data of `spec`."""
    perf = resolve_perf(config, device, spec)
    return f"{perf}{', recorded as CUDA graphs' if spec is not None and perf.cuda_graphs else ''}"


def our_training(problem: Problem, variant: Variant, device: torch.device) -> Job:
    trainer, config = our_trainer(problem, variant, device)
    batch = Batch(images(problem, device), None)

    def run() -> None:
        trainer.window.add(trainer.step, *trainer.train_step(batch))
        trainer.step += 1

    flops = forward_flops(config.model.network(problem.shape), problem.shape)
    return Job(run, flops, our_setting(config, device), trainer)


def our_model(problem: Problem, variant: Variant, device: torch.device) -> tuple[Any, Any]:
    """The model as `load_trained` gives it, with weights that are not zero, and its config."""
    trainer, config = our_trainer(problem, variant, device)
    return load_trained(trainer.state(), config, device), config


def our_inference(problem: Problem, variant: Variant, device: torch.device) -> Job:
    trained, config = our_model(problem, variant, device)
    x, t = images(problem, device), torch.rand(problem.batch, generator=torch.Generator().manual_seed(0)).to(device)

    @torch.no_grad()
    def run() -> Tensor:
        with autocast(device, variant.rough):
            return trained.model(x, t)

    flops = forward_flops(config.model.network(problem.shape), problem.shape)
    return Job(run, flops, our_setting(config, device, trained.spec), trained)


def our_sampling(problem: Problem, variant: Variant, device: torch.device) -> Job:
    """DDIM from noise; `bare` is the same network called as often and nothing else."""
    bare = variant.mode == "bare network"
    variant = Variant(OURS, "default", variant.precision) if bare else variant
    trained, config = our_model(problem, variant, device)
    solver = SOLVERS["ddim"](steps=problem.steps)
    shape = (problem.samples, *problem.shape)
    x, t = torch.randn(shape, device=device), torch.full((problem.samples,), 0.5, device=device)

    @torch.no_grad()
    def call() -> None:
        with autocast(device, variant.rough):
            for _ in range(problem.steps):
                trained.model.net(x, t)

    @torch.no_grad()
    def run() -> int:
        noise = SeededNoise(0, device=device)
        with autocast(device, variant.rough):
            done = sample(trained.model, config.sde, solver, shape, noise=noise, denoise=False)
        assert done.nfe == problem.steps
        return int(done.nfe)

    flops = forward_flops(config.model.network(problem.shape), problem.shape)
    setting = our_setting(config, device, trained.spec)
    return Job(call if bare else run, flops, f"{setting}, called eagerly" if bare else setting, trained)


# ---------------------------------------------------------------------------------------------------------- diffusers


def diffusers_network(problem: Problem, device: torch.device) -> tuple[Any, int]:
    diffusers = importlib.import_module("diffusers")
    channels, side = problem.shape[:2]
    net = diffusers.UNet2DModel(sample_size=side, in_channels=channels, out_channels=channels, **problem.diffusers)
    return net.to(device), forward_flops(net, problem.shape)


def diffusers_training(problem: Problem, variant: Variant, device: torch.device) -> Job:
    diffusers = importlib.import_module("diffusers")
    schedules = importlib.import_module("diffusers.optimization")
    averages = importlib.import_module("diffusers.training_utils")
    net, flops = diffusers_network(problem, device)
    model = torch.compile(net) if variant.mode == "compiled" else net
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rate = schedules.get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=100_000)
    ema = averages.EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    clean = images(problem, device)

    def run() -> float:
        noise = torch.randn(clean.shape, device=device)
        times = torch.randint(0, 1000, (len(clean),), device=device)
        noisy = scheduler.add_noise(clean, noise, times)
        with autocast(device, variant.rough):
            found = model(noisy, times).sample
        loss = torch.nn.functional.mse_loss(found.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(net.parameters())
        return loss.detach().item()

    net.train()
    return Job(run, flops, keep=ema)


def diffusers_model(problem: Problem, variant: Variant, device: torch.device) -> tuple[Any, int, torch.dtype]:
    net, flops = diffusers_network(problem, device)
    dtype = torch.bfloat16 if variant.rough else torch.float32
    net = net.to(dtype).eval().requires_grad_(False)
    if variant.mode == "compiled":
        net = torch.compile(net.to(memory_format=torch.channels_last), fullgraph=True)
    return net, flops, dtype


def diffusers_inference(problem: Problem, variant: Variant, device: torch.device) -> Job:
    net, flops, dtype = diffusers_model(problem, variant, device)
    x, t = images(problem, device).to(dtype), torch.randint(0, 1000, (problem.batch,)).to(device)

    @torch.no_grad()
    def run() -> Tensor:
        return net(x, t).sample

    return Job(run, flops)


def diffusers_sampling(problem: Problem, variant: Variant, device: torch.device) -> Job:
    """The loop of its DDIM pipeline, without the pipeline's own overhead."""
    diffusers = importlib.import_module("diffusers")
    net, flops, dtype = diffusers_model(problem, variant, device)
    scheduler = diffusers.DDIMScheduler()

    @torch.no_grad()
    def run() -> int:
        scheduler.set_timesteps(problem.steps)
        x = torch.randn((problem.samples, *problem.shape), device=device, dtype=dtype)
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
        return len(scheduler.timesteps)

    return Job(run, flops)


# ---------------------------------------------------------------------------------------- denoising-diffusion-pytorch


def lucidrains_diffusion(problem: Problem, device: torch.device) -> tuple[Any, int]:
    package = importlib.import_module("denoising_diffusion_pytorch")
    net = package.Unet(channels=problem.shape[0], flash_attn=True, **(problem.lucidrains or {}))
    flops = forward_flops(net, problem.shape)
    return package.GaussianDiffusion(net, image_size=problem.shape[1], timesteps=1000).to(device), flops


def lucidrains_training(problem: Problem, variant: Variant, device: torch.device) -> Job:
    averages = importlib.import_module("ema_pytorch")
    diffusion, flops = lucidrains_diffusion(problem, device)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = averages.EMA(diffusion, beta=0.995, update_every=10)
    if variant.mode == "compiled":
        diffusion.model = torch.compile(diffusion.model)
    batch = images(problem, device) / 2 + 0.5

    def run() -> float:
        with autocast(device, variant.rough):
            loss = diffusion(batch)
        value = loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        return value

    diffusion.train()
    return Job(run, flops, keep=ema)


def lucidrains_inference(problem: Problem, variant: Variant, device: torch.device) -> Job:
    diffusion, flops = lucidrains_diffusion(problem, device)
    net = diffusion.model.eval().requires_grad_(False)
    net = torch.compile(net) if variant.mode == "compiled" else net
    x, t = images(problem, device), torch.randint(0, 1000, (problem.batch,)).to(device)

    @torch.no_grad()
    def run() -> Tensor:
        with autocast(device, variant.rough):
            return net(x, t)

    return Job(run, flops)


BUILDERS: dict[str, dict[str, Callable[[Problem, Variant, torch.device], Job]]] = {
    "train": {OURS: our_training, DIFFUSERS: diffusers_training, LUCIDRAINS: lucidrains_training},
    "infer": {OURS: our_inference, DIFFUSERS: diffusers_inference, LUCIDRAINS: lucidrains_inference},
    "sample": {OURS: our_sampling, DIFFUSERS: diffusers_sampling},
}


def build(phase: str, problem: Problem, variant: Variant, device: torch.device) -> Job:
    """The competitor for one phase: train, infer or sample.

    Raises:
        ImportError: Its package is not installed.
    """
    torch.manual_seed(0)
    return BUILDERS[phase][variant.tool](problem, variant, device)


# ----------------------------------------------------------------------------------------------------------- problems

_TYPES = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}


def _ours(network: str) -> tuple[str, ...]:
    return (f"model.network={{name: unet, {network}}}",)


SMALL = Problem(
    "28×28×1",
    (1, 28, 28),
    64,
    _ours("channels: 32, multipliers: [1, 2, 2], blocks: 2, attention: [14, 7]"),
    {"block_out_channels": (32, 64, 64), "layers_per_block": 2, **_TYPES},
    {"dim": 32, "dim_mults": (1, 2, 4)},
)
COLOUR = Problem(
    "32×32×3",
    (3, 32, 32),
    32,
    _ours("channels: 32, multipliers: [1, 2, 2], blocks: 1, attention: [16, 8]"),
    {"block_out_channels": (32, 64, 64), "layers_per_block": 1, **_TYPES},
    {"dim": 28, "dim_mults": (1, 2, 2)},
)
CIFAR = Problem(
    "CIFAR-10 DDPM",
    (3, 32, 32),
    128,
    (),
    {
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "dropout": 0.1,
    },
    config="cifar10_ddpm.yaml",
)
TINY = Problem(  # for --quick
    "tiny",
    (1, 8, 8),
    16,
    _ours("channels: 8, multipliers: [1, 2], blocks: 1, attention: [4]"),
    {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    {"dim": 8, "dim_mults": (1, 2)},
    steps=3,
    samples=4,
)
