"""Who is who among several processes, and what they tell each other."""

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sde_diffusion.errors import InputError, RunError, ToldError
from sde_diffusion.runtime import ranks as distributed
from sde_diffusion.runtime.ranks import ALONE, Ranks, joined, ranks_of
from tests.ranks import free_port, on_ranks, place

CPU = torch.device("cpu")


def test_without_torchrun_there_is_one_for_which_all_is_free() -> None:
    with joined(CPU) as ranks:
        assert ranks is ALONE
        assert not dist.is_initialized()
        value = torch.arange(3.0)
        assert ranks.sum(value) is ranks.gather(value) is ranks.share(value) is value
        assert ranks.highest(7) == 7
        assert ranks.collect("a") == ["a"]
        assert ranks.rows(5) == range(5)
        assert ranks.device(torch.device("cuda")) == torch.device("cuda")
        ranks.barrier()
        with pytest.raises(KeyError), ranks.agreed():
            raise KeyError("as it is")


def test_torchrun_says_who_is_who() -> None:
    ranks = ranks_of(place(5, 8, 1) | {"LOCAL_RANK": "1"})
    assert ranks == Ranks(5, 8, 1)
    assert not ranks.main
    assert ranks.rows(32) == range(20, 24)
    assert ranks.device(torch.device("cuda")) == torch.device("cuda", 1)
    assert ranks.device(CPU) == CPU


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"RANK": "x"}, "variable RANK must be a number where WORLD_SIZE is set, got 'x'; start several"),
        ({"LOCAL_RANK": ""}, "variable LOCAL_RANK must be a number .*, got ''"),
        ({"RANK": "2"}, "variable RANK must be below WORLD_SIZE = 2, got 2; start the processes by torchrun"),
        ({"MASTER_ADDR": ""}, "variable MASTER_ADDR must say where 2 processes meet, and is not set"),
    ],
)
def test_a_broken_environment_is_named(broken: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ranks_of(place(0, 2, 1) | broken)


def test_who_meets_nobody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place(1, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(InputError, match=r"cannot meet the other ranks, 2 with this, at 127\.0\.0\.1:"),
        joined(CPU, timeout=0.5),
    ):
        pass
    assert not dist.is_initialized()


def test_a_gpu_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place(1, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    several, numbered = torch.device("cuda"), torch.device("cuda:0")
    with pytest.raises(InputError, match=r"there are 1 here for rank 1 .*--nproc-per-node 1"), joined(several):
        pass
    with pytest.raises(InputError, match=r"`device` must be cuda where 2 ranks run, .* got cuda:0"), joined(numbered):
        pass


def tell() -> dict[str, Any]:
    """What a rank is told by the others, and by what it is stopped."""
    found: dict[str, Any] = {}
    with joined(CPU, timeout=20) as ranks:
        mine = torch.tensor([[1.0], [2.0]]) + 10 * ranks.rank
        found["gather"] = ranks.gather(mine).flatten().tolist()
        found["sum"] = ranks.sum(mine).flatten().tolist()
        found["untouched"] = mine.flatten().tolist()
        found["share"] = ranks.share({"rank": ranks.rank})
        found["collect"] = ranks.collect(ranks.rank)
        found["highest"] = ranks.highest(ranks.rank)
        ranks.barrier()
        for error in (InputError("no\nspace"), RunError("not finite"), KeyError("odd")):
            try:
                with ranks.agreed():
                    if ranks.rank == 1:
                        raise error
            except Exception as told:
                found.setdefault("stopped", []).append((type(told).__name__, str(told), getattr(told, "code", None)))
        with ranks.agreed():
            pass
        if ranks.rank == 1:
            os._exit(0)  # without a word
        try:
            ranks.barrier()
        except RunError as lost:
            found["lost"] = str(lost)
    return found


def test_ranks_tell_each_other_and_stop_together() -> None:
    found, gone = on_ranks(2, tell)
    assert gone is None
    assert found["gather"] == [1.0, 2.0, 11.0, 12.0]
    assert found["sum"] == [12.0, 14.0]
    assert found["untouched"] == [1.0, 2.0]
    assert found["share"] == {"rank": 0}
    assert found["collect"] == [0, 1]
    assert found["highest"] == 1
    assert found["stopped"] == [
        ("InputError", "rank 1: no space", None),
        ("RunError", "rank 1: not finite", None),
        ("RunError", "rank 1: 'odd'", None),
    ]
    assert "the other ranks are lost: one of them died" in found["lost"]


def meet_again() -> list[int]:
    """Ranks that find what earlier ones left in the store that outlives them, as torchrun's does."""
    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=os.environ["RANK"] == "0")
    store.set("hello/1", "a rank that died")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
        found = []
        for _ in range(2):
            with joined(CPU, timeout=20) as ranks:
                found.append(ranks.highest(10 + ranks.rank))
    return found


def test_ranks_that_are_restarted_do_not_look_for_those_that_died() -> None:
    assert on_ranks(2, meet_again) == [[11, 11], [11, 11]]


def fail() -> tuple[str, int]:
    """How rank 1 ends where rank 0 fails."""
    with joined(CPU, timeout=20) as ranks:
        try:
            with ranks.agreed():
                if ranks.main:
                    raise InputError("no space")
        except ToldError as told:
            return "told", told.code
        except InputError as error:
            return str(error), 2
    return "", 0


def test_the_user_is_told_once() -> None:
    assert on_ranks(2, fail) == [("no space", 2), ("told", 2)]
