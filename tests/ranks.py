"""Functions run by several processes at once, as torchrun starts them, but from one process that has imported torch."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["sde_diffusion.commands", "torch._dynamo", "tests.ranks"])


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any, seconds: float = 200.0) -> list[Any]:
    """What `function(*arguments)` returns on each of `size` ranks; it must be at the top of a module.

    A rank that is killed, or that dies without a word, returns None.

    Raises:
        AssertionError: A rank raised; with its traceback.
    """
    port = free_port()
    ranks = []
    for rank in range(size):
        ours, theirs = _context.Pipe(duplex=False)
        process = _context.Process(target=_run, args=(theirs, rank, size, port, function, arguments), daemon=True)
        process.start()
        theirs.close()
        ranks.append((process, ours))
    results = [_result(ours, seconds) for _, ours in ranks]
    for process, _ in ranks:
        process.join(seconds)
        process.kill()
    return results


def _result(pipe: Connection, seconds: float) -> Any:
    assert pipe.poll(seconds), f"a rank did not end within {seconds} s"
    try:
        failed, value = pipe.recv()
    except EOFError:
        return None
    assert not failed, value
    return value


def _run(pipe: Connection, rank: int, size: int, port: int, function: Callable[..., Any], arguments: Any) -> None:
    os.environ |= place(rank, size, port)
    torch.set_num_threads(1)
    try:
        pipe.send((False, function(*arguments)))
    except BaseException:
        pipe.send((True, traceback.format_exc()))


def place(rank: int, size: int, port: int) -> dict[str, str]:
    """The environment that torchrun gives to a rank."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
