"""What to say where the memory does not suffice for a batch of samples or examples: how many would fit."""

from collections.abc import Callable
from typing import Any

from torch import nn

from sde_diffusion.commands.growing import Compute, Rows
from sde_diffusion.commands.session import Session
from sde_diffusion.errors import InputError
from sde_diffusion.runtime.memory import Growth, free_memory, is_shortage

CALLS = 3  # of the network, after which a batch has taken all the memory that it will, but for a solver's states
MOST = 64  # examples on which memory is measured


def fitting(session: Session, compute: Compute, *, unit: int = 1) -> Compute:
    """`compute`, which says how many examples fit where a batch does not.

    Args:
        session: The model whose network `compute` calls.
        compute: (first row, number of rows) -> the arrays of a batch.
        unit: Rows of an example.
    """

    def guarded(first: int, count: int) -> Rows:
        try:
            return compute(first, count)
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
        raise InputError(
            _too_large(session, count // unit, lambda few: compute(first, few * unit))
        )  # outside, where what the batch held is free

    return guarded


def _too_large(session: Session, count: int, work: Callable[[int], object]) -> str:
    def begun(few: int) -> None:
        _begin(session.trained.model.net, lambda: work(min(few, count)))

    room = free_memory(session.device)
    largest = Growth.measured(session.device, begun, most=min(count, MOST)).largest(session.device, room)
    what = f"a batch of {count} does not fit into the memory of {session.device}"
    if largest >= count:
        return f"{what} now, although about {largest:,} should; end what else runs there, or give a smaller --batch"
    return f"{what}: about {largest:,} would; give --batch {max(largest, 1)}"


class _Enough(Exception):
    """The measurement has seen what it wanted."""


def _begin(net: nn.Module, work: Callable[[], object]) -> None:
    """Do `work` up to a few calls of the network."""
    left = CALLS

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Enough

    handle = net.register_forward_pre_hook(count)
    try:
        work()
    except _Enough:
        pass
    finally:
        handle.remove()
