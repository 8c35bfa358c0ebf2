"""`import`: a model of another package as a run of ours."""

from pathlib import Path

import click

from sde_diffusion.checkpoints import RUNS
from sde_diffusion.commands.asked import flags, request
from sde_diffusion.commands.common import shared_options, show_config
from sde_diffusion.config.build import choose_device, plain_config
from sde_diffusion.errors import require
from sde_diffusion.exchange import FORMATS, find_format, first_checkpoint, run_config
from sde_diffusion.training import RunFolder

EPILOG = """\b
Examples:
  sde-diffusion import ddpm-cifar10-32 --out runs/ddpm_cifar10
  sde-diffusion import ddpm-cifar10-32/unet --format diffusers --data cifar10 --dry-run
  sde-diffusion import my_pipeline --shape 1x28x28 --set sampling.solver=ddim
  sde-diffusion import checkpoint_24.pth --set sde=subvp --out runs/ddpmpp_subvp

\b
The run has one checkpoint, of which sample, likelihood, encode, verify and train make use as of any other. Weights are
read from safetensors, or from pickles of tensors alone; nothing in a file is ever executed.
"""


@click.command("import", epilog=EPILOG, short_help="Make a run of another package's model.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--format", "name", help=f"The format of PATH: {', '.join(FORMATS)}. Default: recognised by the content.")
@click.option("--data", help="The data set that the model is for. Default: recognised by the shape.")
@click.option(
    "--shape",
    "sizes",
    metavar="CxHxW",
    help="The shape of one example, such as 3x32x32, where the file does not say it.",
)
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
    keys = {"data": "data.name", "seed": "seed"}
    given = request(config_file, assignments, flags({"data": data, "seed": seed}, keys)).over({}).raw
    form = find_format(path, name)
    found = form.read(path, shape=None if sizes is None else _shape(sizes), config=given)
    config = run_config(found, given)
    if dry_run:
        show_config(plain_config(config))
        return
    folder = RunFolder(out or RUNS / path.resolve().name)
    require(folder.latest() is None, f"the run {folder.path} has checkpoints already; choose another --out")
    checkpoint = first_checkpoint(found, config, str(path))
    with folder.locked():
        file = folder.save(checkpoint, keep=1)
        folder.write_config(plain_config(config))
    for note in found.notes:
        click.echo(note, err=True)
    shown = "×".join(map(str, found.shape))
    count = sum(tensor.numel() for tensor in found.weights.values())
    click.echo(f"{path}: {count:,} weights for {shown}, {found.classes or 'no'} classes, step {found.step}")
    click.echo(f"wrote {file}")


def _shape(text: str) -> tuple[int, ...]:
    """Sizes as 3x32x32."""
    sizes = text.lower().replace("×", "x").split("x")
    sound = all(size.isdecimal() and int(size) > 0 for size in sizes)
    require(sound, f"`--shape` must be sizes > 0 such as 3x32x32, got {text!r}")
    return tuple(map(int, sizes))
