"""The configs that come with the package: `--config NAME` and the command `configs`."""

import difflib
from pathlib import Path
from textwrap import shorten
from typing import Any

import click
from click.shell_completion import CompletionItem

FOLDER = Path(__file__).with_name("configs")
WIDEST = 120  # characters of a line of the list


def shipped() -> dict[str, Path]:
    """The name of each config that comes with the package, and its file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


class ConfigType(click.ParamType[Path]):
    """A YAML file, or the name of a config that comes with the package."""

    name = "config"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The file. A file of that name comes before a config of that name."""
        path, known = Path(value), shipped()
        if path.exists():
            return path
        if value in known:
            return known[value]
        if path.suffix or len(path.parts) > 1:
            instead = f"; one of that name comes with the package: --config {path.stem}" if path.stem in known else ""
            self.fail(f"cannot read the config file {value}: No such file or directory{instead}", param, ctx)
        near = difflib.get_close_matches(value, known, n=1)
        told = f"did you mean {near[0]!r}? " if near else ""
        self.fail(f"there is no file and no config {value!r}; {told}known: {', '.join(known)}", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names that fit, and files."""
        names = [CompletionItem(name) for name in shipped() if name.startswith(incomplete)]
        return [*names, CompletionItem(incomplete, type="file")]


EPILOG = """\b
Examples:
  sde-diffusion configs
  sde-diffusion configs fashion_mnist_vp
  sde-diffusion configs digits_conditional

\b
To change one, write it to a file: sde-diffusion configs fashion_mnist_vp > mine.yaml
"""


@click.command(epilog=EPILOG, short_help="List the configs that come with the package.")
@click.argument("config", required=False, type=ConfigType())
def configs(config: Path | None) -> None:
    """List the configs that come with the package, each with its first line; or print CONFIG.

    Each is a name for the option --config of the other commands.
    """
    if config is not None:
        click.echo(config.read_text(encoding="utf-8"), nl=False)
        return
    known = shipped()
    width = max(map(len, known), default=0)
    for name, path in known.items():
        first = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        click.echo(f"{name:<{width}}  {shorten(first, WIDEST - width, placeholder=' …')}".rstrip())
