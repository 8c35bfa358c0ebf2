"""What a training run will take: `train --dry-run` measures a few real steps and says what follows from them.

FLOPs are counted on a network without numbers (torch's meta device), memory and time on a trainer of the config itself,
in a folder that goes again. Nothing is measured that would not fit or would take minutes.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sde_diffusion.config.build import Config, build_trainer, count_parameters
from sde_diffusion.data import Batch, DataSpec, training_batches
from sde_diffusion.runtime.memory import Growth, free_memory, is_shortage, readable
from sde_diffusion.runtime.performance import recompute, resolve_precision
from sde_diffusion.training import RunFolder, Trainer

SECONDS = 1.0  # for which steps are timed
STEPS = 3  # timed at most
MOST_FLOPS = 3e12  # of a step of one example above which nothing is timed on the CPU

Line = tuple[str, str]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of products and convolutions for one example; a multiplication with addition is two.

    Attributes:
        forward: Of the network.
        step: Of a training step: forward and gradient.
    """

    forward: int
    step: int


def print_estimate(config: Config, device: torch.device, tell: Callable[[str], object], *, ranks: int = 1) -> None:
    """Print parameters, FLOPs, memory, time and the largest batch, line by line.

    Args:
        tell: Takes a line.
        ranks: Number of processes that share a batch.

    Raises:
        InputError: Data that cannot be read, or a config that cannot be trained.
    """
    try:
        lines = list(estimate(config, device, ranks))
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        tell("no estimate: out of memory")
        return
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        tell(f"{name:<{width}}  {value}")


def estimate(config: Config, device: torch.device, ranks: int = 1) -> Iterator[Line]:
    """Names and values of all that can be said before a run.

    Raises:
        InputError: Data that are not there, or a config that cannot be trained.
    """
    spec, options = config.data.load("train").spec, config.training
    net, free = without_numbers(config, spec), free_memory(device)
    flops, again = count_flops(net, spec), config.perf.checkpointing
    step = flops.step + again * flops.forward
    yield "parameters", f"{count_parameters(net):,}"
    yield "FLOPs", f"{_si(flops.forward)} an example forward, {_si(step * options.batch)} a step"
    needs = needed(config, net, spec, device)
    piece, share = piece_of(config, ranks), math.ceil(options.batch / ranks)
    yield "memory", f"about {readable(needs.at(piece))} for {_pieces(share, piece)}; {readable(free)} are free"
    parts = ", ".join(f"{name} {readable(size)}" for name, size in standing_bytes(config, net).items())
    yield "", f"{parts}; {readable(needs.each)} for each example"
    largest, recomputing = needs.largest(device, free), ""
    if not again:
        other = replace(config, perf=replace(config.perf, checkpointing=True))
        recomputing = f"; {needed(other, net, spec, device).largest(device, free):,} with perf.checkpointing"
    yield "largest batch", f"about {largest:,} in one piece{recomputing}"
    if largest == 0:
        yield "time", "not measured: not even a batch of one would fit"
    elif device.type == "cpu" and step > MOST_FLOPS:
        yield "time", f"not measured: a step of one example takes {_si(step)} FLOPs"
    else:
        seconds = seconds_of_step(config, device, share, most=min(piece, largest))
        yield "time", f"about {_duration(seconds)} a step, {options.batch / seconds:,.3g} examples/s"
        yield "", f"{_duration(seconds * options.steps)} for {options.steps:,} steps, without validation and pictures"


def needed(config: Config, net: nn.Module, spec: DataSpec, device: torch.device) -> Growth:
    """Bytes of a run by the examples that go through the network at once.

    What the network keeps for the gradient is measured: on CUDA in steps of a trainer, elsewhere on the network without
    numbers, `net`, which is left with activation checkpointing if `config` asks for it.
    """
    if device.type == "cuda":
        with trial(config, device) as run:
            kept = Growth.measured(device, run.step, most=64)
    else:
        if config.perf.checkpointing:
            recompute(net)
        rough = resolve_precision(config.training.precision, device) == "bfloat16"
        seen = copy.deepcopy(net).to(torch.bfloat16) if rough else net
        meta = torch.device("meta")
        kept = Growth.measured(meta, lambda count: _forward_and_back(seen, spec, count), most=2**20, first=2**12)
    return Growth(sum(standing_bytes(config, net).values()), kept.each)


def piece_of(config: Config, ranks: int) -> int:
    """Examples that go through the network at once in each process."""
    return math.ceil(config.training.batch / (ranks * config.training.accumulate))


def does_not_fit(config: Config, device: torch.device, ranks: int) -> str:
    """What to say where memory did not suffice for training: the largest batch that fits, and what helps."""
    spec, piece = config.data.load("train").spec, piece_of(config, ranks)
    net = without_numbers(config, spec)
    largest = needed(config, net, spec, device).largest(device, free_memory(device))
    if largest >= piece:
        return (
            f"out of memory on {device}, although a batch of {piece} should fit (about {largest:,} would); end what "
            "else runs there, or lessen training.preview_count; the last checkpoint is sound"
        )
    more = math.ceil(config.training.accumulate * piece / max(largest, 1))
    helps = [] if config.perf.checkpointing else ["perf.checkpointing=true"]
    helps += [f"training.accumulate={more}", "a smaller training.batch"] if largest else ["a smaller network"]
    return (
        f"a batch of {piece} does not fit into the memory of {device}: about {largest:,} would; set "
        f"{' or '.join(helps)}; the last checkpoint is sound"
    )


def seconds_of_step(config: Config, device: torch.device, batch: int, *, most: int) -> float:
    """Of a step of `batch` examples: timed, or if that would take too long or more than `most` at once, reckoned from
    smaller steps."""
    with trial(config, device) as run:
        run.step(1)  # the optimizer makes its state, kernels are chosen
        one = now = run.timed(1)
        count = 1
        while count < min(batch, most) and (count == 1 or now < SECONDS / STEPS):  # one point tells no slope
            count = min(4 * count, batch, most)
            run.step(count)
            now = run.timed(count)
    if count == 1:
        return one * batch
    return now + max(now - one, 0.0) / (count - 1) * (batch - count)


class Trial:
    """A trainer at hand to be measured; what it learns is thrown away."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._count = trainer, 0
        trainer.model.train()

    def step(self, count: int) -> None:
        """A training step on `count` real examples in one piece."""
        if count != self._count:
            self._batch, self._count = self._take(count), count
        self._trainer.train_step(self._batch)

    def timed(self, count: int) -> float:
        """Median of a few steps, in seconds."""
        seconds: list[float] = []
        while len(seconds) < STEPS and sum(seconds) < SECONDS:
            start = time.perf_counter()
            self.step(count)
            if self._trainer.device.type == "cuda":
                torch.cuda.synchronize(self._trainer.device)
            seconds.append(time.perf_counter() - start)
        return median(seconds)

    def _take(self, count: int) -> Batch:
        trainer, options = self._trainer, self._trainer.config
        batches = training_batches(
            trainer.train,
            batch=count,
            seed=trainer.seed,
            device=trainer.device,
            flip=options.flip,
            dequantise=options.dequantise.uniform,
        )
        return next(batches)


@contextmanager
def trial(config: Config, device: torch.device) -> Iterator[Trial]:
    """A trainer of this config, uncompiled, on all of its data, in a folder that goes again."""
    options = replace(config.training, accumulate=1)
    plain = replace(config, training=options, perf=replace(config.perf, compile="never"))
    with TemporaryDirectory() as folder:
        yield Trial(build_trainer(plain, RunFolder(Path(folder)), device))


def without_numbers(config: Config, spec: DataSpec) -> nn.Module:
    """The network, with shapes alone."""
    classes = len(spec.classes) if config.model.conditional else 0
    with torch.device("meta"):
        net: nn.Module = config.model.network(spec.shape, classes=classes, heads=1 + config.model.learned_variance)
    return net.to("meta")


def count_flops(net: nn.Module, spec: DataSpec) -> Flops:
    """Those of a network on torch's meta device, for one example."""
    with FlopCounterMode(display=False) as counted:
        out = net(*_inputs(net, spec, 1))
        forward = counted.get_total_flops()
        out.sum().backward()
    net.zero_grad()
    return Flops(forward, counted.get_total_flops())


def _inputs(net: nn.Module, spec: DataSpec, count: int) -> tuple[Tensor, Tensor]:
    like = next(net.parameters())
    return like.new_empty(count, *spec.shape), like.new_empty(count)


def _forward_and_back(net: nn.Module, spec: DataSpec, count: int) -> None:
    net(*_inputs(net, spec, count)).sum().backward()
    net.zero_grad()


def _pieces(batch: int, piece: int) -> str:
    return f"a batch of {batch}" if piece == batch else f"a batch of {batch} in pieces of {piece}"


def standing_bytes(config: Config, net: nn.Module) -> dict[str, int]:
    """What is in memory all through a run, whatever the batch."""
    weights = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
    moving, options = sum(parameter.nbytes for parameter in net.parameters()), config.training
    averages = len(options.ema_decay) + len(options.ema_profiles)
    return {"weights": weights, "gradients": moving, "optimizer": 2 * moving, f"{averages} averages": averages * moving}


def _si(count: float) -> str:
    """1.23 G, 45.6 T."""
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000:
            return f"{count:.3g} {unit}".rstrip()
        count /= 1000
    return f"{count:,.3g} P"


def _duration(seconds: float) -> str:
    """12.3 ms, 4.56 s, 12 min, 3 h 05 min."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60:02} min"
