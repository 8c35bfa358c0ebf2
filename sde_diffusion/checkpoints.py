"""From a path to a trained model: find the checkpoint, read its config, build the model.

A checkpoint may hold a network or a process of the user's own class, which no registry describes. Its fact `own` says
which, and only a program that gives that object can load it.
"""

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sde_diffusion.arguments import as_process
from sde_diffusion.config.build import MODEL, Trained, load_trained, read_config
from sde_diffusion.config.parse import Raw, Recipe
from sde_diffusion.config.schema import Config, ModelConfig, plain_config
from sde_diffusion.data import DATASETS, DataSource, DataSpec
from sde_diffusion.data.sources.arrays import Arrays
from sde_diffusion.errors import InputError, require, require_kind
from sde_diffusion.fields import changes
from sde_diffusion.model import NOISE_CONDITIONINGS, PREDICTIONS, ScoreModel
from sde_diffusion.networks import NETWORKS, Network
from sde_diffusion.pretrained import PRETRAINED, name_of, pretrained
from sde_diffusion.registry import name_of as row_of
from sde_diffusion.runtime.atomic_write import as_path
from sde_diffusion.sde import SDE, SDES
from sde_diffusion.training import Checkpoint, RunFolder, load_checkpoint, newest_run, save_checkpoint
from sde_diffusion.training.ema import MAIN

logger = logging.getLogger(__name__)

RUNS = Path("runs")
PRETRAINED_PREFIX = "pretrained:"


def find_checkpoint(given: Path | str | None) -> Path:
    """The checkpoint file that `given` names: a file, a run's folder, `pretrained:NAME`, or, if None, the newest run.

    Raises:
        InputError: There is none.
    """
    if isinstance(given, str) and given.startswith(PRETRAINED_PREFIX):
        return pretrained(given.removeprefix(PRETRAINED_PREFIX))
    given = None if given is None else as_path("path", given)
    if given is not None and not given.is_dir():
        require(
            given.exists() or str(given) not in PRETRAINED,
            f"there is no checkpoint at {given}; the model of this name that comes with the package is "
            f"{PRETRAINED_PREFIX}{given}",
        )
        return given
    run = newest_run(RUNS) if given is None else RunFolder(given)
    found = run.latest() if run else None
    if found is None:
        where = RUNS if given is None else given
        raise InputError(f"there is no checkpoint in {where}; train one first: sde-diffusion train --sde vp")
    return found


def home(path: Path) -> Path:
    """The folder of the run that a checkpoint belongs to: its snapshots are there, and results about it go there."""
    if ours := name_of(path):
        return RUNS / "pretrained" / ours
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def stored_config(checkpoint: Checkpoint, path: Path) -> Raw:
    """The config of a checkpoint, with the defaults of options that are younger than it.

    Where this version does not know options that do not fix the weights, their defaults take their place, and a line
    of the log says so.

    Raises:
        InputError: It has no config, or another option that this version does not know.
    """
    require(
        isinstance(checkpoint.meta.get("config"), dict) and "data" in checkpoint.meta,
        f"the checkpoint {path} does not say which model it holds (`config` and `data` are missing), as one that a "
        f"program wrote without them; write it by sde_diffusion.save or sde_diffusion.Trainer",
    )
    raw = deepcopy(checkpoint.meta["config"])
    try:
        return plain_config(read_config(None, (), raw))
    except InputError as error:
        try:
            config = plain_config(read_config(None, (), _without_components(raw)))
        except InputError as other:
            raise InputError(f"the checkpoint {path} is of another version of this package: {other}") from None
        logger.warning("%s is of another version: its solvers give way to the defaults (%s)", path, error)
        return config


def _without_components(raw: Raw) -> Raw:
    """`raw` without what older versions may spell otherwise: parts with options of their own, and keys not known today.

    Only of that of which another value changes nothing of the weights.
    """
    now = Config()

    def stays(section: str, key: str, value: object) -> bool:
        known = hasattr(getattr(now, section), key)
        return changes(now, f"{section}.{key}") != "nothing" or (known and not isinstance(value, dict))

    return {
        section: {key: value for key, value in options.items() if stays(section, key, value)}
        if isinstance(options, dict) and section in ("sampling", "likelihood", "training")
        else options
        for section, options in raw.items()
    }


def require_described(checkpoint: Checkpoint, path: Path) -> None:
    """Refuse a checkpoint whose network or process is of the user's own class.

    Raises:
        InputError: It is; names the class and says how to load it.
    """
    own: dict[str, str] = checkpoint.meta.get("own", {})
    if own:
        what = " and ".join(f"the {kind} {name}" for kind, name in own.items())
        given = ", ".join(f"{kind}=…" for kind in own)
        raise InputError(
            f"{path} holds a model with {what}, which no table of this package has; "
            f"load it from Python by sde_diffusion.load(path, {given})"
        )


def source_of(spec: DataSpec) -> DataSource:
    """The data set of a spec's name with its defaults; for a program's own tensors, files of numbers in these units."""
    row = DATASETS.get(spec.name, Arrays)
    if row is not Arrays:
        return row()
    source = Arrays(levels=spec.levels, classes=spec.classes)
    if spec.levels is not None:
        return source
    shift, scale = (value if isinstance(value, tuple) else (value,) for value in (spec.shift, spec.scale))
    return replace(source, shift=shift, scale=scale)


def facts_of(model: ScoreModel, spec: DataSpec, config: Config | None = None) -> dict[str, Any]:
    """What a checkpoint must say of `model` so that it can be built again: `config`, `data` and `own`.

    Args:
        model: Its network and process may be of any class.
        spec: The units of the data.
        config: A config whose other sections hold; the defaults if None.
    """
    net, own, options = model.net, {}, {}
    classes = int(getattr(net, "classes", 0))
    require(
        classes in (0, len(spec.classes)),
        f"`units` must name the {classes} classes that the network knows, got {len(spec.classes)}; give classes=(…)",
    )
    options["prediction"] = row_of(PREDICTIONS, model.predict)
    options["conditioning"] = row_of(NOISE_CONDITIONINGS, model.c_noise)
    network = ModelConfig().network
    if isinstance(net, Network) and type(net) in NETWORKS.values():
        network = Recipe(type(net), net.options)
    else:
        own["net"] = type(net).__name__
    if type(model.sde) not in SDES.values():
        own["sde"] = type(model.sde).__name__
    section = ModelConfig(
        network=network,
        sigma_data=model.sigma_data,
        conditional=classes > 0,
        learned_variance=model.learned_variance,
        scale_input=model.scale_input,
        **options,
    )
    if config is None:
        config = Config(data=source_of(spec))
    config = replace(config, model=section)
    config = config if "sde" in own else replace(config, sde=model.sde)
    facts: dict[str, Any] = {"config": plain_config(config), "data": spec.to_dict()}
    return facts | ({"own": own} if own else {})


def load(
    path: Path | str | None,
    *,
    device: torch.device,
    ema: bool | str = True,
    net: nn.Module | None = None,
    sde: SDE | None = None,
) -> Trained:
    """The trained model of a run, a checkpoint file or `pretrained:NAME`, with its own config.

    Args:
        path: See `find_checkpoint`.
        device: Where it goes.
        ema: Which weights: see `training.averaged`.
        net, sde: The network and the process, where the checkpoint holds those of the user's own classes.

    Raises:
        InputError: No checkpoint, a damaged or foreign one, a classifier's, or one that needs `net` or `sde`.
    """
    if net is not None:
        require_kind("net", net, nn.Module, "MLP((2,))")
    sde = None if sde is None else as_process(sde)
    file = find_checkpoint(path)
    checkpoint = load_checkpoint(file)
    require(checkpoint.meta.get("kind", MODEL) == MODEL, f"{file} holds a classifier, not a model")
    config = read_config(None, (), stored_config(checkpoint, file))
    run = RunFolder(home(file))
    own: dict[str, str] = checkpoint.meta.get("own", {})
    given = {kind for kind, value in (("net", net), ("sde", sde)) if value is not None}
    if not own.keys() <= given:
        require_described(checkpoint, file)
    return load_trained(checkpoint, config, device, ema=ema, run=run, net=net, sde=sde)


def write_weights(
    file: Path,
    model: ScoreModel,
    spec: DataSpec,
    *,
    config: Config | None = None,
    step: int = 0,
    parts: Mapping[str, nn.Module] | None = None,
) -> None:
    """Write one set of weights in float32 as a checkpoint, with what was trained beside them.

    Args:
        file: Replaced whole where it exists.
        spec, config: See `facts_of`.
        step: Training steps that the weights have seen.
        parts: Modules by name, as `Trained.parts`.

    Raises:
        InputError: The file cannot be written.
    """
    tensors = {f"{MAIN}.{name}": value.float() for name, value in model.state_dict().items()}
    for name, part in (parts or {}).items():
        tensors |= {f"parts.{name}.{key}": value for key, value in part.state_dict().items()}
    save_checkpoint(file, Checkpoint(tensors, facts_of(model, spec, config) | {"step": step}))
