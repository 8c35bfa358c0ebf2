"""Training that goes on where a run stands: the newest checkpoint, and what must not change on the way."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from sde_diffusion.checkpoints import stored_config
from sde_diffusion.config.build import resolve_precision_of
from sde_diffusion.config.parse import Raw, differences
from sde_diffusion.config.schema import Config, plain_config, read_config
from sde_diffusion.data import Dataset
from sde_diffusion.errors import InputError, require
from sde_diffusion.fields import Kind, changes
from sde_diffusion.runtime.ranks import ALONE, Ranks
from sde_diffusion.training import Checkpoint, RunFolder, Trainer, load_checkpoint

T = TypeVar("T", bound=Trainer)
REMEDIES: Mapping[str, str] = {
    "run": "continue it as it is, or choose another folder",
    "data": 'continue with what is there, in another order: training.changed_data = "accept"',
}
"""What to do about a run that is another, and about data of another length."""


def continued(
    build: Callable[[Config, RunFolder, torch.device, Ranks], T],
    config: Config,
    folder: RunFolder,
    device: torch.device,
    ranks: Ranks = ALONE,
    *,
    kind: Kind = "model",
    remedies: Mapping[str, str] = REMEDIES,
) -> tuple[T, Config, list[str]]:
    """A trainer that stands where the newest checkpoint of the run does, at step 0 for a new run.

    Args:
        build: Makes a trainer at step 0.
        folder: The run's, which this process holds; its `config.yaml` is written.
        ranks: The processes that train together.
        kind: What is trained.
        remedies: As `REMEDIES`, in the words of whoever asks.

    Returns:
        The trainer; the config with the run's own precision; and a line on each change that has an effect.

    Raises:
        InputError: The run is another, or its data have changed.
    """
    newest = ranks.share(folder.latest() if ranks.main else None)
    checkpoint = stored = None
    with ranks.agreed():
        if newest is not None:
            checkpoint = load_checkpoint(newest, device if ranks.alone else "cpu")
            stored = stored_config(checkpoint, newest)
        config = resolve_precision_of(config, device, stored["training"]["precision"] if stored else "auto")
    config = replace(config, training=replace(config.training, precision=ranks.share(config.training.precision)))
    notes: list[str] = []
    with ranks.agreed():
        if checkpoint is not None and stored is not None:
            notes += _require_same_run(stored, config, folder, kind, remedies["run"], step=checkpoint.meta["step"])
        trainer = build(config, folder, device, ranks)
        if checkpoint is not None:
            notes += _require_same_data(trainer.train, checkpoint, config, folder, remedies["data"])
            trainer.restore(checkpoint)
        if ranks.main:
            folder.write_config(plain_config(config))
    return trainer, config, notes


def _require_same_run(old: Raw, config: Config, folder: RunFolder, kind: Kind, remedy: str, *, step: int) -> list[str]:
    """Refuse to continue with what would be another run.

    Args:
        old: The config of the run so far.
        step: Where it stands.

    Returns:
        A line on each change that is allowed, but not without effect.

    Raises:
        InputError: A change of what the run is.
    """
    notes = []
    for key, (before, after) in differences(old, plain_config(config)).items():
        if key == "training.precision" and before == "auto":  # of an imported model, not trained so far
            continue
        if changes(config, key, kind) != "nothing":
            raise InputError(f"the run {folder.path} was started with {key} = {before}, not {after}; {remedy}")
        falling = min(config.training.falling_from(), read_config(None, (), old).training.falling_from())
        if key == "training.steps" and step > falling:
            notes.append(
                f"the learning rate now falls until step {after} instead of {before}; the result will differ from "
                f"that of a run of {after} steps from the start"
            )
        if key == "training.precision":
            notes.append(f"{key} is now {after} instead of {before}; the result will differ from that of either")
        if key.startswith("data."):
            notes.append(f"{key} is now {after} instead of {before}; the data are taken to be the same")
    return notes


def _require_same_data(
    now: Dataset, checkpoint: Checkpoint, config: Config, folder: RunFolder, remedy: str
) -> list[str]:
    """Refuse to continue with other data.

    Returns:
        A line on a change that is allowed.

    Raises:
        InputError: Data of another specification, or of another length unless `training.changed_data` accepts that.
    """
    spec, before = now.spec, checkpoint.meta["data"]
    require(
        before == spec.to_dict(),
        f"the data of the run {folder.path} have changed: {spec} now, {before} before",
    )
    count, then = len(now), checkpoint.meta.get("examples")
    if then is None or count == then:  # older checkpoints do not say
        return []
    require(
        config.training.changed_data == "accept",
        f"the training split of the run {folder.path} had {then} examples and now has {count}; restore the data, or "
        f"{remedy}",
    )
    return [f"there are {count} examples instead of {then}; from here on they come in another order"]
