"""How much memory work takes, and the most that fits."""

from pathlib import Path

import pytest
import torch

from sde_diffusion.runtime import memory
from sde_diffusion.runtime.memory import Growth, free_memory, is_shortage, peak_memory, readable

CPU = torch.device("cpu")
KIB = 1024


def block(kib: int) -> torch.Tensor:
    return torch.zeros(kib * KIB, dtype=torch.uint8)


def test_the_most_that_was_alive_at_once_counts() -> None:
    kept = block(5)

    def work() -> None:
        first = block(4)
        second = first[:KIB].add_(1)  # a view is no new memory
        del first, second
        third = block(3) + 1  # two of 3
        kept.add_(1)  # was there before
        del third

    assert peak_memory(CPU, work) == 6 * KIB


def test_what_a_gradient_needs_is_alive_until_it_is_had() -> None:
    weight = torch.ones(KIB, requires_grad=True)  # 4 KiB

    def work(count: int) -> None:
        x = weight
        for _ in range(4 * count):
            x = x.exp()  # kept for the gradient
        x.sum().backward()  # type: ignore[no-untyped-call]
        weight.grad = None

    growth = Growth.measured(CPU, work, most=16)
    assert growth.each == 16 * KIB
    enough = growth.fixed + 10 * growth.each
    assert growth.largest(CPU, enough / memory.USABLE["cpu"] + 1) == 10
    assert growth.largest(torch.device("cuda"), enough / memory.USABLE["cuda"] + 1) == 10
    assert growth.largest(CPU, 0) == 0
    assert growth.at(2) == growth.fixed + 32 * KIB


def test_free_memory_is_what_the_machine_or_the_container_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < free_memory(CPU) < 1e15
    (tmp_path / "max").write_text("5000\n")
    (tmp_path / "current").write_text("2000\n")
    monkeypatch.setattr(memory, "CGROUPS", ((str(tmp_path / "max"), str(tmp_path / "current")),))
    assert free_memory(CPU) == 3000
    (tmp_path / "max").write_text("max\n")
    assert free_memory(CPU) > 3000


def test_errors_that_say_so() -> None:
    assert is_shortage(torch.OutOfMemoryError("CUDA"))
    assert is_shortage(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_shortage(caught.value)
    assert not is_shortage(RuntimeError("shapes"))


def test_bytes_for_people() -> None:
    assert [readable(n) for n in (0, 1023, 1536, 3 << 20, 1.5 * 2**30, 2.0**41)] == [
        *("0 B", "1023 B", "1.5 KiB", "3 MiB", "1.5 GiB", "2,048 GiB")
    ]


def test_the_largest_batch_leaves_room_for_what_kernels_take_on_the_cpu() -> None:
    """A step of the config of Fashion-MNIST takes 2.1 times its tensors, at 64, 256 and 512 images."""
    growth, free = memory.Growth(40e6, 2.4e6), 22e9
    assert 2.1 * growth.at(growth.largest(CPU, free)) <= free
