"""The front door: load a trained model, save one's own, train from Python.

    model = load("runs/digits_vp")               # a run, a checkpoint file, or "pretrained:fashion_mnist_vp"
    images = model.sample(16, nfe=20, seed=0)    # in the units of the data
    print(model.bits_per_dim(images))            # their mean with its 95 % interval

The commands do the same and write tables and pictures.
"""

import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sde_diffusion import checkpoints
from sde_diffusion.checkpoints import RUNS, facts_of, source_of, write_weights
from sde_diffusion.config.build import build_trainer, choose_device
from sde_diffusion.config.parse import Raw, merge, parse
from sde_diffusion.config.schema import REGISTRIES, Config, plain_config, read_config
from sde_diffusion.continuing import continued
from sde_diffusion.data import Dataset, DataSpec
from sde_diffusion.errors import InputError, require, require_kind, shown_type
from sde_diffusion.inference import Model
from sde_diffusion.model import ScoreModel
from sde_diffusion.runtime.atomic_write import as_path
from sde_diffusion.runtime.ranks import Ranks
from sde_diffusion.sde import SDE
from sde_diffusion.training import LossConfig, RunFolder, TrainingConfig
from sde_diffusion.training import Trainer as TrainerOfParts
from sde_diffusion.training.checkpoint import SUFFIX

logger = logging.getLogger(__name__)


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
        base, step, parts = model.trained.config, model.step, model.trained.parts
    elif isinstance(model, ScoreModel):
        score_model, base, step, parts = model, None, 0, {}
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
    file = as_path("path", path)
    require(bool(file.name) and not file.is_dir(), f"`path` must name a file, got the folder {file}")
    file = file if file.suffix == SUFFIX else file.with_name(file.name + SUFFIX)
    write_weights(file, score_model, units, config=base, step=step, parts=parts)
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
        resume: Whether to continue the run that the folder holds, from its newest checkpoint. A folder with a run is
            refused otherwise, so that no run is mixed with another.

    Raises:
        InputError: Data of another shape than the network's; a folder that holds a run, or another run than this.
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
        resume: bool = False,
    ) -> None:
        config, loss = config or TrainingConfig(), loss or LossConfig()
        require_kind("model", model, ScoreModel, "ScoreModel(MLP((2,)), VPSDE())")
        require_kind("train", train, Dataset, "TensorDataset(Continuous((2,)), points)")
        require_kind("config", config, TrainingConfig, "TrainingConfig(steps=500)")
        require_kind("loss", loss, LossConfig, "LossConfig(weighting=SimpleWeighting())")
        shape = tuple(getattr(model.net, "shape", train.spec.shape))
        require(shape == train.spec.shape, f"`train` must hold examples of the shape {shape}, got {train.spec.shape}")
        where = next(model.parameters()).device if device is None else choose_device(str(device))
        place = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        require(
            resume or place.latest() is None,
            f"`folder` {place.path} holds a run already; choose another, or continue it by resume=True",
        )

        def build(options: Config, folder: RunFolder, device: torch.device, ranks: Ranks) -> "Trainer":
            super(Trainer, self).__init__(
                model.to(device),
                train,
                train if validation is None else validation,
                config=options.training,
                loss=options.loss,
                folder=folder,
                seed=seed,
                device=device,
                meta=facts_of(model, train.spec, options) | {"examples": len(train)},
                ranks=ranks,
            )
            return self

        described = facts_of(
            model, train.spec, Config(seed=seed, data=source_of(train.spec), training=config, loss=loss)
        )
        with place.locked():
            continued(build, read_config(None, (), described["config"]), place, where)

    def run(self) -> int | None:
        """Train from the current step to the last. Ctrl-C saves a checkpoint first.

        Raises:
            KeyboardInterrupt: It was pressed.
            InputError: Another process trains this run, or a file could not be read or written.
            RunError: A loss was not finite; the last checkpoint is the one before it.
        """
        with self.folder.locked():
            _ended(super().run())
        return None


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
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint has been written, and the same call goes on.
    """
    if config is None or isinstance(config, Mapping):
        sections = read_config(None, (), dict(config or {}))
    else:
        sections = read_config(as_path("config", config))
    raw = plain_config(sections)
    folder = RunFolder(out or RUNS / f"{raw['data']['name']}_{raw['sde']['name']}")
    with folder.locked():
        trainer, _, notes = continued(build_trainer, sections, folder, choose_device(device))
        for note in notes:
            logger.warning(note)
        if trainer.step < sections.training.steps:
            _ended(trainer.run())
    return load(folder.path, device=device)


def _ended(stopped: int | None) -> None:
    """End the program as the signal would have that stopped a training, now that a checkpoint is written."""
    if stopped == signal.SIGINT:
        raise KeyboardInterrupt
    if stopped is not None:
        raise SystemExit(128 + stopped)
