"""Every row of every registry against closed forms, on the user's machine.

A new area is a file here and a row in `CHECKS`. It yields `Check`s for whatever the registries hold, so that a new
process, solver or grid is verified unasked. `model` checks what can be checked of a trained model, whose score has no
closed form.
"""

from collections.abc import Callable, Iterator

from sde_diffusion.verify import guidance, likelihood, losses, score, sde, solvers, training
from sde_diffusion.verify.check import Check, Outcome, Setting, collect, run

CHECKS: dict[str, Callable[[Setting], Iterator[Check]]] = {
    "sde": sde.checks,
    "score": score.checks,
    "guidance": guidance.checks,
    "losses": losses.checks,
    "solvers": solvers.checks,
    "likelihood": likelihood.checks,
    "training": training.checks,
}

__all__ = ["CHECKS", "Check", "Outcome", "Setting", "collect", "run"]
