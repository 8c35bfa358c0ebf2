"""What the processor can do: its instructions for bfloat16, and how much they bring.

A CPU without such instructions computes in bfloat16 by converting to float32 and back, several times slower than in
float32 itself.
"""

import functools
import os
import platform
import time
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional

CPUINFO = Path("/proc/cpuinfo")
_RATE_ROUNDS = 3


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The processor's features as Linux names them, such as `avx2` and `amx_bf16`; empty on other systems."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":")[2] for line in lines if line.split(":")[0].strip() in ("flags", "Features"))
    return frozenset(next(named, "").split())


def bfloat16_instructions() -> str:
    """The instructions by which this CPU multiplies in bfloat16: `AMX`, `AVX512-BF16`, `Arm BF16`, or "" for none.

    Limits that the user sets for PyTorch (`ATEN_CPU_CAPABILITY`) and for oneDNN (`ONEDNN_MAX_CPU_ISA`) count.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return ""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "Arm BF16" if "bf16" in cpu_flags() else ""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    if "512" not in torch.backends.cpu.get_cpu_capability():
        return ""
    if "amx_bf16" in cpu_flags() and any(part in limit for part in ("DEFAULT", "ALL", "AMX")):
        return "AMX"
    knows = "avx512_bf16" in cpu_flags() or (not cpu_flags() and _torch_knows_avx512_bf16())
    return "AVX512-BF16" if knows and any(part in limit for part in ("DEFAULT", "ALL", "AMX", "BF16", "FP16")) else ""


def _torch_knows_avx512_bf16() -> bool:
    """PyTorch's own answer, for systems that do not list features; False where it gives none."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask and ask())


def instruction_set() -> str:
    """The vector instructions that PyTorch uses, and those for bfloat16, such as `AVX512 with AMX`."""
    capability, rough = torch.backends.cpu.get_cpu_capability(), bfloat16_instructions()
    return f"{capability} with {rough}" if rough else f"{capability} without bfloat16"


@functools.cache
def bfloat16_slowdown() -> float:
    """Time of a convolution with its gradients in bfloat16 over that in float32, measured now: below 1 is faster.

    The median of three rounds on 64 maps of 32 channels, 28 × 28: a tenth of a second, or a second where it is slow.
    """
    x, weight = torch.ones(64, 32, 28, 28), torch.ones(32, 32, 3, 3)

    def seconds(dtype: torch.dtype) -> float:
        maps, filters = x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        start = time.perf_counter()
        torch.autograd.grad(functional.conv2d(maps, filters, padding=1).sum(), (maps, filters))
        return time.perf_counter() - start

    with torch.enable_grad():
        seconds(torch.float32), seconds(torch.bfloat16)
        ratios = [seconds(torch.bfloat16) / seconds(torch.float32) for _ in range(_RATE_ROUNDS)]
    return median(ratios)
