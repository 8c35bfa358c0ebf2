"""The sections `loss` and `training` of a config."""

import math
from dataclasses import dataclass
from typing import Literal

from sde_diffusion.errors import require, require_positive
from sde_diffusion.fields import option
from sde_diffusion.losses import Denoising, ImportanceTime, LikelihoodWeighting, Objective, TimeSampler, Weighting
from sde_diffusion.runtime.performance import Precision
from sde_diffusion.runtime.ranks import Ranks
from sde_diffusion.sde import SDE
from sde_diffusion.solvers import PerSampleODE, Solver
from sde_diffusion.training.dequantise import TrainingNoise, UniformNoise
from sde_diffusion.training.ema import check_averages

SNAPSHOTS = 16  # of a run, where nothing else is asked for


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The section `loss`: what is minimised, with λ(t), r(t) and ρ(e).

    Attributes:
        objective: The loss of one sample.
        weighting: The weight λ(t) of each time.
        time_sampler: The density r(t) from which training draws times; each loss is divided by it.
        distance: How an error e counts: its square (`l2`), its absolute value (`l1`), or `huber`, which is the square
            where e is small and the absolute value where it is large.
    """

    objective: Objective = Denoising()
    weighting: Weighting = LikelihoodWeighting()
    time_sampler: TimeSampler = ImportanceTime()
    distance: Literal["l2", "l1", "huber"] = "l2"

    def check(self, sde: SDE, draws: int) -> None:
        """Refuse what cannot work for a process in a run of so many draws.

        Raises:
            InputError: A weighting or time sampler that does not suit the process, the objective or the run.
        """
        self.weighting.check(sde)
        require(
            self.weighting.part() is None or not self.objective.learns_variance,
            "`loss.weighting` uncertainty divides by the expected error of ε, which is not all of this loss.objective; "
            "take another weighting, or loss.objective = denoising",
        )
        self.time_sampler.check(sde, self.weighting, draws=draws)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The section `training`.

    Attributes:
        steps: Optimizer steps in all. Give a larger number to continue a finished run.
        batch: Examples in a step, counted over all processes.
        accumulate: Number of parts in which a process runs its share of a batch. More parts need less memory.
        parallel: How several processes share the training: each holds the whole model (`ddp`) or a part of it (`fsdp`).
        optimizer: Adam, or AdamW, which decays the weights apart from the gradient.
        learning_rate: The learning rate after the warm-up.
        weight_decay: The optimizer's weight decay.
        beta2: The optimizer's decay of squared gradients.
        warmup: Steps in which the learning rate rises from zero.
        decay: The learning rate after the warm-up. `constant` keeps it. `cosine` lowers it to zero at `steps`.
            `cooldown` keeps it, then lowers it linearly to zero in the last share `cooldown` of the steps. Before the
            cooldown begins, `steps` may be changed freely (Hägele et al. 2024, arXiv:2405.18392).
        cooldown: Share of the steps in which `decay: cooldown` lowers the learning rate.
        clip: Largest norm of the gradient; a larger one is scaled down. Null for no limit.
        ema_decay: Decay rates of the exponential averages of the weights. Every command uses the first one by default.
        ema_profiles: Lengths σ_rel of two or more averages by a power of time. From these, `--ema LENGTH` finds the
            average of any length after training. Each costs as much memory as the weights. [] for none.
        snapshot_every: Steps between snapshots of the averages `ema_profiles`. A snapshot takes 2 bytes for each weight
            and average. Null for a sixteenth of `steps`; 0 for none.
        precision: Number format of the network's forward pass; everything else is computed in float32. `auto` takes
            bfloat16 where the device has instructions for it (CUDA from 8.0; CPUs with AVX512-BF16, AMX or Arm's BF16),
            and float32 elsewhere. A run keeps the precision in which it began unless another is named.
        dequantise: What training makes of discrete values. `true` and `false` are older names of `uniform` and
            `centre`.
        flip: Mirror each image with probability ½.
        label_dropout: Share of labels that training hides from a conditional model, so that it also learns p(x).
        workers: Processes on each rank that read data which do not fit into memory. Null for as many as there are free
            cores.
        changed_data: Whether a run may be resumed when its data set has another number of examples.
        log_every: Steps between lines of the log; 0 for none.
        validate_every: Steps between validations; 0 for none.
        validation_examples: Number of held-out examples in the validation loss.
        sample_every: Steps between pictures of samples; 0 for none.
        preview: The solver that draws these pictures.
        preview_count: Number of samples in a picture.
        save_every: Steps between checkpoints; 0 for none. The last step always writes one.
        keep: Number of newest checkpoints that are kept.
    """

    steps: int = option(1000, "nothing")
    batch: int = 64
    accumulate: int = 1
    parallel: Literal["ddp", "fsdp"] = option("ddp", "nothing")
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    beta2: float = 0.99
    warmup: int = 100
    decay: Literal["constant", "cosine", "cooldown"] = "cosine"
    cooldown: float = 0.2
    clip: float | None = 1.0
    ema_decay: tuple[float, ...] = (0.999,)
    ema_profiles: tuple[float, ...] = option((0.05, 0.1), of="model")
    snapshot_every: int | None = option(None, "nothing")
    precision: Precision = option("auto", "nothing")
    dequantise: TrainingNoise = option(UniformNoise(), "weights")
    flip: bool = False
    label_dropout: float = option(0.1, of="model")
    workers: int | None = option(None, "nothing")
    changed_data: Literal["refuse", "accept"] = option("refuse", "nothing")
    log_every: int = option(50, "nothing")
    validate_every: int = option(500, "nothing")
    validation_examples: int = option(512, "nothing")
    sample_every: int = option(500, "nothing")
    preview: Solver = option(PerSampleODE(rtol=1e-3, atol=1e-3), "nothing")
    preview_count: int = option(64, "nothing")
    save_every: int = option(500, "nothing")
    keep: int = option(2, "nothing")

    def __post_init__(self) -> None:
        require_positive(steps=self.steps, batch=self.batch, accumulate=self.accumulate, keep=self.keep)
        require_positive(learning_rate=self.learning_rate, preview_count=self.preview_count)
        require_positive(validation_examples=self.validation_examples)
        for name in ("warmup", "weight_decay", "log_every", "validate_every", "sample_every", "save_every"):
            require(getattr(self, name) >= 0, f"`{name}` must be ≥ 0, got {getattr(self, name)}")
        require((self.workers or 0) >= 0, f"`workers` must be ≥ 0 or null, got {self.workers}")
        require((self.snapshot_every or 0) >= 0, f"`snapshot_every` must be ≥ 0 or null, got {self.snapshot_every}")
        require(self.accumulate <= self.batch, f"`accumulate` must be ≤ `batch` = {self.batch}, got {self.accumulate}")
        require(0 <= self.label_dropout <= 1, f"`label_dropout` must be in [0, 1], got {self.label_dropout}")
        check_averages(self.ema_decay, self.ema_profiles)
        require(0 < self.cooldown <= 1, f"`cooldown` must be in (0, 1], got {self.cooldown}")
        require(0 <= self.beta2 < 1, f"`beta2` must be in [0, 1), got {self.beta2}")
        require(self.clip is None or self.clip > 0, f"`clip` must be > 0 or null, got {self.clip}")

    def in_shares(self, ranks: Ranks) -> bool:
        """Whether the model is parted among `ranks`."""
        return self.parallel == "fsdp" and not ranks.alone

    def check_ranks(self, ranks: int) -> None:
        """Refuse a batch that so many ranks cannot share evenly.

        Raises:
            InputError: They cannot, or the pieces of a rank's share would be empty.
        """
        share, rest = divmod(self.batch, ranks)
        near = f"{share * ranks} or {(share + 1) * ranks}" if share else f"{ranks}"
        require(
            rest == 0,
            f"`training.batch` must be a multiple of the number of ranks, {ranks}, for each takes as many rows, "
            f"got {self.batch}; take {near}",
        )
        require(
            self.accumulate <= share,
            f"`training.accumulate` must be ≤ {share}, the rows of each of {ranks} ranks in `training.batch` = "
            f"{self.batch}, got {self.accumulate}",
        )

    def every(self, name: str) -> int:
        """Steps between two of log, validate, sample, save and snapshot; 0 for never."""
        steps: int | None = getattr(self, f"{name}_every")
        return -(-self.steps // SNAPSHOTS) if steps is None else steps

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup))
        if self.decay == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / self.steps))
        if self.decay == "cooldown":
            rate *= min(1.0, (self.steps - step) / (self.cooldown * self.steps))
        return rate

    def falling_from(self) -> int:
        """The first step whose learning rate depends on `steps`; `steps` itself for a constant rate."""
        begins = {"constant": self.steps, "cosine": 0, "cooldown": math.ceil((1 - self.cooldown) * self.steps)}
        return begins[self.decay]
