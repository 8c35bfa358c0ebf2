"""Training as a function of (config, seed, step).

Every random draw of step k is keyed by (seed, k, row of the batch) and the order of the data is an index computation:
a run resumes from weights, averages, optimizer state, the time sampler's state and step alone, so that 20 steps are
10 steps, a kill and 10 more, bit for bit.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sde_diffusion.data import Batch, Dataset, training_batches
from sde_diffusion.errors import InputError, RunError, ToldError, require
from sde_diffusion.losses import DSMLoss
from sde_diffusion.model import ScoreModel
from sde_diffusion.rng import Draws, SampleStream, derive_seed
from sde_diffusion.runtime.performance import resolve_precision
from sde_diffusion.runtime.ranks import ALONE, Ranks, told_of_loss
from sde_diffusion.solvers import SeededNoise
from sde_diffusion.training.board import Board
from sde_diffusion.training.checkpoint import Checkpoint
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.optimizer import make_optimizer, moments_of, restore_moments
from sde_diffusion.training.options import LossConfig, TrainingConfig
from sde_diffusion.training.parallel import Engine, make_engine, shard
from sde_diffusion.training.preview import draw_samples
from sde_diffusion.training.run_folder import RunFolder
from sde_diffusion.training.shares import full, load_whole, released, whole
from sde_diffusion.training.speed import Progress, Speed
from sde_diffusion.training.step import StepLoss, pieces
from sde_diffusion.training.stop import StopRequest, stop_on_signals
from sde_diffusion.training.validation import HeldOut
from sde_diffusion.training.window import BINS, LossWindow

logger = logging.getLogger(__name__)

_LOSS, _DROPOUT, _LABELS = 0x7EA101, 0x7EA102, 0x7EA103  # purposes of random numbers


class Trainer:
    """One run: a model, its EMA and optimizer, and the loop that trains, reports and saves them.

    Args:
        model: On `device`; where it is parted among ranks (`training.parallel`), anywhere.
        train, validation: Splits of the data.
        config, loss: Sections of the config.
        folder: Where everything is written.
        seed: Of the run.
        meta: JSON-able facts that every checkpoint carries, such as config and data specification.
        parts: Modules by name, where the model is, that are trained with the model and saved with it, but not averaged.
        ranks: The processes that train it together; `run` and `validate` are called by all.

    Raises:
        InputError: A batch that the ranks cannot share.
    """

    loss_kind: ClassVar[type[StepLoss]] = StepLoss

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
        ranks: Ranks = ALONE,
    ) -> None:
        config.check_ranks(ranks.size)
        self.model, self.train = model, train
        self.held_out = HeldOut(validation.to(device), config, seed, device, ranks)
        self.config, self.loss, self.folder, self.ranks = config, loss, folder, ranks
        self.seed, self.device, self.meta = seed, device, meta
        rough = resolve_precision(config.precision, device) == "bfloat16"
        self.step_loss = self.loss_kind(model, parts, loss, levels=train.spec.levels, rough=rough)
        self.parts = self.step_loss.parts
        self.time_state = _to(loss.time_sampler.initial_state(model.sde), device)
        self.ema = EMA(model, *config.ema_decay, profiles=config.ema_profiles)
        self.sharded = config.in_shares(ranks)
        if self.sharded:
            shard(self.step_loss, ranks, device)
            self.ema.spread(lambda average: shard(average, ranks, device))
        self.window = LossWindow(model.sde.t_max, ranks)
        self.step, self._saved = 0, -1
        self.optimizer = make_optimizer(config, self.step_loss.trained())

    @cached_property
    def _engine(self) -> Engine:
        return make_engine(self.step_loss, self.ranks, sharded=self.sharded)

    def state(self) -> Checkpoint:
        """Everything that the rest of the run and its log depend on, as a checkpoint; that of rank 0 is whole.

        Raises:
            RunError: A loss was not finite.
        """
        tensors = {"window.sums": self.window.sums}
        tensors |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= self.ema.state()
        tensors |= {f"parts.{name}": value for name, value in self.parts.state_dict().items()}
        if self.time_state is not None:
            tensors["time_sampler.state"] = self.time_state
        moments = moments_of(self.optimizer, self.step_loss.trained())
        tensors |= {f"optimizer.{name}": value for name, value in moments.items()}
        return Checkpoint(whole(tensors, self.ranks), self.meta | {"step": self.step})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up `state()` of an earlier process, of any number of ranks.

        Raises:
            InputError: A checkpoint that lacks a part of the state.
        """
        parts, needed = checkpoint.group("parts"), self.parts.state_dict()
        require(
            parts.keys() == needed.keys(),
            f"the checkpoint must hold the parts that are trained beside the model, {list(needed)}, got {list(parts)}; "
            f"resume the run with its own config",
        )
        load_whole(self.model, checkpoint.group("model"))
        load_whole(self.parts, parts)
        self.time_state = _to(checkpoint.tensors.get("time_sampler.state", self.time_state), self.device)
        self.ema.restore(checkpoint)
        restore_moments(self.optimizer, self.step_loss.trained(), checkpoint.group("optimizer"))
        self.window.sums = checkpoint.tensors.get("window.sums", LossWindow(self.model.sde.t_max).sums)
        self.step = self._saved = checkpoint.meta["step"]

    def run(self) -> int | None:
        """Train from the current step to the last.

        Returns:
            The number of the signal that stopped the run early, or None. Either way a checkpoint has been written.

        Raises:
            RunError: A loss was not finite; the last checkpoint is the one before it. Or another rank has died.
            InputError: A file could not be read or written.
            ToldError: One of these on another rank than this, which has told it.
        """
        config, main = self.config, self.ranks.main
        with self.ranks.agreed():
            batches = training_batches(
                self.train,
                batch=config.batch,
                seed=self.seed,
                start=self.step,
                device=self.device,
                flip=config.flip,
                dequantise=config.dequantise.uniform,
                workers=config.workers,
                rows=self.ranks.rows(config.batch),
            )
            if main:
                self.folder.rewind(self.step)
        self.model.train()
        hidden = None if main else True
        with (
            nullcontext() if self.ranks.alone else told_of_loss(),
            stop_on_signals() as stop,
            logging_redirect_tqdm(),
            tqdm(total=config.steps, initial=self.step, unit="step", disable=hidden, dynamic_ncols=True) as bar,
            closing(Board(self.folder.path if main else None, self.step)) as board,
        ):
            self._loop(self.ranks.together(batches), stop, bar, board)
        return stop.signal

    def _loop(self, batches: Iterator[Batch], stop: StopRequest, bar: "tqdm[Any]", board: Board) -> None:
        speed = Speed(self.step, self.config.batch)
        progress = Progress(bar, self.config.batch, lines=self.ranks.main)
        while self.step < self.config.steps and (batch := self._next(batches, stop)) is not None:
            self.window.add(self.step, *self.train_step(batch))
            self.step += 1
            bar.update()
            rows: dict[str, Any] = {}
            if self._due("log") or self.step == self.config.steps:
                rows |= self.window.report() | {"learning_rate": self.config.learning_rate_at(self.step - 1)}
                rows |= self._learned_by_t()
                rows["images_per_second"] = speed.rate(self.step)
                progress.show(self.step, rows["loss"], rows["images_per_second"])
            with speed.paused():
                if self._due("validate") or self._due("sample") or self._due("snapshot"):
                    _ = self.window.sums  # stop at a non-finite loss before its weights are shown
                if self._due("validate"):
                    rows |= self.validate()
                    logger.info("step %d: validation loss %.4f", self.step, rows["validation_loss"])
                if rows:
                    self._on_main(lambda rows=rows: self.folder.log({"step": self.step} | rows))  # type: ignore[misc]
                    board.write(rows, self.step)
                if self._due("sample"):
                    self.draw_preview()
                if self._due("snapshot"):  # before the checkpoint: what is resumed from has all snapshots up to it
                    self._take_snapshot()
                if self._due("save"):
                    self._save()
        if self._saved != self.step:
            self._save()

    def _next(self, batches: Iterator[Batch], stop: StopRequest) -> Batch | None:
        """This rank's rows of the batch of the current step; None where any rank was asked to stop."""
        stop.signal = self.ranks.highest(stop.signal or 0) or None
        if stop.signal is not None:
            return None
        try:
            return next(batches)
        except (InputError, RunError, ToldError) as error:  # no rank is in the midst of a step
            foreseen = self.ranks.alone or isinstance(error, InputError) or getattr(error, "code", 1) == 2
            if foreseen and self._saved != self.step:
                self._save()
            raise

    def _due(self, name: str) -> bool:
        """Whether log, validate, sample, snapshot or save is to be done now: every so often, and at the end."""
        every = self.config.every(name)
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _on_main(self, write: Callable[[], object]) -> None:
        """Have rank 0 write a file, and all stop where it cannot."""
        with self.ranks.agreed():
            if self.ranks.main:
                write()

    def _take_snapshot(self) -> None:
        """Keep the averages by a power of time as they are now, in half precision."""
        if self.ema.lengths:
            tensors = {name: value.half() for name, value in whole(self.ema.profiles(), self.ranks).items()}
            self._on_main(lambda: self.folder.save_snapshot(Checkpoint(tensors, {"step": self.step})))

    def _save(self) -> None:
        state = self.state()
        self._on_main(lambda: self.folder.save(state, keep=self.config.keep))
        self._saved = self.step

    def train_step(self, batch: Batch) -> tuple[DSMLoss, Tensor]:
        """One optimizer step on this rank's rows of the batch of the current step, and the update of EMA and times.

        Returns:
            The terms of the loss of these rows, each (B,), and the norm of the gradient before clipping, ().
        """
        config, k, count = self.config, self.step, len(batch.x)
        label = self._hide_labels(batch.label, k)
        time_sampler, terms = self.loss.time_sampler.at(self.time_state), []
        fork = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(fork):
            for x, first in pieces(batch.x, config.accumulate):
                draws = self._draws(_LOSS, k, first=first, count=len(x), rows=count)
                torch.manual_seed(derive_seed(self.seed, _DROPOUT, k, draws.start))  # dropout knows no generators
                labels = None if label is None else label[first : first + len(x)]
                more = first + len(x) < count
                with self._engine.no_sync() if more else nullcontext():
                    part = self._engine.call(x, labels, draws, time_sampler)
                    torch.autograd.backward(part.trained.sum() / count)  # the ranks' gradients are averaged
                terms.append(part)
        trained = self.step_loss.trained().values()
        norm = torch.nn.utils.clip_grad_norm_(trained, config.clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(k)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model, k)
        mine = DSMLoss(*(torch.cat(parts).detach() for parts in zip(*terms, strict=True)))
        if self.time_state is not None:
            seen = self.ranks.gather(torch.stack([mine.t, mine.loss * mine.density], 1))
            self.time_state = self.loss.time_sampler.updated(
                self.model.sde, self.time_state, seen[:, 0], loss=seen[:, 1]
            )
        return mine, full(norm)

    def validate(self) -> dict[str, Any]:
        """Loss of the EMA weights on held-out examples at fixed times and noise, so that only the weights move it."""
        window = LossWindow(self.model.sde.t_max)
        window.add(self.step, self.held_out.terms(self.step_loss, self.ema.model), torch.zeros(()))
        report = window.report()
        return {f"validation_{key}": report[key] for key in ("loss", "error_by_t", "loss_by_t")}

    def draw_preview(self) -> None:
        """A picture of samples by the EMA weights from noise that is the same at every step."""
        with self.ranks.agreed(), released(self.ema.model):
            if not (self.ranks.main or self.sharded):
                return
            draw_samples(
                self.ema.model,
                self.train.spec,
                self.folder if self.ranks.main else None,
                step=self.step,
                solver=self.config.preview,
                count=self.config.preview_count,
                conditional=self.step_loss.conditional,
                noise=SeededNoise(self.seed, device=self.device),
            )

    def _learned_by_t(self) -> dict[str, Any]:
        """u(t) of a weighting that is learned, in the middle of the bins of the errors by t."""
        t = self.model.sde.t_max * (torch.arange(BINS, device=self.device) + 0.5) / BINS
        u = self.step_loss.log_variance(t)
        return {} if u is None else {"log_variance_by_t": u.tolist()}

    def _draws(self, *purpose: int, first: int, count: int, rows: int) -> Draws:
        """Random numbers of `count` rows from the row `first` of this rank's `rows`."""
        start, total = self.ranks.rank * rows + first, self.ranks.size * rows
        return SampleStream(self.seed, *purpose, start=start, count=count, total=total, device=self.device)

    def _hide_labels(self, label: Tensor | None, k: int) -> Tensor | None:
        if label is None or not self.step_loss.conditional or self.config.label_dropout == 0:
            return label
        coin = self._draws(_LABELS, k, first=0, count=len(label), rows=len(label)).uniform(())
        return torch.where(coin < self.config.label_dropout, -1, label)


def _to(state: Tensor | None, device: torch.device) -> Tensor | None:
    return None if state is None else state.to(device)
