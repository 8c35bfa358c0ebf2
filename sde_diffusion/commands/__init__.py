"""The commands. A new one is a file here and an `add_command` below."""

import logging
import os
import sys
import time

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
from sde_diffusion.memory import is_shortage
from sde_diffusion.version import __version__

EPILOG = """\b
Examples:
  python cli.py train --sde vp
  python cli.py sample --solver ode
  python cli.py likelihood --limit 100
  python cli.py interpolate --pair 3 17
  python cli.py verify
"""

FIRST_WORD = 2.0  # seconds in which torchrun has noticed that the first process failed


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sde-diffusion")
def cli() -> None:
    """Train score-based diffusion models, sample them, and score data in bits/dim."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)


for command in (train, classifier, sample, likelihood, encode, decode, interpolate, verify, import_, export):
    cli.add_command(command)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 the run failed, 2 bad input, 128 + n stopped by signal n."""
    try:
        code = cli(standalone_mode=False)
        sys.stdout.flush()  # a closed pipe shows here, not when the interpreter ends
        sys.exit(code or 0)
    except InputError as error:
        _fail(str(error), 2)
    except RunError as error:
        _fail(str(error), 1)
    except ToldError as error:
        sys.exit(error.code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has gone
        sys.exit(1)  # as click does where it notices first
    except OSError as error:  # what no command foresaw, such as a path that is too long
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        _fail(f"out of memory: {error}; try a smaller --batch, or training.accumulate to train", 1)


def _fail(message: str, code: int) -> None:
    """Say what was wrong. What is wrong for all of several processes, the first says, and torchrun ends the others."""
    rank = os.environ.get("RANK", "0") if "WORLD_SIZE" in os.environ else "0"
    if rank != "0":
        time.sleep(FIRST_WORD)
        message = f"rank {rank}: {message}"
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)
