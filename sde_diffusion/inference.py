"""A trained model in use: samples, latents and densities in the units of the data."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion.classifier import NoisyClassifier
from sde_diffusion.config.build import Trained, choose_device
from sde_diffusion.config.parse import Raw
from sde_diffusion.config.schema import plain_config
from sde_diffusion.data.given import Label, labels_in_turn, labels_of, spans, state_tensor, value_tensor
from sde_diffusion.densities import bits_of
from sde_diffusion.errors import is_number, is_whole, require, require_whole, shown_type
from sde_diffusion.guidance import Guidance
from sde_diffusion.guided import guided
from sde_diffusion.likelihood import BitsPerDim, Divergence, mean_interval
from sde_diffusion.sampling import as_solver, decode, encode, sample
from sde_diffusion.sde import SDE
from sde_diffusion.slerp import slerp
from sde_diffusion.solvers import AdaptiveODE, Plan, SeededNoise, Solver, spend

BATCH = 64  # examples that go through the network at once, where nothing else is asked for


class Model:
    """A trained score model with the units of its data.

    Made by `load`. Sample i depends on the seed and on i alone, whatever the batch.

    Attributes:
        trained: What it was built from: config, parts beside the network.
        score_model: The score function (x, t) -> ∇ log p_t(x) in model coordinates; its `sde` is the process.
        spec: Shape, units and classes of the data.
        step: Training steps that the weights have seen.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.score_model, self.spec, self.step = trained.model, trained.spec, trained.step

    def __repr__(self) -> str:
        count = sum(weight.numel() for weight in self.score_model.parameters())
        process = type(self.sde).__name__
        return f"Model({self.spec.name} {self.spec.shape}, {process}, {count:,} parameters, on {self.device})"

    @property
    def sde(self) -> SDE:
        """The process."""
        return self.score_model.sde

    @property
    def config(self) -> Raw:
        """The config of the run, every default written out."""
        return plain_config(self.trained.config)

    @property
    def device(self) -> torch.device:
        """Where the weights are; results are there too."""
        weights: Tensor = next(iter(self.score_model.state_dict().values()))
        return weights.device

    def to(self, device: torch.device | str) -> "Model":
        """This model with its weights on `device`."""
        target = choose_device(str(device))
        for module in (self.score_model, *self.trained.parts.values()):
            module.to(target)
        return self

    def score(self, x: Tensor, t: Tensor | float, *, label: Label = None) -> Tensor:
        """∇ log p_t(x) in model coordinates, (B, *shape) float32. Costs one call of the network.

        Args:
            x: States at time `t` in model coordinates, (B, *shape).
            t: A number, () or (B,), from `sde.t_min` to `sde.t_max`.
            label: Class of the states, of a conditional model.

        Raises:
            InputError: States of another shape or not finite, a time outside (0, t_max], or an unknown class.
        """
        states = state_tensor(self.spec, "x", x, self.device)
        require(
            is_number(t) or (isinstance(t, Tensor) and t.shape in ((), (len(states),))),
            f"`t` must be a time or one for each of {len(states)} states, got {t!r}",
        )
        times = torch.as_tensor(t, dtype=torch.float32, device=self.device).expand(len(states))
        require(
            bool(((times > 0) & (times <= self.sde.t_max)).all()),
            f"`t` must be in (0, {self.sde.t_max:g}], got values from {times.min():.4g} to {times.max():.4g}",
        )
        return self.score_model.bind(labels_of(self.spec, label, len(states)))(states, times)

    def sample(
        self,
        count: int | None = None,
        *,
        solver: Solver | Plan | str | None = None,
        nfe: int | None = None,
        seed: int = 0,
        label: Label = None,
        guidance: float | Guidance | str | None = None,
        guide: "Model | NoisyClassifier | None" = None,
        t_end: float | None = None,
        denoise: bool | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
        start: int = 0,
        batch: int = BATCH,
        progress: bool = False,
    ) -> Tensor:
        """Draw samples in the units of the data, (count, *shape).

        Args:
            count: How many; by default as many as `label` has classes, or the config's number.
            solver: A name (`"em"`, `"ode"`, …), an object (`EulerMaruyama(steps=500)`) or what `for_budget` gives. By
                default the solver of the run's config.
            nfe: Network calls for each sample, the final denoising included. Chooses the solver, its grid and its
                end, or the number of steps of the `solver` that is given.
            seed: Sample i is the same for the same seed, whatever `count` and `batch`.
            label: Class of all samples, or a list that they take in turn: index, name, or `"all"`.

        Other args:
            guidance: Scale w of classifier-free guidance, 1 for none, or an object such as
                `ClassifierFree(scale=2, interval=(0.2, 5))`.
            guide: The worse model of `Autoguidance`, or the classifier of `ClassifierGuidance`.
            t_end, denoise, project: As in `sde_diffusion.sample`.
            start: Index of the first sample, to go on from earlier ones.
            batch: Samples drawn at once: a matter of speed and memory.
            progress: Whether to show a bar.

        Raises:
            InputError: An unknown solver or class, or options that exclude each other.
            SolveError: The solve failed; says when and for which sample.
        """
        options = self.trained.config.sampling
        labels = labels_in_turn(self.spec, label)
        if count is None:
            count = options.count if label is None else len(labels)
        require_whole(count=count, batch=batch)
        require(is_whole(start) and start >= 0, f"`start` must be a whole number ≥ 0, got {start!r}")
        require(is_whole(seed), f"`seed` must be a whole number, got {seed!r}")
        require(denoise is None or isinstance(denoise, bool), f"`denoise` must be true or false, got {denoise!r}")
        used, denoised, end = self._plan(solver, nfe, denoise, t_end)
        require(
            guide is None or isinstance(guide, Model | NoisyClassifier),
            f"`guide` must be what sde_diffusion.load gave, or a NoisyClassifier, got {shown_type(guide)}",
        )
        bind = None if guide is None else (guide.score_model if isinstance(guide, Model) else guide).bind
        trained = guided(self.trained, guidance, bind)
        rows = []
        with tqdm(total=count, unit="sample", disable=not progress) as bar:
            for first, size in spans(count, batch, start):
                own = labels[torch.arange(first, first + size) % len(labels)]
                drawn = sample(
                    trained.score_fn(own),
                    self.sde,
                    used,
                    (size, *self.spec.shape),
                    noise=SeededNoise(seed, start=first, device=self.device),
                    t_end=end,
                    denoise=denoised,
                    project=options.projection if project is None else project,
                )
                rows.append(self.spec.from_model(drawn.x))
                bar.update(size)
        return torch.cat(rows)

    def encode(self, values: Any, *, solver: Solver | str = "ode", label: Label = None, batch: int = BATCH) -> Tensor:
        """The latents at `sde.t_max` that the probability flow makes of data, (B, *shape) float32.

        Args:
            values: Examples in the units of the data, (B, *shape): a tensor or an array.
            solver: A solver without noise, by name or as an object.
            label: Class of the examples, of a conditional model.
            batch: Examples at once.

        Raises:
            InputError: Values of another shape, kind or range, or a solver that draws noise.
        """
        x = self.spec.to_model(value_tensor(self.spec, values, self.device))
        used, labels = as_solver(solver), labels_of(self.spec, label, len(x))
        parts = [
            encode(
                self.trained.score_fn(labels[first : first + size]),
                self.sde,
                used,
                x[first : first + size],
                start=first,
            ).x
            for first, size in spans(len(x), batch)
        ]
        return torch.cat(parts)

    def decode(
        self,
        latents: Tensor,
        *,
        solver: Solver | str = "ode",
        label: Label = None,
        denoise: bool = False,
        batch: int = BATCH,
    ) -> Tensor:
        """Latents (B, *shape) back to data in their own units: the inverse of `encode`.

        Args:
            latents: What `encode` gave, or numbers of your own: N(0, prior_std² I) at `sde.t_max`.
            solver, label, batch: As in `encode`.
            denoise: Return E[x_0 | x_t] at the last time; it is no longer the exact inverse then.
        """
        z = state_tensor(self.spec, "latents", latents, self.device)
        used, labels = as_solver(solver), labels_of(self.spec, label, len(z))
        parts = []
        for first, size in spans(len(z), batch):
            score_fn = self.trained.score_fn(labels[first : first + size])
            x = decode(score_fn, self.sde, used, z[first : first + size], denoise=denoise, start=first).x
            parts.append(self.spec.from_model(x))
        return torch.cat(parts)

    def interpolate(
        self, values: Any, others: Any, *, frames: int = 8, solver: Solver | str = "ode", label: Label = None
    ) -> Tensor:
        """From each of `values` to its partner in `others` through the latents, (B, frames, *shape).

        Args:
            values, others: Examples in the units of the data, (B, *shape) each.
            frames: Points on the way, both ends included.
            solver, label: As in `encode`.
        """
        require(is_whole(frames) and frames > 1, f"`frames` must be a whole number > 1, got {frames!r}")
        given = [value_tensor(self.spec, end, self.device) for end in (values, others)]
        require(len(given[0]) == len(given[1]), f"`others` must hold {len(given[0])} partners, got {len(given[1])}")
        ends = [self.encode(end, solver=solver, label=label) for end in given]
        path = slerp(ends[0], ends[1], torch.linspace(0, 1, frames, device=self.device))
        labels = labels_of(self.spec, label, len(path)).repeat_interleave(frames)
        return self.decode(path.flatten(0, 1), solver=solver, label=labels).reshape(path.shape)

    def log_prob(
        self,
        values: Any,
        *,
        label: Label = None,
        divergence: Divergence | str = "hutchinson",
        ode: AdaptiveODE | str | None = None,
        seed: int = 0,
        batch: int = BATCH,
    ) -> Tensor:
        """Log-density of each example in nats, in the units of the data, (B,) float64.

        That of continuous data is the density of the values. That of discrete data, of n + u with one draw of the
        dequantisation u, whose mean bounds log P(n) from below. Costs a solve of the probability flow with a
        Jacobian-vector product beside each evaluation.

        Args:
            values: Examples in the units of the data, (B, *shape): a tensor or an array.
            label: Class of the examples, for log p(x | y) of a conditional model.

        Other args:
            divergence: How the trace is found: `"hutchinson"` (one random direction), `"exact"`, or an object.
            ode: The integrator and its tolerances; the run's own by default.
            seed: Of dequantisation and random directions.
            batch: Examples at once.

        Raises:
            InputError: Values of another shape, kind or range, or that are not finite.
        """
        bits = bits_of(self.trained, values, label, divergence=divergence, ode=ode, seed=seed, batch=batch)
        return -bits * (self.spec.dims * math.log(2))

    def bits_per_dim(
        self,
        values: Any,
        *,
        label: Label = None,
        divergence: Divergence | str = "hutchinson",
        ode: AdaptiveODE | str | None = None,
        seed: int = 0,
        batch: int = BATCH,
    ) -> BitsPerDim:
        """Mean of −log₂ p/D over the examples, with the half-width of its 95 % interval; prints as `1.92 ± 0.03`.

        Arguments and errors are those of `log_prob`. The half-width of a single example is NaN.
        """
        bits = bits_of(self.trained, values, label, divergence=divergence, ode=ode, seed=seed, batch=batch)
        return BitsPerDim(*mean_interval(bits))

    def _plan(
        self, solver: Solver | Plan | str | None, nfe: int | None, denoise: bool | None, t_end: float | None
    ) -> tuple[Solver, bool, float | None]:
        """The solver, whether it ends with a denoising, and where it stops."""
        options = self.trained.config.sampling
        if isinstance(solver, Plan):
            require(nfe is None, f"`nfe` must be left out where `solver` is a plan, here of {solver.nfe} evaluations")
        elif nfe is not None:
            solver = spend(nfe, None if solver is None else as_solver(solver), denoise=denoise)
        if isinstance(solver, Plan):
            return solver.solver, solver.denoise, solver.t_end(self.sde) if t_end is None else t_end
        used, denoised = options.solver if solver is None else solver, options.denoise if denoise is None else denoise
        return as_solver(used), denoised, options.t_end if t_end is None else t_end
