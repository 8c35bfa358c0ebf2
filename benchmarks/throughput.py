"""Images per second of training, inference and sampling, and the memory of a training step, beside the field's tools.

The networks have equal FLOPs (asserted within 10 %); `throughput_cases.py` says how each tool is called. Each tool has
a process of its own, for what one sets (how memory is kept, say) would hold for all in it; they run in turn within each
round, so that a ratio is of times of the same round, and the others wait. Beside them run products of large matrices,
and the share is the speed in FLOPs (three forward passes for a training step) of the fastest such product.
A compiled network's first call is timed apart; the break-even is the number of calls after which it has paid.
The memory of a training step is measured in a process of its own for each: on CUDA the most that was allocated, on the
CPU the peak of the resident set above what it was before the model was built.

The work is in parts of a few minutes. Each part's results are merged into the result file when it is done, so that a
run goes on where an earlier one stopped.

    python benchmarks/throughput.py [--device cuda] [--part NAME …] [--quick]
    python benchmarks/throughput.py --eager     # nothing compiled, 28×28 alone, on a CPU: three minutes
    python benchmarks/throughput.py --page      # writes the tables of docs/performance.md
"""

import argparse
import contextlib
import functools
import gc
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import throughput_page
import torch
from common import RESULTS, ROOT, alternate, describe, machine_facts, timed
from throughput_cases import CIFAR, COLOUR, DIFFUSERS, LUCIDRAINS, OURS, SMALL, TINY, Problem, Variant, build

from sde_diffusion.config.build import choose_device
from sde_diffusion.runtime.atomic_write import write_atomically
from sde_diffusion.runtime.cpu import bfloat16_instructions, instruction_set

PACKAGES = ("diffusers", "denoising-diffusion-pytorch", "ema-pytorch", "triton")
LEAST_ROUNDS, MOST_ROUNDS = 5, 15
TOLERANCE = 0.1  # on FLOPs against ours
# products of square matrices, the fastest of which is the machine's rate: how each is asked for, and its side
PRODUCTS = {"cpu": (("mm", 1024), ("mm", 2048), ("conv", 2048)), "cuda": (("mm", 4096), ("mm", 8192))}
QUICK_PRODUCTS = (("mm", 64), ("conv", 64))
ANSWER = "@answer "  # how lines of a competitor's process begin that are for us; its packages print as well
CACHE = "TORCHINDUCTOR_CACHE_DIR"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EAGER_AND_COMPILED = ((OURS, "default"), (OURS, "compiled"), (DIFFUSERS, "eager"), (DIFFUSERS, "compiled"))
CPU_VARIANTS = (*EAGER_AND_COMPILED, (LUCIDRAINS, "eager"), (LUCIDRAINS, "compiled"))
CUDA_VARIANTS = ((OURS, "eager"), *EAGER_AND_COMPILED)
SAMPLING = ((OURS, "bare network"), *EAGER_AND_COMPILED)


@dataclass(frozen=True)
class Part:
    """What is measured at a time: one phase (train, infer, sample or memory) of one problem in one precision."""

    phase: str
    problem: Problem
    precision: str
    modes: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return f"{self.phase}-{self.problem.name.replace('×', 'x').replace(' ', '-').lower()}-{self.precision}"

    @property
    def variants(self) -> list[Variant]:
        return [Variant(tool, mode, self.precision) for tool, mode in self.modes]


def parts_of(device: torch.device, *, quick: bool, eager: bool = False) -> dict[str, Part]:
    """The parts on a kind of device.

    Args:
        quick: All phases with a tiny network and nothing compiled.
        eager: Training and inference beside diffusers with nothing compiled, in the precisions of the CPU.
    """

    def named(parts: Iterator[Part]) -> dict[str, Part]:
        return {part.name: part for part in parts}

    if quick:
        modes = tuple(one for one in CPU_VARIANTS if one[1] != "compiled")
        sampling = tuple(one for one in SAMPLING if one[1] != "compiled")
        phases = {"train": modes, "infer": modes, "memory": modes, "sample": sampling}
        return named(Part(phase, TINY, precision, phases[phase]) for phase in phases for precision in DTYPES)
    if eager:
        modes = ((OURS, "default"), (DIFFUSERS, "eager"))
        precisions = ("float32", "bfloat16") if bfloat16_instructions() else ("float32",)
        return named(Part(phase, SMALL, one, modes) for phase in ("train", "infer") for one in precisions)
    if device.type == "cuda":
        phases = {"train": CUDA_VARIANTS, "infer": CUDA_VARIANTS, "sample": SAMPLING, "memory": CUDA_VARIANTS}
        return named(Part(phase, CIFAR, "bfloat16", modes) for phase, modes in phases.items())
    return named(
        Part(phase, problem, precision, CPU_VARIANTS)
        for phase in ("train", "infer", "memory")
        for problem in (SMALL, COLOUR)
        for precision in DTYPES
    )


def synchronised(run: Callable[[], Any], device: torch.device, times: int = 1) -> Callable[[], Any]:
    """`run` so many times, until the device has done it."""

    def call() -> Any:
        for _ in range(times):
            result = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    return call


def product(how: str, side: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Any]:
    """A product of two square matrices, 2 side³ FLOPs.

    It is asked for as `mm` or as the 1×1 convolution that it is: on some CPUs one library multiplies float32 twice as
    fast as the other.
    """
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=draws).to(device, dtype) for _ in range(2))
    if how == "mm":
        return lambda: a @ b
    x = a.reshape(1, side, side // 16, 16).contiguous(memory_format=torch.channels_last)
    return lambda: torch.nn.functional.conv2d(x, b[:, :, None, None])


class Bench:
    """Competitors of a part in this process, by name."""

    def __init__(self, part: Part, device: torch.device) -> None:
        self._part, self._device = part, device
        self._runs: dict[str, Callable[[], Any]] = {}

    def build(self, key: str) -> dict[str, Any]:
        """Build one, call it once, and say what it is."""
        variant = next(one for one in self._part.variants if one.key == key)
        job = build(self._part.phase, self._part.problem, variant, self._device)
        self._runs[key] = job.run
        facts = {"tool": variant.tool, "mode": variant.mode, "setting": job.setting, "forward_flops": job.flops}
        return facts | {"first_call": self.seconds(key, 1)}

    def add_product(self, key: str) -> None:
        """Take in a product of matrices, such as `mm 1024`."""
        how, side = key.split()
        self._runs[key] = product(how, int(side), DTYPES[self._part.precision], self._device)

    def seconds(self, key: str, times: int) -> float:
        """Of one call, by the clock, as the mean of so many until the device has done them."""
        return timed(synchronised(self._runs[key], self._device, times)).wall / times

    def close(self) -> None:
        """Nothing to do."""


class Apart:
    """The same in a process of its own, which waits while it is not asked."""

    def __init__(self, part: Part, device: torch.device, *, quick: bool) -> None:
        command = [sys.executable, __file__, "--serve", "--part", part.name, "--device", str(device)]
        command += ["--quick"] if quick else []
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, method: str, *arguments: Any) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps([method, *arguments]) + "\n")
            self._child.stdin.flush()
        for line in self._child.stdout:
            if line.startswith(ANSWER):
                answer = json.loads(line.removeprefix(ANSWER))
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return answer["value"]
        raise RuntimeError(f"the process ended with exit code {self._child.wait()}")

    def build(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self._ask("build", key)
        return found

    def add_product(self, key: str) -> None:
        self._ask("add_product", key)

    def seconds(self, key: str, times: int) -> float:
        return float(self._ask("seconds", key, times))

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # what was asked of a process that had ended
            self._child.communicate()


def serve(bench: Bench) -> None:
    """Answer the questions of `Apart` on the standard input until it ends."""
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        try:
            answer = {"value": getattr(bench, method)(*arguments)}
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(ANSWER + json.dumps(answer), flush=True)


Start = Callable[[Part], Bench | Apart]


def gather(
    part: Part, start: Start, benches: dict[str, Bench | Apart], skipped: dict[str, str]
) -> list[dict[str, Any]]:
    """The competitors that work here, each in the process of its tool; the others go into `skipped` with the reason.

    Raises:
        AssertionError: A network's FLOPs are not ours.
    """
    cases: list[dict[str, Any]] = []
    for variant in part.variants:
        if variant.tool not in benches:
            benches[variant.tool] = start(part)
        try:
            case = benches[variant.tool].build(variant.key)
        except (RuntimeError, ImportError) as error:
            if variant.tool == OURS:
                raise
            skipped[variant.key] = str(error)
            continue
        flops = case["forward_flops"]
        assert abs(flops / (cases or [case])[0]["forward_flops"] - 1) < TOLERANCE or part.problem is TINY, case
        print(f"  {variant.key}: first call {case['first_call']:.1f} s, {flops / 1e9:.3f} GFLOP", flush=True)
        cases.append(case)
    return cases


def measure(
    part: Part, device: torch.device, *, quick: bool, start: Start, seconds_in_all: float = 60.0
) -> dict[str, Any]:
    """Time the competitors of a part and the products of matrices in alternating rounds."""
    skipped: dict[str, str] = {}
    benches: dict[str, Bench | Apart] = {}
    try:
        cases = gather(part, start, benches, skipped)
        where = {f"{case['tool']}, {case['mode']}": benches[case["tool"]] for case in cases}
        products = [f"{how} {side}" for how, side in (QUICK_PRODUCTS if quick else PRODUCTS[device.type])]
        for key in products:
            benches[OURS].add_product(key)
            where[key] = benches[OURS]
        seconds = {key: bench.seconds(key, 1) for key, bench in where.items()}
        seconds = {key: bench.seconds(key, 1) for key, bench in where.items()}
        times = {key: max(1, round(0.2 / one)) if device.type == "cuda" else 1 for key, one in seconds.items()}
        one_round = sum(times[key] * one for key, one in seconds.items())
        rounds = 3 if quick else int(min(MOST_ROUNDS, max(LEAST_ROUNDS, seconds_in_all / one_round)))
        runs = {key: functools.partial(bench.seconds, key, times[key]) for key, bench in where.items()}
        timings = alternate(runs, rounds, warm_up=0 if quick else 1)
    finally:
        for bench in benches.values():
            bench.close()
    found = {key: [one.result for one in timings[key]] for key in timings}
    return {
        "phase": part.phase,
        "problem": part.problem.name,
        "batch": part.problem.samples if part.phase == "sample" else part.problem.batch,
        "steps": part.problem.steps if part.phase == "sample" else 1,
        "precision": part.precision,
        "rounds": rounds,
        "products": {key: found[key] for key in products},
        "cases": [case | {"seconds": found[f"{case['tool']}, {case['mode']}"]} for case in cases],
        "skipped": skipped,
    }


# ------------------------------------------------------------------------------------------------------------- memory


def status(field: str) -> int:
    """Bytes that /proc says of this process: VmRSS, or the peak VmHWM; where there is no /proc, the peak."""
    try:
        found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_of_a_step(part: Part, variant: Variant, device: torch.device) -> dict[str, Any]:
    """Peak memory of training, in this process: of its weights, optimizer and averages too, [bytes]."""
    build("train", TINY, Variant(variant.tool, "default" if variant.tool == OURS else "eager", "float32"), device).run()
    gc.collect()
    before = status("VmRSS")  # the libraries are loaded
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    job = build("train", part.problem, variant, device)
    for _ in range(2):  # the optimizer has its moments after the first
        job.run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    synchronised(job.run, device)()
    return {"bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status("VmHWM") - before}


def measure_memory(part: Part, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Each competitor in a process of its own."""
    skipped: dict[str, str] = {}
    cases = []
    for variant in part.variants:
        own = [
            "--device",
            str(device),
            "--part",
            part.name,
            "--memory-of",
            variant.key,
            *(["--quick"] if quick else []),
        ]
        done = subprocess.run([sys.executable, __file__, *own], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason told"])[-1]
            if variant.tool == OURS:
                raise RuntimeError(f"{variant.key}: {reason}")
            skipped[variant.key] = reason
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"  {variant.key}: {found['bytes'] / 2**20:.0f} MiB", flush=True)
        cases.append({"tool": variant.tool, "mode": variant.mode} | found)
    problem = part.problem
    return {
        "phase": "memory",
        "problem": problem.name,
        "batch": problem.batch,
        "precision": part.precision,
        "cases": cases,
        "skipped": skipped,
    }


# -------------------------------------------------------------------------------------------------------------- files


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of the CUDA device in letters that suit a file."""
    if device.type != "cuda":
        return device.type
    return re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(device).lower()).strip("_")


def file_name(device: torch.device, *, quick: bool, eager: bool) -> str:
    """Of the results: with `eager` a file for each kind of CPU, named by its instructions."""
    if eager:
        kind = re.sub(r"[^a-z0-9]+", "_", instruction_set().lower())
        return f"throughput_eager_{kind}.json"
    return f"throughput_{device_name(device)}{'_quick' if quick else ''}.json"


def read(path: Path) -> dict[str, Any]:
    """The result file so far."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    return found


def merge(path: Path, name: str, result: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Put one part's result into the file, whole or not at all."""
    own = {key: facts[key] for key in ("commit", "modified", "load_average")}
    whole = read(path)
    whole = {"machine": facts, "parts": whole["parts"] | {name: own | result}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())


def facts_of(device: torch.device) -> dict[str, Any]:
    """What a reader must know of the machine, its accelerator included."""
    facts = machine_facts(PACKAGES)
    if device.type == "cuda":
        facts |= {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--part", action="append", default=[], help="measure this part (again); default all missing")
    parser.add_argument("--list", action="store_true", help="name the parts that are missing")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing in a part, beside all else (default 60)")
    parser.add_argument("--quick", action="store_true", help="tiny networks and three rounds, to see that it works")
    parser.add_argument("--eager", action="store_true", help="28×28 beside diffusers, nothing compiled: three minutes")
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--page", action="store_true", help="write the tables of docs/performance.md and stop")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure what is missing, print, write."""
    options = options_of()
    with tempfile.TemporaryDirectory() as folder:
        cold = os.environ.setdefault(CACHE, folder) == folder
        work(options, cold=cold)


def work(options: argparse.Namespace, *, cold: bool) -> None:
    """What the command line asks; `cold`, if nothing has been compiled before, so that compiling takes its time."""
    if options.page:
        throughput_page.write()
        return
    device = choose_device(options.device)
    parts = parts_of(device, quick=options.quick, eager=options.eager)
    unknown = set(options.part) - set(parts)
    if unknown:
        raise SystemExit(f"error: unknown part {min(unknown)!r}; known: {', '.join(parts)}")
    if options.serve:
        serve(Bench(parts[options.part[0]], device))
        return
    if options.memory_of:
        part = parts[options.part[0]]
        variant = next(one for one in part.variants if one.key == options.memory_of)
        print(json.dumps(peak_of_a_step(part, variant, device)))
        return
    path = options.out or RESULTS / file_name(device, quick=options.quick, eager=options.eager)
    again = options.eager and not options.list  # three minutes: what is there is measured anew
    missing = options.part or [name for name in parts if again or name not in read(path)["parts"]]
    if options.list:
        print("\n".join(missing))
        return
    print(describe(facts_of(device)))
    for name in missing:
        print(f"\n{name}", flush=True)
        facts = facts_of(device)
        if parts[name].phase == "memory":
            result = measure_memory(parts[name], device, quick=options.quick)
        else:
            start = functools.partial(Apart, device=device, quick=options.quick)
            seconds = options.seconds / 4 if options.eager else options.seconds
            result = measure(parts[name], device, quick=options.quick, start=start, seconds_in_all=seconds)
        merge(path, name, result | {"cold": cold}, facts)
        print(throughput_page.report(result))
    print(f"\nwrote {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


if __name__ == "__main__":
    main()
