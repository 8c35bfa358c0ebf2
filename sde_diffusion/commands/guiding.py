"""The options that choose classes and guidance, and the checkpoint that guidance may need."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy.typing as npt
import torch
from torch import Tensor

from sde_diffusion.checkpoints import stored_config
from sde_diffusion.commands.asked import Said
from sde_diffusion.commands.common import Command
from sde_diffusion.commands.session import Session
from sde_diffusion.config.build import (
    CLASSIFIER,
    MODEL,
    Config,
    Trained,
    build_classifier,
    load_trained,
    plain_config,
    read_config,
)
from sde_diffusion.config.parse import differences
from sde_diffusion.data import DataSpec
from sde_diffusion.errors import InputError, require
from sde_diffusion.guidance import GUIDANCES, Bind, Guidance
from sde_diffusion.registry import name_of, suggest
from sde_diffusion.training import CLASSIFIERS, Checkpoint, RunFolder, load_checkpoint

ALL, OWN = "all", "own"  # words for labels: every class in turn, and each example's own class

Labels = tuple[int, ...] | str
Wanted = tuple[int | str, ...] | str
"""Labels before the classes are known, some of them by their names."""


class LabelsType(click.ParamType[Wanted]):
    """A class by its number or its name, several with commas, or one of `words`."""

    name = "labels"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Wanted:
        """The classes, or the word."""
        return str(value) if value in self.words else tuple(map(_number_or_name, str(value).split(",")))


def _number_or_name(item: str) -> int | str:
    try:
        return int(item)
    except ValueError:
        return item.strip()


def numbered(label: Wanted | None, spec: DataSpec) -> Labels | None:
    """`label` with the numbers of the classes of `spec` in place of their names.

    Raises:
        InputError: No such class.
    """
    if label is None or isinstance(label, str):
        return label
    return tuple(item if isinstance(item, int) else _number_of(item, spec) for item in label)


def _number_of(name: str, spec: DataSpec) -> int:
    if name in spec.classes:
        return spec.classes.index(name)
    command = click.get_current_context().command
    words = next((option.type.words for option in command.params if isinstance(option.type, LabelsType)), ())
    others = "".join(f", or {word!r}" for word in words)
    raise InputError(
        f"--label {name!r} is not a class such as 3, nor several such as 0,1,2{others}"
        + (suggest(name, spec.classes) if spec.classes else "")
    )


def class_options(*words: str, help: str) -> Callable[[Command], Command]:
    """--label, which takes these words too, and --guidance."""

    def decorate(command: Command) -> Command:
        for option in reversed(
            [
                click.option("--label", type=LabelsType(*words), metavar="LABEL", help=help),
                click.option(
                    "--guidance",
                    type=float,
                    metavar="SCALE",
                    help="How strongly to guide: 1 is no guidance, more follows the class more closely; see below.",
                ),
            ]
        ):
            command = option(command)
        return command

    return decorate


def class_flags(label: Labels | None) -> list[Said]:
    """What --label says to the section `sampling`; a word is not for it."""
    return [Said("sampling.label", list(label), "--label")] if isinstance(label, tuple) else []


def in_turn(config: Config, spec: DataSpec, label: Labels | None) -> Config:
    """`config`, whose samples have all classes of `spec` in turn, if `label` says so.

    Raises:
        InputError: There are no classes.
    """
    if label != ALL:
        return config
    require(len(spec.classes) > 0, f"--label {ALL} needs classes, but {spec.name} has none; leave it out")
    sampling = dataclasses.replace(config.sampling, label=tuple(range(len(spec.classes))))
    return dataclasses.replace(config, sampling=sampling)


def guided(session: Session, label: Labels | None = None) -> Session:
    """`session` with what its guidance needs.

    Raises:
        InputError: Guidance that the model does not allow, without a class, or by a checkpoint that does not fit; a
            class that the model does not know, or none where it was always told one.
    """
    trained, known = session.trained, label == OWN
    sampling = trained.config.sampling
    guidance = sampling.guidance
    if not known and min(sampling.label) < 0:
        require_unlabelled(session)
    if not guidance.active(conditional=trained.conditional):
        return _checked(session, known)
    require(
        not guidance.by_label or known or min(sampling.label) >= 0,
        f"{_guidance_by(guidance)} goes towards a class, but there is none; give --label, e.g. --label 3",
    )
    _require_branches(session, guidance)
    return _checked(_with_guide(session, guidance) if guidance.guide else session, known)


def require_unlabelled(session: Session) -> None:
    """Refuse to use a conditional model without a class, if it was never trained so.

    Raises:
        InputError: It was not.
    """
    config = session.trained.config
    require(
        not config.model.conditional or config.training.label_dropout > 0,
        f"{session.path} has never been trained without a class, for its training.label_dropout is 0; give --label, "
        f"e.g. --label 3, or train with 0.1",
    )


def likelihood_label(label: Labels | None) -> list[Said]:
    """What --label says to the section `likelihood`.

    Raises:
        InputError: Several classes.
    """
    require(not isinstance(label, tuple) or len(label) == 1, f"--label must be one class or {OWN}, got {label}")
    return [] if label is None else [Said("likelihood.label", None if label == OWN else label[0], "--label")]


def check_label(session: Session) -> None:
    """Refuse a label of `likelihood` that the model was not trained with.

    Raises:
        InputError: See `ScoreModel.bind`; own labels of a model that knows none, or none where it was always told one.
    """
    label = session.trained.config.likelihood.label
    if label is None:
        require(
            session.trained.conditional,
            f"--label {OWN} needs a model that was trained with labels, but {session.path} was not; leave it out, or "
            f"train one with model.conditional = true",
        )
        return
    if label < 0:
        require_unlabelled(session)
    session.trained.model.bind(label)


def given_label(label: int | None) -> str:
    """What is told of the class of a likelihood."""
    return "" if label == -1 else f", log p(x | y) given {'their own labels' if label is None else f'label {label}'}"


def _checked(session: Session, known: bool) -> Session:
    """`session`, if its model and guide know the classes of the config.

    Raises:
        InputError: They do not.
    """
    if not known:
        session.trained.score_fn(torch.tensor(session.trained.config.sampling.label))
    return session


def announce(session: Session, *, dry_run: bool) -> None:
    """Print what is used, how it is guided and what that costs."""
    mark, guidance = "# " if dry_run else "", session.trained.config.sampling.guidance
    click.echo(f"{mark}{session.describe()}")
    if guidance.active(conditional=session.trained.conditional):
        where = "" if guidance.interval is None else " for σ/a in ({:g}, {:g}]".format(*guidance.interval)
        what = f"guided by {name_of(GUIDANCES, guidance)}, scale {guidance.scale:g}{where}"
        click.echo(f"{mark}{what}" + (f": a score evaluation costs {guidance.cost}" if guidance.scale else ""))


def label_rows(labels: Tensor, *, known: bool) -> dict[str, npt.NDArray[Any]]:
    """What a file of results says of the classes of a batch, (B,); nothing where no sample of the file has one."""
    return {"labels": labels.numpy()} if known else {}


def _guidance_by(guidance: Guidance) -> str:
    return f"guidance by {name_of(GUIDANCES, guidance)!r}"


def _require_branches(session: Session, guidance: Guidance) -> None:
    """Refuse what needs the score with and without a label of a model that was not trained for both."""
    others = "; or guide it by 'autoguidance' or 'classifier' (sampling.guidance.name)"
    if guidance.by_label and not guidance.guide:
        require(
            session.trained.conditional,
            f"{_guidance_by(guidance)} needs a model that was trained with labels, but {session.path} was "
            f"not; train one with model.conditional = true{others}",
        )
        require(
            session.trained.config.training.label_dropout > 0,
            f"{_guidance_by(guidance)} needs the score without a label, which {session.path} has never been "
            f"trained for: its training.label_dropout is 0; train with 0.1{others}",
        )


def _with_guide(session: Session, guidance: Guidance) -> Session:
    given = vars(guidance)["checkpoint"]
    require(
        bool(given),
        f"{_guidance_by(guidance)} needs the checkpoint of a {guidance.guide}; name its file or run with "
        f"--set sampling.guidance.checkpoint=PATH",
    )
    path = find_guide(Path(given), guidance)
    checkpoint = load_checkpoint(path)
    config = read_config(None, (), stored_config(checkpoint, path))
    guide = _guide(checkpoint, path, config, session.trained)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return dataclasses.replace(session, trained=dataclasses.replace(session.trained, guide=guide), guide_digest=digest)


def find_guide(given: Path, guidance: Guidance) -> Path:
    """The checkpoint file that `given` names, a file or a run's folder.

    Raises:
        InputError: The folder has none of the kind.
    """
    if not given.is_dir():
        return given
    run = RunFolder(given, CLASSIFIERS) if guidance.guide == CLASSIFIER else RunFolder(given)
    found = run.latest()
    require(found is not None, f"there is no checkpoint of a {guidance.guide} in {given}")
    assert found is not None
    return found


def _guide(checkpoint: Checkpoint, path: Path, config: Config, trained: Trained) -> Bind:
    """What `trained` is guided by, bound by labels: the scores of another model, or a classifier's log p(y | x_t).

    Args:
        checkpoint, path: Of the guide.
        config: Its own.

    Raises:
        InputError: It is not of the kind that the guidance of `trained` needs, or does not fit it: another process,
            shape, unit or set of classes.
    """
    wanted, kind = trained.config.sampling.guidance.guide, checkpoint.meta.get("kind", MODEL)
    require(kind == wanted, f"guidance needs the checkpoint of a {wanted}, but {path} is that of a {kind}")
    spec, device = DataSpec.from_dict(checkpoint.meta["data"]), next(trained.model.parameters()).device
    knows = kind == CLASSIFIER or config.model.conditional

    def fits(what: str, own: object, guides: object) -> None:
        require(own == guides, f"the guide {path} must fit the model: its {what} is {guides}, the model's {own}")

    for key, (own, guides) in differences(plain_config(trained.config)["sde"], plain_config(config)["sde"]).items():
        fits(f"sde.{key}", own, guides)
    for what in ("shape", "levels", "shift", "scale"):
        fits(what, getattr(trained.spec, what), getattr(spec, what))
    if kind == MODEL or trained.conditional:
        fits("classes", trained.spec.classes if trained.conditional else (), spec.classes if knows else ())
    if kind == MODEL:
        return load_trained(checkpoint, config, device).model.bind
    classifier = build_classifier(config, spec, device)
    classifier.load_state_dict(checkpoint.group("ema"))
    return classifier.eval().requires_grad_(False).bind
