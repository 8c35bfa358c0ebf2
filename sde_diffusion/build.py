"""From a config to objects, through the registries: the only file that knows them all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from sde_diffusion.classifier import NoisyClassifier
from sde_diffusion.config import (
    ClassifierRecipe,
    Raw,
    Recipe,
    Registries,
    merge,
    override,
    parse,
    plain,
    read_yaml,
)
from sde_diffusion.data import DATASETS, DataSource, DataSpec
from sde_diffusion.data.digits import Digits
from sde_diffusion.errors import InputError, require, require_positive
from sde_diffusion.grids import GRIDS, TimeGrid
from sde_diffusion.guidance import GUIDANCES, Bind, ClassifierFree, Guidance
from sde_diffusion.likelihood import (
    DEQUANTISATIONS,
    DIVERGENCES,
    Dequantisation,
    Divergence,
    FlowDequantisation,
    Hutchinson,
    LedgerOptions,
    UniformDequantisation,
)
from sde_diffusion.likelihood.flow_dequantisation import PART
from sde_diffusion.losses import (
    OBJECTIVES,
    TIME_SAMPLERS,
    WEIGHTINGS,
    Denoising,
    LikelihoodWeighting,
    Objective,
    StratifiedTime,
    TimeSampler,
    Weighting,
)
from sde_diffusion.model import NOISE_CONDITIONINGS, PREDICTIONS, ScoreModel
from sde_diffusion.networks import CLASSIFIERS, NETWORKS, Encoder, UNet
from sde_diffusion.projections import PROJECTIONS, Clip, Projection
from sde_diffusion.registry import lookup
from sde_diffusion.rng import derive_seed
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import BETA_SEQUENCES, BETAS, SDE, SDES, VPSDE, BetaSchedule, BetaSequence
from sde_diffusion.solvers import CORRECTORS, ODES, SOLVERS, AdaptiveODE, Corrector, PerSampleODE, Solver
from sde_diffusion.training import (
    TRAINING_NOISES,
    WEIGHTING,
    Checkpoint,
    ClassifierTrainer,
    LossConfig,
    RunFolder,
    Trainer,
    TrainingConfig,
    TrainingNoise,
    averaged,
)

MODEL, CLASSIFIER = "model", "classifier"  # what a checkpoint holds: its meta entry `kind`, a model without one
_WEIGHTS, _FLOW = 0xB01D, 0xB01E  # purposes of random numbers: first weights of the network and of a flow beside it

REGISTRIES: Registries = {
    SDE: SDES,
    BetaSchedule: BETAS,
    BetaSequence: BETA_SEQUENCES,
    DataSource: DATASETS,
    Recipe: NETWORKS,
    ClassifierRecipe: CLASSIFIERS,
    Objective: OBJECTIVES,
    Weighting: WEIGHTINGS,
    TimeSampler: TIME_SAMPLERS,
    Solver: SOLVERS,
    AdaptiveODE: ODES,
    Corrector: CORRECTORS,
    TimeGrid: GRIDS,
    Projection: PROJECTIONS,
    Guidance: GUIDANCES,
    Divergence: DIVERGENCES,
    Dequantisation: DEQUANTISATIONS,
    TrainingNoise: TRAINING_NOISES,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The section `model`.

    Attributes:
        network: The network F and its options.
        prediction: What F estimates, a row of `PREDICTIONS`. The default, `v`, stays well scaled at high noise,
            where an error of ε̂ grows by std/a in x̂0.
        conditioning: What F is told of the time, a row of `NOISE_CONDITIONINGS`.
        sigma_data: Standard deviation of the data in model coordinates.
        conditional: Whether F is told the class.
        learned_variance: Whether F has a second head for the variance of a reverse step.
        scale_input: Whether F sees x at unit scale; false for x itself, as published networks do.
    """

    network: Recipe = Recipe(UNet, {"channels": 32, "attention": (4,)})
    prediction: str = "v"
    conditioning: str = "log_snr"
    sigma_data: float = 0.5
    conditional: bool = False
    learned_variance: bool = False
    scale_input: bool = True

    def __post_init__(self) -> None:
        lookup(PREDICTIONS, self.prediction, "prediction")
        lookup(NOISE_CONDITIONINGS, self.conditioning, "conditioning")
        require_positive(sigma_data=self.sigma_data)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The section `sampling`.

    Attributes:
        solver: The solver and its options.
        count: Number of samples.
        batch: Samples drawn at once: a matter of speed and memory.
        t_end: Where to stop; null for `sde.t_min`.
        denoise: End with E[x_0 | x_t].
        clip: Clip every predicted x̂0 to the range of discrete data.
        project: Another map of every predicted x̂0; null for none.
        label: Class of the samples, or several in turn: sample i is of the class at i modulo their number. −1 for none.
        guidance: How the model is guided.
    """

    solver: Solver = PerSampleODE()
    count: int = 64
    batch: int = 64
    t_end: float | None = None
    denoise: bool = True
    clip: bool = False
    project: Projection | None = None
    label: tuple[int, ...] = (-1,)
    guidance: Guidance = ClassifierFree()

    def __post_init__(self) -> None:
        require_positive(count=self.count, batch=self.batch)
        known = self.label == (-1,) or min(self.label, default=-1) >= 0
        shown = self.label[0] if len(self.label) == 1 else list(self.label)
        require(known, f"`label` must be a class ≥ 0, several of them, or −1 for none, got {shown}")
        require(not self.clip or self.project is None, "`project` must be null where `clip` is true, got both")

    @property
    def projection(self) -> Projection | None:
        """The map of x̂0."""
        return Clip() if self.clip else self.project

    def labels(self, start: int, count: int) -> Tensor:
        """Those of the samples `start … start + count − 1`, (count,) int64."""
        return torch.tensor(self.label)[torch.arange(start, start + count) % len(self.label)]


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """The section `likelihood`.

    Attributes:
        divergence: How the trace of the score's Jacobian is found.
        dequantisation: The noise inside the bins of discrete data.
        draws: Coupled draws of it in one replicate of an example, each a solve.
        replicates: Independent repeats of the whole, each with its own noise and probes.
        tol: Half-width at which to stop; null to score everything. Then probes and replicates are chosen on the way.
        max_solves: Solves of one example after which a run to `tol` stops; null for no bound.
        ode: The integrator and its tolerances.
        split: Which split is scored.
        start, limit: First example, and number of examples; null for all from there.
        batch: Examples scored at once.
        confidence: Level of the interval of the mean.
        ledger: What the rows of `--ledger` spend.
    """

    divergence: Divergence = Hutchinson()
    dequantisation: Dequantisation = UniformDequantisation()
    draws: int = 1
    replicates: int = 1
    tol: float | None = None
    max_solves: int | None = None
    ode: AdaptiveODE = PerSampleODE()
    split: Literal["train", "validation", "test"] = "test"
    start: int = 0
    limit: int | None = None
    batch: int = 128
    confidence: float = 0.95
    ledger: LedgerOptions = LedgerOptions()

    def __post_init__(self) -> None:
        require_positive(batch=self.batch)
        require_positive(draws=self.draws, replicates=self.replicates)
        coupling = self.dequantisation.coupling
        require(
            self.draws > 1 or coupling == "independent",
            f"the coupling {coupling} hangs several draws together, got `draws` = 1; give `draws` ≥ 2",
        )
        require(self.tol is None or self.tol > 0, f"`tol` must be > 0, got {self.tol}")
        require(self.max_solves is None or self.tol is not None, "`max_solves` bounds a run to `tol`, got no `tol`")
        require(
            self.tol is None or self.replicates == 1,
            f"`replicates` are chosen on the way to `tol`, got {self.replicates}; drop one of the two",
        )
        require(
            not isinstance(self.ode, PerSampleODE) or self.ode.on_failure == "raise",
            "`ode.on_failure` must be raise, for a mean has no value for what was not solved, got 'nan'",
        )
        require(self.limit is None or self.limit > 0, f"`limit` must be > 0, got {self.limit}")
        require(self.start >= 0, f"`start` must be ≥ 0, got {self.start}")
        require(0 < self.confidence < 1, f"`confidence` must be in (0, 1), got {self.confidence}")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The section `classifier`: the noise-aware classifier of classifier guidance; `training` holds for it too.

    Attributes:
        network: The network and its options.
        time_sampler: Draws the times of training; its density is divided by.
    """

    network: ClassifierRecipe = ClassifierRecipe(Encoder, {})
    time_sampler: TimeSampler = StratifiedTime()


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. The defaults train the embedded digits in about three minutes on two cores."""

    seed: int = 0
    sde: SDE = VPSDE()
    data: DataSource = Digits()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    likelihood: LikelihoodConfig = LikelihoodConfig()
    classifier: ClassifierConfig = ClassifierConfig()


def read_config(file: Path | None, assignments: Sequence[str] = (), base: Raw | None = None) -> Config:
    """The config of a file and overrides on top of `base`; what none of them sets has its default.

    Raises:
        InputError: See `read_yaml`, `override` and `parse`.
    """
    raw = merge(base or {}, read_yaml(file) if file else {})
    return parse(Config, _renamed(override(_renamed(raw), assignments)), REGISTRIES)


def _renamed(raw: Raw) -> Raw:
    """`raw` with the names that stand for what older configs said otherwise."""
    training = raw.get("training")
    if not isinstance(training, dict) or not isinstance(training.get("dequantise"), bool):
        return raw
    return raw | {"training": training | {"dequantise": "uniform" if training["dequantise"] else "centre"}}


def plain_config(config: Config) -> Raw:
    """The config as YAML values, every default written out."""
    resolved: Raw = plain(config, REGISTRIES)
    return resolved


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


def build_model(config: Config, spec: DataSpec, device: torch.device) -> ScoreModel:
    """The score model with first weights that depend on `config.seed` alone."""
    classes = len(spec.classes) if config.model.conditional else 0
    require(
        classes > 0 or not config.model.conditional,
        f"`model.conditional` must be false for {spec.name}: these data have no labels",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, _WEIGHTS))
        net = config.model.network(spec.shape, classes=classes, heads=1 + config.model.learned_variance)
    model = ScoreModel(
        net,
        config.sde,
        prediction=config.model.prediction,
        conditioning=config.model.conditioning,
        sigma_data=config.model.sigma_data,
        learned_variance=config.model.learned_variance,
        scale_input=config.model.scale_input,
    )
    return model.to(device)


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


def build_trainer(config: Config, folder: RunFolder, device: torch.device) -> Trainer:
    """A trainer at step 0.

    Raises:
        InputError: A loss that does not suit the model or the process.
    """
    check_training(config)
    train, validation = config.data.load("train"), config.data.load("validation")
    return Trainer(
        build_model(config, train.spec, device),
        train,
        validation,
        config=config.training,
        loss=config.loss,
        folder=folder,
        seed=config.seed,
        device=device,
        meta={"config": plain_config(config), "data": train.spec.to_dict()},
        parts=build_parts(config, train.spec, device),
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


def build_classifier_trainer(config: Config, folder: RunFolder, device: torch.device) -> ClassifierTrainer:
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
        meta={"config": plain_config(config), "data": train.spec.to_dict(), "kind": CLASSIFIER},
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
) -> Trained:
    """The model of a checkpoint, by default averaged; `config` is its own with the user's overrides.

    `ema` and `run` choose other weights: see `training.averaged`.
    """
    spec = DataSpec.from_dict(checkpoint.meta["data"])
    model = build_model(config, spec, device)
    weights, origin = averaged(checkpoint, ema, run)
    model.load_state_dict(weights)
    parts = build_parts(config, spec, device)
    for name, part in parts.items():
        part.load_state_dict(checkpoint.group(f"parts.{name}"))
        part.eval().requires_grad_(False)
    model.eval().requires_grad_(False)
    return Trained(model, spec, config, checkpoint.meta["step"], origin, parts=parts)


def count_parameters(model: torch.nn.Module) -> int:
    """Number of trained numbers."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters())
