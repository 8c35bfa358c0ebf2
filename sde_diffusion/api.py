"""The front door: load a trained model, save one's own, train from Python.

    model = load("runs/digits_vp")               # a run, a checkpoint file, or "pretrained:fashion_mnist_vp"
    images = model.sample(16, nfe=20, seed=0)    # in the units of the data
    print(model.bits_per_dim(images))            # their mean with its 95 % interval

The commands do the same and write tables and pictures.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sde_diffusion import checkpoints
from sde_diffusion.checkpoints import RUNS, facts_of, source_of
from sde_diffusion.config.build import build_trainer, choose_device, resolve_precision_of
from sde_diffusion.config.parse import Raw, merge, parse
from sde_diffusion.config.schema import REGISTRIES, Config, plain_config, read_config
from sde_diffusion.data import Dataset, DataSpec
from sde_diffusion.errors import InputError, require, require_kind, shown_type
from sde_diffusion.inference import Model
from sde_diffusion.model import ScoreModel
from sde_diffusion.runtime.atomic_write import as_path
from sde_diffusion.sde import SDE
from sde_diffusion.training import Checkpoint, LossConfig, RunFolder, TrainingConfig, save_checkpoint
from sde_diffusion.training import Trainer as TrainerOfParts
from sde_diffusion.training.ema import MAIN


def load(
    path: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    ema: bool | float | str = True,
    net: nn.Module | None = None,
    sde: SDE | None = None,
) -> Model:
    """Load a trained model.

    Args:
        path: A run's folder, a checkpoint file, or `"pretrained:NAME"` for a model that comes with the package. None
            for the newest run below `runs/`.
        device: `"cpu"`, `"cuda"`, …; `"auto"` takes CUDA where there is one.

    Other args:
        ema: True for averaged weights, False for the last ones; a length such as 0.15 for another average.
        net, sde: The network and the process, where the file holds those of your own classes.

    Raises:
        InputError: No such file, one that is damaged or no checkpoint, or one that needs `net` or `sde`.
    """
    average = ema if isinstance(ema, bool) else str(ema)
    return Model(checkpoints.load(path, device=choose_device(str(device)), ema=average, net=net, sde=sde))


def save(
    path: str | Path, model: ScoreModel | Model, *, units: DataSpec | None = None, config: Raw | None = None
) -> Path:
    """Write a model to a file that `load` and every command can read.

    The file holds one set of weights in float32, the process, the network's options and the units of the data. Of a
    network or a process of your own class it holds the name; `load` then needs the object.

    Args:
        path: The file; `.safetensors` is added where it is missing. An older file there is replaced, whole.
        model: A score model, or what `load` gave.
        units: What the data mean, such as `Continuous((2,))` or `Discrete((1, 28, 28))`; a loaded model knows its own.
        config: Other sections of a config that are to be kept, such as `training`.

    Returns:
        The path of the file.

    Raises:
        InputError: No units, units of another shape than the network's, or a place that cannot be written to.
    """
    if isinstance(model, Model):
        units, score_model = units or model.spec, model.score_model
        base, step = model.trained.config, model.step
    elif isinstance(model, ScoreModel):
        score_model, base, step = model, None, 0
    else:
        raise InputError(f"`model` must be a ScoreModel or what sde_diffusion.load gave, got {shown_type(model)}")
    if not isinstance(units, DataSpec):
        raise InputError("`units` must say what the data mean, such as Continuous((2,)) or Discrete((1, 28, 28))")
    shape = getattr(score_model.net, "shape", units.shape)
    require(
        tuple(shape) == units.shape, f"`units` must have the shape {tuple(shape)} of the network, got {units.shape}"
    )
    if config is not None:
        base = parse(Config, merge(plain_config(base) if base else {}, config), REGISTRIES)
    tensors = {f"{MAIN}.{name}": value.float() for name, value in score_model.state_dict().items()}
    file = as_path("path", path)
    file = file if file.suffix == ".safetensors" else file.with_name(f"{file.name}.safetensors")
    save_checkpoint(file, Checkpoint(tensors, facts_of(score_model, units, base) | {"step": step}))
    return file


class Trainer(TrainerOfParts):
    """Trains a score model on a data set, with averages of the weights, checkpoints, a log and previews.

        data = TensorDataset(Continuous((2,)), points)
        trainer = Trainer(ScoreModel(MLP((2,)), VPSDE()), data, folder="runs/mine", config=TrainingConfig(steps=500))
        trainer.run()
        model = load("runs/mine")

    Args:
        model: Trained in place.
        train: The training split, such as `TensorDataset(units, values)`.
        validation: Held-out examples for the validation loss; the training split by default.
        folder: The run's folder: `load` and every command take it.

    Other args:
        config, loss: What the sections `training` and `loss` of a config say.
        seed: Of every random number.
        device: Where to train; where the model is by default.

    Raises:
        InputError: Data of another shape than the network's.
    """

    def __init__(
        self,
        model: ScoreModel,
        train: Dataset,
        validation: Dataset | None = None,
        *,
        folder: str | Path | RunFolder,
        config: TrainingConfig | None = None,
        loss: LossConfig | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        config, loss = config or TrainingConfig(), loss or LossConfig()
        require_kind("model", model, ScoreModel, "ScoreModel(MLP((2,)), VPSDE())")
        require_kind("train", train, Dataset, "TensorDataset(Continuous((2,)), points)")
        require_kind("config", config, TrainingConfig, "TrainingConfig(steps=500)")
        require_kind("loss", loss, LossConfig, "LossConfig(weighting=SimpleWeighting())")
        shape = tuple(getattr(model.net, "shape", train.spec.shape))
        require(shape == train.spec.shape, f"`train` must hold examples of the shape {shape}, got {train.spec.shape}")
        where = next(model.parameters()).device if device is None else choose_device(str(device))
        source = source_of(train.spec)
        options = Config(seed=seed, data=source, training=config, loss=loss)
        options = resolve_precision_of(options, where)
        facts = facts_of(model, train.spec, options)
        super().__init__(
            model.to(where),
            train,
            train if validation is None else validation,
            config=options.training,
            loss=options.loss,
            folder=folder if isinstance(folder, RunFolder) else RunFolder(folder),
            seed=seed,
            device=where,
            meta=facts | {"examples": len(train)},
        )


def train(
    config: str | Path | Mapping[str, Any] | None = None, *, out: str | Path | None = None, device: str = "auto"
) -> Model:
    """Train what a config describes, to its last step, and load the result.

    Args:
        config: A YAML file, or sections as nested mappings: `{"sde": "subvp", "training": {"steps": 500}}`. None
            trains the embedded digits.
        out: The run's folder; by default `runs/DATA_PROCESS`. A run that it holds goes on from where it stands.
        device: See `load`.

    Raises:
        InputError: A bad config, or a folder that holds a run of another config.
        RunError: A loss was not finite.
    """
    if config is None or isinstance(config, Mapping):
        sections = parse(Config, dict(config or {}), REGISTRIES)
    else:
        sections = read_config(as_path("config", config))
    where = choose_device(device)
    sections = resolve_precision_of(sections, where)
    raw = plain_config(sections)
    folder = RunFolder(out or RUNS / f"{raw['data']['name']}_{raw['sde']['name']}")
    with folder.locked():
        trainer = build_trainer(sections, folder, where)
        checkpoints.resume(trainer, folder, raw)
        folder.write_config(raw)
        if trainer.step < sections.training.steps:
            trainer.run()
    return load(folder.path, device=device)
