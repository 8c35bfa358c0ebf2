"""`export`: a trained model in the format of another package."""

from pathlib import Path

import click

from sde_diffusion.commands.asked import flags, request
from sde_diffusion.commands.common import (
    checkpoint_options,
    ema_options,
    make_folder,
    shared_options,
    show_config,
)
from sde_diffusion.commands.session import load
from sde_diffusion.config.build import plain_config
from sde_diffusion.exchange import FORMATS
from sde_diffusion.registry import lookup

EPILOG = """\b
Examples:
  sde-diffusion export runs/digits_ddpm --format diffusers --out exported
  sde-diffusion export --no-ema --out exported
  sde-diffusion export runs/ddpm_cifar10 --set sampling.solver=ddim --out exported
"""


@click.command(epilog=EPILOG, short_help="Write a model for another package.")
@checkpoint_options
@click.option(
    "--format", "name", default="diffusers", show_default=True, help=f"The format to write: {', '.join(FORMATS)}."
)
@ema_options
@shared_options
def export(
    checkpoint: Path | None,
    name: str,
    ema: bool | str,
    config_file: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str,
    out: Path | None,
    dry_run: bool,
) -> None:
    """Write the model of CHECKPOINT, a file or a run's folder, to the folder --out; of the newest run without one."""
    form = lookup(FORMATS, name, "format")()
    wanted = request(config_file, assignments, flags({"seed": seed}, {"seed": "seed"}))
    session = load(checkpoint, wanted, device=device, ema=ema)
    click.echo(f"{'# ' if dry_run else ''}{session.describe()}")
    if dry_run:
        show_config(plain_config(session.trained.config))
        return
    for file in form.write(session.trained, make_folder(out or session.folder / name)):
        click.echo(f"wrote {file}")
