"""How solves fail, and what a user is told."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from sde_diffusion.errors import SolveError

STATE = (
    "the state is not finite at the end: the network gave NaN or infinity, or the state left the range of "
    "floating-point numbers; take other weights, more steps, or clip the predicted data"
)
NETWORK = "the network gave NaN or infinity for a finite state; take other weights, such as an earlier checkpoint"


def not_finite(x: Tensor) -> list[int]:
    """The samples of `x` (B, *D) with a number that is not finite. Waits for the device."""
    if bool(x.isfinite().all()):
        return []
    rows: list[int] = (~x.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
    return rows


@contextmanager
def counted_from(start: int) -> Iterator[None]:
    """Let errors of solves name samples by their numbers in the run, whose sample `start` is the first of the batch."""
    try:
        yield
    except SolveError as failure:
        raise failure.counted_from(start) from None
