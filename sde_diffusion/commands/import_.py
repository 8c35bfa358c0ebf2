"""`import`: a model of another package as a run of ours."""

from pathlib import Path

import click
from torch import Tensor

from sde_diffusion.build import Config, build_model, choose_device, count_parameters, plain_config, read_config
from sde_diffusion.commands.common import RUNS, as_assignments, shared_options, show_config
from sde_diffusion.config import Raw, merge, override, read_yaml
from sde_diffusion.data import DataSpec
from sde_diffusion.errors import require
from sde_diffusion.exchange import FORMATS, Imported, find_format, to_ours
from sde_diffusion.training import Checkpoint, RunFolder

EPILOG = """\b
Examples:
  python cli.py import ddpm-cifar10-32 --out runs/ddpm_cifar10
  python cli.py import ddpm-cifar10-32/unet --format diffusers --data cifar10 --dry-run
  python cli.py import my_pipeline --shape 1x28x28 --set sampling.solver=ddim
  python cli.py import checkpoint_24.pth --set sde=subvp --out runs/ddpmpp_subvp

\b
The run has one checkpoint, of which sample, likelihood, encode, verify and train make use as of any other. Weights are
read from safetensors, or from pickles of tensors alone; nothing in a file is ever executed.
"""

LEVELS = 256  # of imported data, which are images
BY_SHAPE = {(3, 32, 32): "cifar10", (1, 28, 28): "mnist"}
"""The data set that an import of a shape is for, where the user names none."""


@click.command("import", epilog=EPILOG, short_help="Make a run of another package's model.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--format", "name", help=f"{', '.join(FORMATS)}. Default: by the content.")
@click.option("--data", help="Data set that the model is for. Default: by the shape.")
@click.option("--shape", "sizes", metavar="CxHxW", help="Of one event, where the file does not say.")
@shared_options
def import_(
    path: Path,
    name: str | None,
    data: str | None,
    sizes: str | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str,
    out: Path | None,
    dry_run: bool,
) -> None:
    """Make a run of the model at PATH, a file or folder of another package."""
    choose_device(device)
    given = override(read_yaml(config_file) if config_file else {}, [*assignments, *as_assignments(seed=seed)])
    if data is not None:
        given = merge(given, {"data": data})
    form = find_format(path, name)
    found = form.read(path, shape=None if sizes is None else _shape(sizes), config=given)
    config = _config(found, given)
    if dry_run:
        show_config(plain_config(config))
        return
    folder = RunFolder(out or RUNS / path.resolve().name)
    require(folder.latest() is None, f"the run {folder.path} has checkpoints already; choose another --out")
    checkpoint, parameters = _checkpoint(found, config, path)
    with folder.locked():
        file = folder.save(checkpoint, keep=1)
        folder.write_config(plain_config(config))
    for note in found.notes:
        click.echo(note, err=True)
    shown = "×".join(map(str, found.shape))
    click.echo(f"{path}: {parameters:,} parameters for {shown}, {found.classes or 'no'} classes, step {found.step}")
    click.echo(f"wrote {file}")


def _shape(text: str) -> tuple[int, ...]:
    """Sizes as 3x32x32."""
    sizes = text.lower().replace("×", "x").split("x")
    sound = all(size.isdecimal() and int(size) > 0 for size in sizes)
    require(sound, f"`--shape` must be sizes > 0 such as 3x32x32, got {text!r}")
    return tuple(map(int, sizes))


def _config(found: Imported, given: Raw) -> Config:
    """The config of the run: what the file fixes, below what the user says."""
    sections = merge(found.config, {"model": {"conditional": found.classes > 0}, "data": _data(found)})
    return read_config(None, (), merge(sections, given))


def _data(found: Imported) -> Raw:
    """The section `data` of a model for events of this shape."""
    shape = found.shape
    if shape in BY_SHAPE:
        return {"name": BY_SHAPE[shape]}
    if len(shape) == 3 and shape[0] in (1, 3):
        return {"name": "images", "size": list(shape[1:]), "channels": shape[0], "labelled": found.classes > 0}
    return {"name": "arrays"}


def _spec(found: Imported, config: Config) -> DataSpec:
    """What the model's numbers mean: as its data set says, where that is known without its files."""
    name = plain_config(config)["data"]["name"]
    own: DataSpec | None = getattr(config.data, "spec", None)
    if own is not None and own.shape == found.shape and found.classes in (0, len(own.classes)):
        return own
    require(
        own is None or own.shape == found.shape,
        f"`data.name` must be a data set of shape {found.shape}, got {name}" + (f" of {own.shape}" if own else ""),
    )
    return DataSpec(name, found.shape, levels=LEVELS, classes=tuple(map(str, range(found.classes))))


def _checkpoint(found: Imported, config: Config, path: Path) -> tuple[Checkpoint, int]:
    """The checkpoint, and the number of parameters."""
    spec = _spec(found, config)
    model = build_model(config, spec, choose_device("cpu"))
    like, slots = model.net.state_dict() | found.implied, found.slots(model.net)
    tensors: dict[str, Tensor] = {}
    for kind, weights in (("model", found.weights), ("ema", found.averaged or found.weights)):
        ours = to_ours(slots, weights, like, str(path))
        tensors |= {f"{kind}.net.{name}": value for name, value in ours.items()}
    meta = {"config": plain_config(config), "data": spec.to_dict(), "step": found.step}
    return Checkpoint(tensors, meta), count_parameters(model)
