"""Training as a function of (config, seed, step).

Every random draw of step k is keyed by (seed, k, row of the batch) and the order of the data is an index computation:
a run resumes from weights, averages, optimizer state, the time sampler's state and step alone, so that 20 steps are
10 steps, a kill and 10 more, bit for bit.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sde_diffusion.data import Batch, Dataset, sweep, training_batches
from sde_diffusion.errors import require
from sde_diffusion.likelihood import BinFlow
from sde_diffusion.likelihood.flow_dequantisation import PART
from sde_diffusion.losses import DSMLoss, TimeSampler, learned_loss
from sde_diffusion.model import ScoreModel
from sde_diffusion.perf import like, resolve_precision
from sde_diffusion.rng import Draws, SampleStream, derive_seed
from sde_diffusion.solvers import SeededNoise
from sde_diffusion.training.board import Board
from sde_diffusion.training.checkpoint import Checkpoint
from sde_diffusion.training.dequantise import flow_dequantised
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.forward import Forward
from sde_diffusion.training.options import LossConfig, TrainingConfig
from sde_diffusion.training.preview import draw_samples
from sde_diffusion.training.run_folder import RunFolder
from sde_diffusion.training.speed import Speed
from sde_diffusion.training.stop import StopRequest, stop_on_signals
from sde_diffusion.training.window import BINS, LossWindow

WEIGHTING = "weighting"  # the part of a weighting that is learned
logger = logging.getLogger(__name__)

_LOSS, _DROPOUT, _LABELS, _VALIDATION = 0x7EA101, 0x7EA102, 0x7EA103, 0x7EA104  # purposes of random numbers


class Trainer:
    """One run: a model, its EMA and optimizer, and the loop that trains, reports and saves them.

    Args:
        model: On `device`.
        train, validation: Splits of the data.
        config, loss: Sections of the config.
        folder: Where everything is written.
        seed: Of the run.
        meta: JSON-able facts that every checkpoint carries, such as config and data specification.
        parts: Modules by name, on `device`, that are trained with the model and saved with it, but not averaged.
    """

    def __init__(
        self,
        model: ScoreModel,
        train: Dataset,
        validation: Dataset,
        *,
        config: TrainingConfig,
        loss: LossConfig,
        folder: RunFolder,
        seed: int,
        device: torch.device,
        meta: dict[str, Any],
        parts: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.model, self.train, self.validation = model, train, validation.to(device)
        self.config, self.loss, self.folder = config, loss, folder
        self.seed, self.device, self.meta = seed, device, meta
        self.rough = resolve_precision(config.precision, device) == "bfloat16"
        self.parts = nn.ModuleDict(parts)
        self.time_state = _to(loss.time_sampler.initial_state(model.sde), device)
        self.ema = EMA(model, *config.ema_decay, profiles=config.ema_profiles)
        self.window = LossWindow(model.sde.t_max)
        self.step, self._saved = 0, -1
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
        self.optimizer = optimizer(
            self._trained().values(), betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True
        )

    def state(self) -> Checkpoint:
        """Everything that the rest of the run and its log depend on, as a checkpoint.

        Raises:
            RunError: A loss was not finite.
        """
        tensors = {"window.sums": self.window.sums}
        tensors |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= self.ema.state()
        tensors |= {f"parts.{name}": value for name, value in self.parts.state_dict().items()}
        if self.time_state is not None:
            tensors["time_sampler.state"] = self.time_state
        for name, parameter in self._trained().items():
            tensors |= {f"optimizer.{key}.{name}": v for key, v in self.optimizer.state[parameter].items()}
        return Checkpoint(tensors, self.meta | {"step": self.step})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up `state()` of an earlier process.

        Raises:
            InputError: A checkpoint that lacks a part of the state.
        """
        parts, needed = checkpoint.group("parts"), self.parts.state_dict()
        require(
            parts.keys() == needed.keys(),
            f"the checkpoint must hold the parts that are trained beside the model, {list(needed)}, got {list(parts)}; "
            f"resume the run with its own config",
        )
        self.model.load_state_dict(checkpoint.group("model"))
        self.parts.load_state_dict(parts)
        self.time_state = _to(checkpoint.tensors.get("time_sampler.state", self.time_state), self.device)
        self.ema.restore(checkpoint)
        moments = checkpoint.group("optimizer")
        keys = {name.partition(".")[0] for name in moments}
        for name, parameter in self._trained().items():
            self.optimizer.state[parameter] = {key: like(moments[f"{key}.{name}"], parameter) for key in keys}
        self.window.sums = checkpoint.tensors.get("window.sums", LossWindow(self.model.sde.t_max).sums)
        self.step = self._saved = checkpoint.meta["step"]

    def _trained(self) -> dict[str, nn.Parameter]:
        """What the optimizer moves, by name: the model's weights and those of the parts."""
        return dict(self.model.named_parameters()) | {f"parts.{n}": p for n, p in self.parts.named_parameters()}

    def run(self) -> int | None:
        """Train from the current step to the last.

        Returns:
            The number of the signal that stopped the run early, or None. Either way a checkpoint has been written.

        Raises:
            RunError: A loss was not finite; the last checkpoint is the one before it.
            InputError: A file could not be read or written.
        """
        config = self.config
        batches = training_batches(
            self.train,
            batch=config.batch,
            seed=self.seed,
            start=self.step,
            device=self.device,
            flip=config.flip,
            dequantise=config.dequantise.uniform,
            workers=config.workers,
        )
        self.folder.rewind(self.step)
        self.model.train()
        with (
            stop_on_signals() as stop,
            logging_redirect_tqdm(),
            tqdm(total=config.steps, initial=self.step, unit="step", disable=None, dynamic_ncols=True) as bar,
            closing(Board(self.folder.path, self.step)) as board,
        ):
            self._loop(batches, stop, bar, board)
        return stop.signal

    def _loop(self, batches: Iterator[Batch], stop: StopRequest, bar: "tqdm[Any]", board: Board) -> None:
        speed = Speed(self.step, self.config.batch)
        while self.step < self.config.steps and stop.signal is None:
            batch = next(batches)
            self.window.add(self.step, *self.train_step(batch))
            self.step += 1
            bar.update()
            rows: dict[str, Any] = {}
            if self._due("log") or self.step == self.config.steps:
                rows |= self.window.report() | {"learning_rate": self.config.learning_rate_at(self.step - 1)}
                rows |= self._learned_by_t()
                rows["images_per_second"] = speed.rate(self.step)
                bar.set_postfix_str(f"loss {rows['loss']:.4g}, {rows['images_per_second']:.0f} img/s")
            with speed.paused():
                if self._due("validate") or self._due("sample") or self._due("snapshot"):
                    _ = self.window.sums  # stop at a non-finite loss before its weights are shown
                if self._due("validate"):
                    rows |= self.validate()
                    logger.info("step %d: validation loss %.4f", self.step, rows["validation_loss"])
                if rows:
                    self.folder.log({"step": self.step} | rows)
                    board.write(rows, self.step)
                if self._due("sample"):
                    self.draw_preview()
                if self._due("snapshot"):  # before the checkpoint: what is resumed from has all snapshots up to it
                    self._take_snapshot()
                if self._due("save"):
                    self._save()
        if self._saved != self.step:
            self._save()

    def _due(self, name: str) -> bool:
        """Whether log, validate, sample, snapshot or save is to be done now: every so often, and at the end."""
        every = self.config.every(name)
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _take_snapshot(self) -> None:
        """Keep the averages by a power of time as they are now, in half precision."""
        if self.ema.lengths:
            tensors = {name: value.half() for name, value in self.ema.profiles().items()}
            self.folder.save_snapshot(Checkpoint(tensors, {"step": self.step}))

    def _save(self) -> None:
        self.folder.save(self.state(), keep=self.config.keep)
        self._saved = self.step

    def train_step(self, batch: Batch) -> tuple[DSMLoss, Tensor]:
        """One optimizer step on the batch of the current step, and the update of the EMA and the time sampler.

        Returns:
            The terms of the loss, each (B,), and the norm of the gradient before clipping, ().
        """
        config, k = self.config, self.step
        label = self._hide_labels(batch.label, k)
        time_sampler, terms = self.loss.time_sampler.at(self.time_state), []
        fork = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(fork):
            for x, first in _pieces(batch.x, config.accumulate):
                torch.manual_seed(derive_seed(self.seed, _DROPOUT, k, first))  # dropout knows no generators
                labels = None if label is None else label[first : first + len(x)]
                draws = self._draws(_LOSS, k, start=first, count=len(x), total=len(batch.x))
                part = self._learned(self._terms(self.model, x, labels, draws, time_sampler))
                (part.trained.sum() / len(batch.x)).backward()  # type: ignore[no-untyped-call]
                terms.append(part)
        norm = torch.nn.utils.clip_grad_norm_(self._trained().values(), config.clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(k)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model, k)
        whole = DSMLoss(*(torch.cat(parts).detach() for parts in zip(*terms, strict=True)))
        if self.time_state is not None:
            self.time_state = self.loss.time_sampler.updated(
                self.model.sde, self.time_state, whole.t, loss=whole.loss * whole.density
            )
        return whole, norm

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Loss of the EMA weights on held-out examples at fixed times and noise, so that only the weights move it."""
        found, total = [], min(len(self.validation), self.config.validation_examples)
        for start, batch in sweep(
            self.validation,
            batch=self.config.batch,
            seed=self.seed,
            device=self.device,
            dequantise=self.config.dequantise.uniform,
            limit=self.config.validation_examples,
        ):
            draws = self._draws(_VALIDATION, start=start, count=len(batch.x), total=total)
            found.append(self._terms(self.ema.model, batch.x, batch.label, draws, self.loss.time_sampler))
        window = LossWindow(self.model.sde.t_max)
        window.add(self.step, DSMLoss(*(torch.cat(parts) for parts in zip(*found, strict=True))), torch.zeros(()))
        report = window.report()
        return {f"validation_{key}": report[key] for key in ("loss", "error_by_t", "loss_by_t")}

    def draw_preview(self) -> None:
        """A picture of samples by the EMA weights from noise that is the same at every step."""
        draw_samples(
            self.ema.model,
            self.train.spec,
            self.folder,
            step=self.step,
            solver=self.config.preview,
            count=self.config.preview_count,
            conditional=self._conditional,
            noise=SeededNoise(self.seed, device=self.device),
        )

    @property
    def _conditional(self) -> bool:
        return bool(getattr(self.model.net, "classes", 0))

    def _terms(
        self,
        model: ScoreModel,
        x: Tensor,
        label: Tensor | None,
        draws: Draws,
        time_sampler: TimeSampler,
    ) -> DSMLoss:
        x, cost = self._dequantised(x, draws)
        terms = self.loss.objective(
            Forward(model, label if self._conditional else None, self.rough),
            model.sde,
            x,
            weighting=self.loss.weighting,
            time_sampler=time_sampler,
            distance=self.loss.distance,
            generator=draws,
            levels=self.train.spec.levels,
        )
        loss = terms.loss + cost
        return terms._replace(loss=loss, trained=loss)

    def _dequantised(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor | float]:
        """The points of a batch and what they add to the loss: nothing, if no flow draws them."""
        if PART not in self.parts:
            return x, 0.0
        flow = self.parts[PART]
        assert isinstance(flow, BinFlow)
        return flow_dequantised(flow, self.model.sde, x, generator=draws)

    def _learned(self, terms: DSMLoss) -> DSMLoss:
        """The terms with what a weighting that is learned makes of them."""
        if WEIGHTING not in self.parts:
            return terms
        learned = learned_loss(self.model.sde, self.loss.weighting, self.parts[WEIGHTING], terms)
        return terms._replace(trained=learned)

    @torch.no_grad()
    def _learned_by_t(self) -> dict[str, Any]:
        """u(t) of a weighting that is learned, in the middle of the bins of the errors by t."""
        if WEIGHTING not in self.parts:
            return {}
        t = self.model.sde.t_max * (torch.arange(BINS, device=self.device) + 0.5) / BINS
        return {"log_variance_by_t": self.parts[WEIGHTING](self.model.sde, t).tolist()}

    def _draws(self, *purpose: int, start: int, count: int, total: int) -> Draws:
        return SampleStream(self.seed, *purpose, start=start, count=count, total=total, device=self.device)

    def _hide_labels(self, label: Tensor | None, k: int) -> Tensor | None:
        if label is None or not self._conditional or self.config.label_dropout == 0:
            return label
        coin = self._draws(_LABELS, k, start=0, count=len(label), total=len(label)).uniform(())
        return torch.where(coin < self.config.label_dropout, -1, label)


def _pieces(x: Tensor, count: int) -> Iterator[tuple[Tensor, int]]:
    """About equal pieces of `x` (B, *D), `count` at most, each with the number of its first row."""
    first = 0
    for piece in x.chunk(count):
        yield piece, first
        first += len(piece)


def _to(state: Tensor | None, device: torch.device) -> Tensor | None:
    return None if state is None else state.to(device)
