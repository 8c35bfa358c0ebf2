"""Random numbers as a function of keys: no global state, nothing to save, the same for every batch size.

`generator(seed, …)` gives a fresh generator per use. `SampleStream` gives each sample of a data set, of a sampling run
or of a training step its own numbers: they depend on (keys, sample index, draw number) and not on which samples share
the batch. Indices are cut into aligned blocks that are drawn whole and sliced, so drawing stays vectorised. What draws
for the rows of a batch takes `Draws`, and by `draws_of` a generator too.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, shown_type

BLOCK = 64  # sample indices per block; a batch aligned to it draws nothing in vain
_MASK = (1 << 64) - 1


def derive_seed(*keys: int) -> int:
    """A 63-bit seed from integers, by the splitmix64 finaliser; a change of any key changes half the bits."""
    state = 0
    for key in keys:
        state = (state + (key & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    # torch's CPU engine keeps the low 32 bits of a seed: fold the high ones into them
    return (state ^ (state >> 32)) & (_MASK >> 1)


def generator(*keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` seeded from `keys`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*keys))


class Draws(ABC):
    """Successive random numbers for the rows `start … start + count − 1` of a batch of `total`.

    Each call is the next draw of every row. The batch may be parted among calls and processes: these are some rows.
    """

    start: int
    count: int
    total: int
    device: torch.device

    @abstractmethod
    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, (B, *shape)."""

    @abstractmethod
    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape)."""


class WholeBatch(Draws):
    """All rows of a batch of `total`, from one generator: each row's numbers depend on how many others there are."""

    def __init__(self, source: torch.Generator, total: int) -> None:
        self.start, self.count, self.total, self.device = 0, total, total, source.device
        self._source = source

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(self.count, *shape, generator=self._source, dtype=dtype, device=self.device)

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(self.count, *shape, generator=self._source, dtype=dtype, device=self.device)


def default_generator(device: torch.device) -> torch.Generator:
    """PyTorch's own generator of a device, which `torch.manual_seed` seeds."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


def draws_of(source: torch.Generator | Draws, count: int) -> Draws:
    """The numbers for a batch of which `count` rows are at hand; of a generator they are all."""
    if isinstance(source, torch.Generator):
        return WholeBatch(source, count)
    if not isinstance(source, Draws):
        raise InputError(f"`generator` must be a torch.Generator such as generator(0), got {shown_type(source)}")
    assert source.count == count, f"draws for {source.count} rows, where there are {count}"
    return source


class SampleStream(Draws):
    """Successive draws for the samples `start … start + count − 1`; each call is the next draw of every sample.

    Args:
        keys: What the stream is for, e.g. (seed, purpose).
        start: Index of the first sample.
        count: Number of samples B.
        device: Where the numbers are drawn. A CPU and a GPU give different numbers for the same keys.
        total: Of the batch that the samples are rows of; None where they are its last.
    """

    def __init__(
        self, *keys: int, start: int, count: int, device: torch.device | str = "cpu", total: int | None = None
    ) -> None:
        self.start, self.count, self.total = start, count, start + count if total is None else total
        self.device = torch.device(device)
        first, last = start // BLOCK, (start + count - 1) // BLOCK
        self._offset = start - first * BLOCK
        self._blocks = [generator(*keys, block, device=device) for block in range(first, last + 1)]

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return self._cut(
            [torch.randn(BLOCK, *shape, generator=g, dtype=dtype, device=self.device) for g in self._blocks]
        )

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return self._cut(
            [torch.rand(BLOCK, *shape, generator=g, dtype=dtype, device=self.device) for g in self._blocks]
        )

    def rademacher(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """±1 with equal probability, (B, *shape)."""
        bits = [torch.randint(2, (BLOCK, *shape), generator=g, device=self.device) for g in self._blocks]
        return self._cut(bits).to(dtype) * 2 - 1

    def _cut(self, blocks: list[Tensor]) -> Tensor:
        whole = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        return whole[self._offset : self._offset + self.count]
