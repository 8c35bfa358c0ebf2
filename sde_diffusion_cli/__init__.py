"""The start of the command line: what can be answered without PyTorch, which takes seconds to import.

`--help`, `--version`, completion in a shell and a wrong command or option are answered by `declared`, from the table
that `python -m tools.command_table` writes. All else is done by `sde_diffusion.commands`.
"""

import os
import signal


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup and & may ignore it
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C ends the imports without a traceback
    from sde_diffusion_cli.declared import answered

    if answered():
        return
    from sde_diffusion_cli.openmp import choose_waiting

    choose_waiting()
    from sde_diffusion.commands import main as run

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
