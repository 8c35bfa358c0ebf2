"""Data larger than memory: images per second by the number of workers, and the memory that each process takes.

Images are read and decoded by `data.images` and by what a user of torchvision would write, ImageFolder under a
DataLoader. Names are a million that stand for no files: what a worker holds after it has gone through a part of them.
Rows come in the order of training out of one large .npy file, cached and not. Memory is anonymous and proportional
(`Pss_Anon`): shared pages are divided among those that share them, and what the system caches of files counts for
nobody. Each measurement has a process of its own.

    python benchmarks/data_streaming.py [--quick] [--out FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, machine_facts, write_results
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from sde_diffusion.data import DataSpec, training_batches
from sde_diffusion.data import dataset as base
from sde_diffusion.data.disk.listing import Listing
from sde_diffusion.data.disk.shards import Shards, locate
from sde_diffusion.data.order import TrainingOrder
from sde_diffusion.data.sources.images import ImageFiles, Images

BATCH, SIDE, STORED = 64, 64, 160  # images in a batch; pixels a side as trained and as stored
ROW = 3 * 32 * 32  # bytes of a row
Facts = dict[str, Any]


def anonymous(pid: int) -> float:
    """Megabytes of a process that are backed by no file, shared ones in part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon")) / 1024


def children() -> list[int]:
    """The processes that this one has started."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def rate(batches: Iterator[Any], count: int) -> Facts:
    """Images per second after the first batches, and memory at the end."""
    for _ in islice(batches, 4):
        pass
    start = time.perf_counter()
    for _ in islice(batches, count):
        pass
    seconds = time.perf_counter() - start
    workers = [anonymous(pid) for pid in children()]
    return {"images_per_second": count * BATCH / seconds, "main_mb": anonymous(os.getpid()), "worker_mb": workers}


def endless(loader: "DataLoader[Any]") -> Iterator[Any]:
    """Epoch after epoch, as a user's training loop goes."""
    while True:
        yield from loader


def ours_images(root: str, workers: int, count: int) -> Facts:
    """`data.images`, streamed."""
    base.MEMORY_LIMIT = 0
    dataset = Images(root=root, size=(SIDE,), test_fraction=0.0).load("train")
    return rate(training_batches(dataset, batch=BATCH, seed=0, flip=True, workers=workers), count)


def peer_images(root: str, workers: int, count: int) -> Facts:
    """torchvision's ImageFolder with the transforms that do the same."""
    from torchvision import datasets, transforms

    steps = [transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(SIDE)]
    steps += [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    dataset = datasets.ImageFolder(root, transforms.Compose(steps))
    loader = DataLoader(
        dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    return rate(endless(loader), count)


class Blank(ImageFiles):
    """Names without files."""

    def decode(self, file: Path) -> Tensor:
        assert file.name
        return torch.zeros(self.spec.shape, dtype=torch.uint8)


def names(count: int) -> list[str]:
    """As those of a large data set."""
    return [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(count)]


def ours_names(_: str, workers: int, count: int) -> Facts:
    """Packed names, `count` batches of them read."""
    text = [name.encode() for name in names(1_000_000)]
    ends = torch.tensor([0, *map(len, text)]).cumsum(0)
    joined = torch.frombuffer(bytearray(b"".join(text)), dtype=torch.uint8)
    places = torch.arange(len(text), dtype=torch.int32) % 1000
    folders = [f"n{i:08d}" for i in range(1000)]
    listing = Listing(Path("/data"), joined, torch.stack([ends[:-1], ends[1:]], 1), places=places, folders=folders)
    spec = DataSpec("images", (1, 2, 2), levels=256, classes=tuple(folders))
    del text
    dataset = Blank(spec, listing, places)
    return rate(training_batches(dataset, batch=BATCH, seed=0, workers=workers), count)


def blank(_: str) -> Tensor:
    """An image without a file."""
    return torch.zeros(1, 2, 2)


def peer_names(_: str, workers: int, count: int) -> Facts:
    """ImageFolder's list of pairs."""
    from torchvision import datasets

    dataset = datasets.ImageFolder.__new__(datasets.ImageFolder)
    dataset.samples = [(f"/data/{name}", i % 1000) for i, name in enumerate(names(1_000_000))]
    dataset.loader, dataset.transform, dataset.target_transform = blank, None, None
    loader = DataLoader(
        dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    return rate(endless(loader), count)


def ours_rows(file: str, cold: int, count: int) -> Facts:
    """Rows by position."""
    path = Path(file)
    rows = Shards([path], [locate(path)["values"]])
    return timed_rows(rows.__getitem__, len(rows), path, cold, count)


def peer_rows(file: str, cold: int, count: int) -> Facts:
    """Rows of a memory map."""
    rows = np.load(file, mmap_mode="r")
    return timed_rows(lambda which: rows[which], len(rows), Path(file), cold, count)


def timed_rows(read: Callable[[Any], Any], length: int, path: Path, cold: int, count: int) -> Facts:
    """Microseconds a row, in batches, in the order of training; of the order itself, and memory of the process."""
    order = TrainingOrder(length, seed=0)
    start = time.perf_counter()
    batches = [order.rows(torch.arange(k * BATCH, (k + 1) * BATCH)).numpy() for k in range(count)]
    ordered = time.perf_counter() - start
    with path.open("rb") as file:
        if cold:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(1 << 24):
                pass
    before = anonymous(os.getpid())
    start = time.perf_counter()
    for batch in batches:
        read(batch)
    seconds = time.perf_counter() - start
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    return {
        "us_per_row": seconds / count / BATCH * 1e6,
        "us_per_row_of_order": ordered / count / BATCH * 1e6,
        "anonymous_growth_mb": anonymous(os.getpid()) - before,
        "resident_mb": resident,
    }


CASES: dict[str, Callable[[str, int, int], Facts]] = {
    case.__name__: case for case in (ours_images, peer_images, ours_names, peer_names, ours_rows, peer_rows)
}


def alone(case: str, place: str, setting: int, count: int) -> Facts:
    """A case in a process of its own."""
    command = [sys.executable, __file__, "--case", case, place, str(setting), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr[-2000:]}")
    facts: Facts = json.loads(done.stdout.splitlines()[-1])
    print(f"{case} {setting}: {facts}", file=sys.stderr)
    return {"case": case, "setting": setting, **facts}


def write_images(root: Path, count: int) -> None:
    """JPEGs of smooth noise, in ten folders."""
    draws = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(draws.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        file = root / str(i % 10) / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((STORED, STORED), Image.Resampling.BICUBIC).save(file, quality=90)


def table(rows: list[Facts]) -> str:
    """What was measured, as Markdown."""
    lines = ["| what | workers | images/s | main, MB | each worker, MB |", "|---|---|---|---|---|"]
    for row in rows:
        if "us_per_row" not in row:
            each = "–" if not row["worker_mb"] else f"{np.mean(row['worker_mb']):.0f}"
            what = f"| {row['case']} | {row['setting']} | {row['images_per_second']:.0f}"
            lines.append(f"{what} | {row['main_mb']:.0f} | {each} |")
    lines += ["", "| rows of 3 KB in shuffled order | µs a row | resident, MB |", "|---|---|---|"]
    for row in rows:
        if "us_per_row" in row:
            state = "not cached" if row["setting"] else "cached"
            lines.append(f"| {row['case']}, {state} | {row['us_per_row']:.2f} | {row['resident_mb']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure everything, in alternation, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="A few batches, to see that it runs.")
    parser.add_argument("--out", type=Path, default=RESULTS / "data_streaming.json")
    parser.add_argument("--case", nargs=4, metavar="VALUE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case, place, setting, count = arguments.case
        print(json.dumps(CASES[case](place, int(setting), int(count))))
        return
    quick: bool = arguments.quick
    with tempfile.TemporaryDirectory() as folder:
        root, large = Path(folder) / "images", Path(folder) / "rows.npy"
        write_images(root, 128 if quick else 2000)
        values = np.lib.format.open_memmap(large, mode="w+", dtype=np.uint8, shape=((1 << (14 if quick else 18)), ROW))
        values[:] = np.arange(len(values), dtype=np.uint8)[:, None]
        values.flush()
        del values
        tasks = [(f"{who}_images", root, n, 4 if quick else 20) for n in (0, 1, 2) for who in ("ours", "peer")]
        tasks += [(f"{who}_names", root, 2, 20 if quick else 1500) for who in ("ours", "peer")]
        tasks += [(f"{who}_rows", large, cold, 20 if quick else 200) for cold in (0, 1) for who in ("ours", "peer")]
        rows = [alone(case, str(place), setting, count) for case, place, setting, count in tasks]
    facts = {"machine": machine_facts(("torchvision", "pillow")), "quick": quick, "batch": BATCH, "rows": rows}
    write_results(arguments.out, facts)
    print(table(rows))


if __name__ == "__main__":
    main()
