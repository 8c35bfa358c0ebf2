"""The commands. A new one is a file here and an `add_command` below."""

import logging
import sys

import click

from sde_diffusion.commands.classifier import classifier
from sde_diffusion.commands.decode import decode
from sde_diffusion.commands.encode import encode
from sde_diffusion.commands.export import export
from sde_diffusion.commands.import_ import import_
from sde_diffusion.commands.interpolate import interpolate
from sde_diffusion.commands.likelihood import likelihood
from sde_diffusion.commands.sample import sample
from sde_diffusion.commands.train import train
from sde_diffusion.commands.verify import verify
from sde_diffusion.errors import InputError, RunError, ToldError
from sde_diffusion.runtime.memory import is_shortage
from sde_diffusion.version import __version__
from sde_diffusion_cli.configs import configs
from sde_diffusion_cli.declared import SETTINGS
from sde_diffusion_cli.exits import exit_codes, fail, program

EPILOG = """\b
Examples:
  sde-diffusion train --sde vp
  sde-diffusion sample --solver ode
  sde-diffusion likelihood --limit 100
  sde-diffusion interpolate --pair 3 17
  sde-diffusion verify
  sde-diffusion configs
"""


@click.group(epilog=EPILOG, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="sde-diffusion")
def cli() -> None:
    """Train score-based diffusion models, sample them, and score data in bits/dim."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    logging.root.handlers[0].addFilter(_Once())


class _Once(logging.Filter):
    """Lets each warning through once: a network that is built twice has the same to say."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self._seen
        if record.levelno >= logging.WARNING:
            self._seen.add(message)
        return new


for command in (train, classifier, sample, likelihood, encode, decode, interpolate, verify, import_, export, configs):
    cli.add_command(command)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 the run failed, 2 bad input, 128 + n stopped by signal n."""
    try:
        with exit_codes():
            code = cli(prog_name=program(), standalone_mode=False)
        sys.exit(code or 0)
    except InputError as error:
        fail(str(error), 2)
    except RunError as error:
        fail(str(error), 1)
    except ToldError as error:
        sys.exit(error.code)
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        fail(f"out of memory: {error}; try a smaller --batch, or training.accumulate to train", 1)
