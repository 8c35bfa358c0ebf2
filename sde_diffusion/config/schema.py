"""The sections of a config, and the registries that give each its choices: the only file that knows them all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sde_diffusion.config.parse import (
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
from sde_diffusion.data import DATASETS, DataSource
from sde_diffusion.data.sources.digits import Digits
from sde_diffusion.errors import require, require_positive
from sde_diffusion.fields import changes, option
from sde_diffusion.grids import GRIDS, TimeGrid
from sde_diffusion.guidance import GUIDANCES, ClassifierFree, Guidance
from sde_diffusion.likelihood import (
    DEQUANTISATIONS,
    DIVERGENCES,
    Dequantisation,
    Divergence,
    Hutchinson,
    LedgerOptions,
    UniformDequantisation,
)
from sde_diffusion.losses import (
    OBJECTIVES,
    TIME_SAMPLERS,
    WEIGHTINGS,
    Objective,
    StratifiedTime,
    TimeSampler,
    Weighting,
)
from sde_diffusion.model import NOISE_CONDITIONINGS, PREDICTIONS
from sde_diffusion.networks import CLASSIFIERS, NETWORKS, Encoder, UNet
from sde_diffusion.projections import PROJECTIONS, Clip, Projection
from sde_diffusion.registry import lookup
from sde_diffusion.runtime.performance import PerfConfig
from sde_diffusion.sde import BETA_SEQUENCES, BETAS, SDE, SDES, VPSDE, BetaSchedule, BetaSequence
from sde_diffusion.solvers import CORRECTORS, ODES, SOLVERS, AdaptiveODE, Corrector, PerSampleODE, Solver
from sde_diffusion.training import TRAINING_NOISES, LossConfig, TrainingConfig, TrainingNoise

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
        prediction: What F estimates, one of the predictions. The default, `v`, stays well scaled at high noise,
            where an error of ε̂ is multiplied by std/a in x̂0.
        conditioning: The number by which F learns the time, one of the noise conditionings.
        sigma_data: Standard deviation of the data in model coordinates.
        conditional: Whether F receives the class.
        learned_variance: Whether F has a second head, for the variance of a reverse step.
        scale_input: Whether F receives x scaled to unit variance. Published networks receive x itself: false.
    """

    network: Recipe = Recipe(
        UNet, {"channels": 48, "multipliers": None, "blocks": 1, "attention": (), "time": "scale_shift"}
    )
    prediction: str = "v"
    conditioning: str = "log_snr"
    sigma_data: float = option(0.5, of="both")
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
        batch: Samples drawn at once. It changes speed and memory, not the samples.
        t_end: The time at which the solver stops. Null for `sde.t_min`.
        denoise: Return E[x_0 | x_t] at the last time, for one more evaluation.
        clip: Clip each predicted x̂0 to the range of discrete data.
        project: Another map of each predicted x̂0. Null for none.
        label: Class of the samples, or a list of classes that the samples take in turn. −1 for no class.
        guidance: How the model is guided. Null, like the default with scale 1, for no guidance.
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
        divergence: How the trace of the score's Jacobian is computed.
        dequantisation: The noise that is added inside the bins of discrete data.
        draws: Coupled draws of this noise in one replicate of an example. Each draw is a solve.
        replicates: Independent repeats of the whole, each with its own noise and its own probe vectors.
        tol: Half-width of the interval at which the run stops; probes and replicates are then chosen on the way. Null
            scores every example once.
        max_solves: Largest number of solves of one example in a run with `tol`. Null for no limit.
        ode: The ODE solver and its tolerances.
        split: The split that is scored.
        start: The first example.
        limit: Number of examples. Null for all from `start` on.
        batch: Examples scored at once.
        confidence: Confidence level of the interval.
        label: The class that a conditional model receives, for log p(x | y). Null for each example's own class, −1 for
            none.
        ledger: What the rows of `--ledger` may cost.
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
    label: int | None = -1
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
        require(
            self.label is None or self.label >= -1,
            f"`label` must be a class ≥ 0, −1 for none, or null for each example's own, got {self.label}",
        )


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The section `classifier`: the noise-aware classifier of classifier guidance; `training` holds for it too.

    Attributes:
        network: The network and its options.
        time_sampler: The density from which training draws times; each loss is divided by it.
    """

    network: ClassifierRecipe = ClassifierRecipe(Encoder, {})
    time_sampler: TimeSampler = StratifiedTime()


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. The defaults train the embedded digits in about two minutes on two cores.

    Attributes:
        seed: Seed of every random number.
        sde: The forward process.
        data: The data set.
    """

    seed: int = option(0, "training")
    sde: SDE = option(VPSDE(), "weights")
    data: DataSource = option(Digits(), "training", naming="weights")
    model: ModelConfig = option(ModelConfig(), "weights", of="model")
    loss: LossConfig = option(LossConfig(), "weights", of="model")
    training: TrainingConfig = option(TrainingConfig(), "training")
    perf: PerfConfig = option(PerfConfig(), "nothing")
    sampling: SamplingConfig = option(SamplingConfig(), "nothing")
    likelihood: LikelihoodConfig = option(LikelihoodConfig(), "nothing")
    classifier: ClassifierConfig = option(ClassifierConfig(), "weights", of="classifier")


def describes_a_run(raw: Raw) -> bool:
    """Whether `raw` holds sections that fix what the weights of a model are, as a run's own config does."""
    return any(changes(Config(), section) == "weights" for section in raw)


def read_config(file: Path | None, assignments: Sequence[str] = (), base: Raw | None = None) -> Config:
    """The config of a file and overrides on top of `base`; what none of them sets has its default.

    Raises:
        InputError: See `read_yaml`, `override` and `parse`.
    """
    raw = merge(base or {}, read_yaml(file) if file else {})
    return parse(Config, renamed(override(renamed(raw), assignments)), REGISTRIES)


def renamed(raw: Raw) -> Raw:
    """`raw` with the names that stand for what older configs said otherwise, and no guidance as that of scale 1."""
    training, sampling = raw.get("training"), raw.get("sampling")
    if isinstance(training, dict) and isinstance(training.get("dequantise"), bool):
        raw = raw | {"training": training | {"dequantise": "uniform" if training["dequantise"] else "centre"}}
    if isinstance(sampling, dict) and sampling.get("guidance", "") is None:
        raw = raw | {"sampling": {key: value for key, value in sampling.items() if key != "guidance"}}
    return raw


def plain_config(config: Config) -> Raw:
    """The config as YAML values, every default written out."""
    resolved: Raw = plain(config, REGISTRIES)
    return resolved
