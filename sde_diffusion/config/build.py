"""From a config to objects: model, parts beside it, trainer, and what a checkpoint holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sde_diffusion.classifier import NoisyClassifier
from sde_diffusion.config.schema import REGISTRIES, Config, ModelConfig, SamplingConfig, plain_config, read_config
from sde_diffusion.data import DataSpec
from sde_diffusion.errors import InputError, require
from sde_diffusion.guidance import Bind
from sde_diffusion.likelihood import Dequantisation, FlowDequantisation
from sde_diffusion.likelihood.audit.learned_noise import PART
from sde_diffusion.losses import Denoising, LikelihoodWeighting
from sde_diffusion.model import ScoreModel
from sde_diffusion.rng import derive_seed
from sde_diffusion.runtime.performance import Perf, Precision, prepare, resolve_precision
from sde_diffusion.runtime.ranks import ALONE, Ranks
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import SDE
from sde_diffusion.training import WEIGHTING, Checkpoint, ClassifierTrainer, RunFolder, Trainer, averaged

__all__ = [
    "CLASSIFIER",
    "MODEL",
    "REGISTRIES",
    "Config",
    "ModelConfig",
    "SamplingConfig",
    "Trained",
    "build_classifier",
    "build_classifier_trainer",
    "build_model",
    "build_parts",
    "build_trainer",
    "check_training",
    "choose_device",
    "count_parameters",
    "load_trained",
    "plain_config",
    "read_config",
    "resolve_perf",
    "resolve_precision_of",
]

MODEL, CLASSIFIER = "model", "classifier"  # what a checkpoint holds: its meta entry `kind`, a model without one
_WEIGHTS, _FLOW = 0xB01D, 0xB01E  # purposes of random numbers: first weights of the network and of a flow beside it


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one.

    Raises:
        InputError: A device that is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N, mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        require(
            (device.index or 0) < count,
            f"`device` {name} asks for CUDA, but this machine has {count} CUDA devices; use --device cpu",
        )
    elif device.type == "mps":
        require(torch.backends.mps.is_available(), "`device` mps is not available here; use --device cpu")
    else:
        require(device.type == "cpu", f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N, mps")
    return device


def build_model(
    config: Config, spec: DataSpec, device: torch.device, *, net: nn.Module | None = None, sde: SDE | None = None
) -> ScoreModel:
    """The score model with first weights that depend on `config.seed` alone.

    Args:
        net, sde: Taken in place of the config's network and process, where they are of the user's own classes.
    """
    classes = len(spec.classes) if config.model.conditional else 0
    require(
        classes > 0 or not config.model.conditional,
        f"`model.conditional` must be false for {spec.name}: these data have no labels",
    )
    if net is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, _WEIGHTS))
            net = config.model.network(spec.shape, classes=classes, heads=1 + config.model.learned_variance)
    model = ScoreModel(
        net,
        config.sde if sde is None else sde,
        prediction=config.model.prediction,
        conditioning=config.model.conditioning,
        sigma_data=config.model.sigma_data,
        learned_variance=config.model.learned_variance,
        scale_input=config.model.scale_input,
    )
    return model.to(device)


def resolve_precision_of(config: Config, device: torch.device, begun_in: Precision = "auto") -> Config:
    """`config` with the precision that training has on `device`.

    Args:
        config: Where it says `auto`, a run goes on as it was begun, and a new one takes what suits the device.
        device: Where it is trained.
        begun_in: The precision of the run so far; `auto` for a new one.
    """
    asked = config.training.precision
    precision = resolve_precision(begun_in if asked == "auto" else asked, device)
    return replace(config, training=replace(config.training, precision=precision))


def resolve_perf(config: Config, device: torch.device, spec: DataSpec | None = None) -> Perf:
    """What the section `perf` stands for on `device`, in training, or for a trained model in use on data of `spec`."""
    if spec is None:
        return config.perf.resolve(device, steps=config.training.steps)
    return config.perf.resolve(device, side=min(spec.shape[1:]) if len(spec.shape) == 3 else 0)


def check_training(config: Config) -> None:
    """Refuse to train what the loss cannot train.

    Raises:
        InputError: See `Objective.check` and `LossConfig.check`.
    """
    config.loss.check(config.sde, config.training.steps * config.training.batch)
    config.loss.objective.check(config.sde, config.loss.time_sampler, learned_variance=config.model.learned_variance)


def build_parts(config: Config, spec: DataSpec, device: torch.device) -> dict[str, nn.Module]:
    """The modules trained beside the model, with first weights that depend on `config.seed` alone.

    Raises:
        InputError: A flow for continuous data, or with a loss that does not bound −log p.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, _FLOW))
        parts = {PART: config.training.dequantise.part(spec), WEIGHTING: config.loss.weighting.part()}
    if parts[PART] is not None:
        _require_bound(config)
    return {name: part.to(device) for name, part in parts.items() if part is not None}


def _require_bound(config: Config) -> None:
    loss = config.loss
    bounds = isinstance(loss.objective, Denoising) and isinstance(loss.weighting, LikelihoodWeighting)
    require(
        bounds and loss.distance == "l2",
        "`loss.objective` must be denoising, `loss.weighting` likelihood and `loss.distance` l2 where "
        "`training.dequantise` is flow: no other loss bounds −log p, which its density is weighed against",
    )
    require(
        loss.time_sampler.initial_state(config.sde) is None,
        "`loss.time_sampler` must be one that does not learn, such as importance, where `training.dequantise` is flow: "
        "what it would learn from holds the flow's density",
    )


def build_trainer(config: Config, folder: RunFolder, device: torch.device, ranks: Ranks = ALONE) -> Trainer:
    """A trainer at step 0, of one process or of `ranks`.

    Raises:
        InputError: A loss that does not suit the model or the process, or a batch that the ranks cannot share.
    """
    check_training(config)
    train, validation = config.data.load("train"), config.data.load("validation")
    perf, home = resolve_perf(config, device), device
    if config.training.in_shares(ranks):  # a model that no GPU holds whole; shares are of weights in plain order
        perf, home = replace(perf, channels_last=False, compile=False), torch.device("cpu")
    model = build_model(config, train.spec, home)
    prepare(model, perf)
    return Trainer(
        model,
        train,
        validation,
        config=config.training,
        loss=config.loss,
        folder=folder,
        seed=config.seed,
        device=device,
        meta={"config": plain_config(config), "data": train.spec.to_dict(), "examples": len(train), "perf": str(perf)},
        parts=build_parts(config, train.spec, home),
        ranks=ranks,
    )


def build_classifier(config: Config, spec: DataSpec, device: torch.device) -> NoisyClassifier:
    """The noise-aware classifier with first weights that depend on `config.seed` alone.

    Raises:
        InputError: Data without labels, or a network that does not suit them.
    """
    require(len(spec.classes) > 0, f"a classifier needs data with labels, but {spec.name} has none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, _WEIGHTS))
        net = config.classifier.network(spec.shape, classes=len(spec.classes))
    return NoisyClassifier(net, config.sde, sigma_data=config.model.sigma_data).to(device)


def build_classifier_trainer(
    config: Config, folder: RunFolder, device: torch.device, ranks: Ranks = ALONE
) -> ClassifierTrainer:
    """A trainer of a classifier at step 0; it keeps one average of the weights and draws no pictures."""
    train, validation = config.data.load("train"), config.data.load("validation")
    return ClassifierTrainer(
        build_classifier(config, train.spec, device),
        train,
        validation,
        config=replace(config.training, ema_profiles=(), snapshot_every=0, sample_every=0),
        time_sampler=config.classifier.time_sampler,
        folder=folder,
        seed=config.seed,
        device=device,
        meta={"config": plain_config(config), "data": train.spec.to_dict(), "examples": len(train), "kind": CLASSIFIER},
        ranks=ranks,
    )


@dataclass(frozen=True, eq=False)
class Trained:
    """A model from a checkpoint, ready to use.

    Attributes:
        origin: Which weights it has, where not the usual average's.
        guide: What `sampling.guidance` needs besides the model, by label.
        parts: What was trained beside it.
    """

    model: ScoreModel
    spec: DataSpec
    config: Config
    step: int
    origin: str = ""
    guide: Bind | None = None
    parts: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def conditional(self) -> bool:
        """Whether the model knows labels."""
        return self.config.model.conditional

    def score_fn(self, labels: Tensor) -> ScoreFn:
        """The score function for samples of the classes `labels` (B,), −1 for none: guided, if the config says so.

        Raises:
            InputError: A label that the model or its guide does not know.
        """
        guidance, sde = self.config.sampling.guidance, self.model.sde
        return guidance.apply(self.model.bind, labels, sde, conditional=self.conditional, guide=self.guide)

    @property
    def dequantisation(self) -> Dequantisation:
        """That of the section `likelihood`, with the flow that was trained for it if it is one.

        Raises:
            InputError: It is one, and there is none in the checkpoint; or the data are continuous.
        """
        self.config.likelihood.dequantisation.check(self.spec)
        return self.config.likelihood.dequantisation.bind(self.parts)

    @property
    def learned_noise(self) -> Dequantisation | None:
        """The dequantisation that was trained beside the model; None if there is none."""
        return FlowDequantisation().bind(self.parts) if PART in self.parts else None


def load_trained(
    checkpoint: Checkpoint,
    config: Config,
    device: torch.device,
    *,
    ema: bool | str = True,
    run: RunFolder | None = None,
    net: nn.Module | None = None,
    sde: SDE | None = None,
) -> Trained:
    """The model of a checkpoint, by default averaged; `config` is its own with the user's overrides.

    `ema` and `run` choose other weights: see `training.averaged`; `net` and `sde`: see `build_model`.

    Raises:
        InputError: Weights that do not fit the network.
    """
    spec = DataSpec.from_dict(checkpoint.meta["data"])
    model = build_model(config, spec, device, net=net, sde=sde)
    weights, origin = averaged(checkpoint, ema, run)
    parts = build_parts(config, spec, device)
    for name, module, held in (
        ("network", model, weights),
        *((f"part {name!r} beside it", part, checkpoint.group(f"parts.{name}")) for name, part in parts.items()),
    ):
        try:
            module.load_state_dict(held)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"the weights of the checkpoint do not fit the {name}: {reason}") from None
        module.eval().requires_grad_(False)
    perf = resolve_perf(config, device, spec)
    prepare(model, perf)
    if perf.cuda_graphs:
        model.record()
    return Trained(model, spec, config, checkpoint.meta["step"], origin, parts=parts)


def count_parameters(model: torch.nn.Module) -> int:
    """Number of trained numbers."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters())
