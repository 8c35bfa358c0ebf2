"""How the command line ends: an exit code, and one line on stderr where something is wrong."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

FIRST_WORD = 2.0  # seconds in which torchrun has noticed that the first process failed


def program() -> str:
    """How the user starts the program: `python cli.py` in a clone, `sde-diffusion` where it is installed."""
    return "python cli.py" if Path(sys.argv[0]).name == "cli.py" else "sde-diffusion"


def named(text: str) -> str:
    """`text` with the program's name as the user types it. Texts of the package say `sde-diffusion`."""
    return text.replace("sde-diffusion ", f"{program()} ")


def fail(message: str, code: int) -> NoReturn:
    """Print `error: message` and exit.

    What is wrong for all of several processes is said by the first of them: torchrun ends the others.
    """
    rank = os.environ.get("RANK", "0") if "WORLD_SIZE" in os.environ else "0"
    if rank != "0":
        time.sleep(FIRST_WORD)
        message = f"rank {rank}: {message}"
    click.echo(named(f"error: {' '.join(message.split())}"), err=True)
    sys.exit(code)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what click and the system raise into an exit code: 1 for a closed pipe, 2 for bad input, 130 for Ctrl-C."""
    try:
        yield
        sys.stdout.flush()  # a closed pipe shows here, not when the interpreter ends
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has gone
        sys.exit(1)  # as click does where it notices first
    except OSError as error:  # what no command foresaw, such as a path that is too long
        fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
