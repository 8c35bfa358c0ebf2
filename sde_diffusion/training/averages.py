"""Which weights a checkpoint is used with: the last, a stored average, or one found from snapshots after training."""

from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require
from sde_diffusion.training.checkpoint import Checkpoint, load_checkpoint
from sde_diffusion.training.ema import DECAY, MAIN, PROFILE
from sde_diffusion.training.power_profile import LONGEST, Profile, synthesise
from sde_diffusion.training.run_folder import RunFolder, step_of


class Averaged(NamedTuple):
    """Weights by name, with the buffers of the model, and where they come from, in words."""

    weights: dict[str, Tensor]
    origin: str


def averaged(checkpoint: Checkpoint, which: bool | str = True, run: RunFolder | None = None) -> Averaged:
    """The weights of a checkpoint.

    Args:
        checkpoint: Of a run.
        which: True for the average of the run's first rate, False for the last weights. As text: a rate that the run
            averaged with (`0.9999`), a length σ_rel (`0.15`), or a length at an earlier step (`0.15@1000`). A length
            that the run tracked is in the checkpoint; any other is the combination of all snapshots that is nearest to
            it (see `power_profile.synthesise`), and costs reading them one by one.
        run: Where snapshots are.

    Raises:
        InputError: No such average, a step that the run has not reached, or no snapshots to find it from.
    """
    if which is False:
        last = checkpoint.group("model")
        require(bool(last), "the checkpoint holds averaged weights only; use it without --no-ema")
        return Averaged(last, "the last weights")
    main = checkpoint.group(MAIN)
    if which is True:
        return Averaged(main, "")
    length, step = _parse(which, checkpoint.meta["step"])
    rates, lengths = _stored(checkpoint)
    if length >= LONGEST:
        require(length in rates and "@" not in which, _no_rate(which, rates, lengths))
        stored = {} if length == rates[0] else checkpoint.group(f"{DECAY}.{length}")
        return Averaged(main | stored, f"average of rate {length}")
    if length in lengths and step == checkpoint.meta["step"]:
        return Averaged(main | checkpoint.group(f"{PROFILE}.{length}"), f"average of length {length}")
    found, origin = _reconstruct(checkpoint, Profile(length, step), lengths, run)
    return Averaged(main | found, origin)


def _parse(which: str, end: int) -> tuple[float, int]:
    text, at, when = which.partition("@")
    try:
        length, step = float(text), int(when) if at else end
    except ValueError:
        length, step = -1.0, end
    require(
        0 < length < 1,
        f"an average must be a length in (0, {LONGEST:.4f}), LENGTH or LENGTH@STEP, or the rate of one that the run "
        f"kept, got {which!r}",
    )
    within = not at or 0 < step <= end
    require(within, f"the step of an average must be in [1, {end}], where the checkpoint stands, got {step}")
    return length, step


def _stored(checkpoint: Checkpoint) -> tuple[list[float], list[float]]:
    """Rates and lengths of the averages in a checkpoint, for each in the order of the run's config."""
    options = checkpoint.meta.get("config", {}).get("training", {})
    rates = options.get("ema_decay", [])
    lengths = [length for length in options.get("ema_profiles", []) if checkpoint.group(f"{PROFILE}.{length}")]
    return rates if isinstance(rates, list) else [rates], lengths


def _no_rate(which: str, rates: list[float], lengths: list[float]) -> str:
    known = [*map(str, rates), *map(str, lengths)]
    return (
        f"the checkpoint has no average {which!r}; it has {', '.join(known)}, and others can be given by a length in "
        f"(0, {LONGEST:.4f})"
    )


def _reconstruct(
    checkpoint: Checkpoint, wanted: Profile, lengths: list[float], run: RunFolder | None
) -> tuple[dict[str, Tensor], str]:
    """Weights of the average `wanted`, and how they were found."""
    end = checkpoint.meta["step"]
    what = f"average of length {wanted.length} at step {wanted.time}"
    require(
        bool(lengths),
        f"the {what} cannot be found: the run kept no averages by a power of time; train with `training.ema_profiles`",
    )
    files = [path for path in (run.snapshots() if run else []) if step_of(path) < end]
    require(
        bool(files),
        f"the {what} is found from the snapshots of a run, and there are none {f'in {run.path}' if run else 'given'}; "
        f"give the run's folder, train with `training.snapshot_every` > 0, or take a length that was tracked: "
        f"{', '.join(map(str, lengths))}",
    )
    times = [*map(step_of, files), end]
    found = synthesise([Profile(length, time) for time in times for length in lengths], wanted)
    weights: dict[str, Tensor] = {}
    for i, path in enumerate([*files, None]):  # the averages of the checkpoint are the last of them
        held = checkpoint if path is None else load_checkpoint(path)
        for j, length in enumerate(lengths):
            part = held.group(f"{PROFILE}.{length}")
            require(bool(part), f"the snapshot {path} has no average of length {length}; it is of another run")
            _add(weights, part, found.coefficients[i * len(lengths) + j], path)
    return weights, f"{what}, from {len(files)} snapshots, its profile to {found.error:.2g}"


def _add(total: dict[str, Tensor], part: dict[str, Tensor], factor: float, path: object) -> None:
    """total ← total + factor · part, in float32."""
    if not total:
        total.update({name: torch.zeros_like(value, dtype=torch.float32) for name, value in part.items()})
    try:
        for name, value in total.items():
            value.add_(part[name].to(value), alpha=factor)
    except (KeyError, RuntimeError):
        raise InputError(f"the snapshot {path} does not fit the checkpoint; it is of another run") from None
