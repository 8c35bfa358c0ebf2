"""What the processor can do, as its flags, PyTorch's capability and the user's limits say."""

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sde_diffusion.runtime import cpu
from sde_diffusion.runtime.cpu import bfloat16_instructions, bfloat16_slowdown, cpu_flags, instruction_set

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f{more}\nbugs\t\t: amx_bf16\n\n" * 2
ARM = "processor\t: 0\nFeatures\t: fp asimd sve{more}\nCPU part\t: 0xd40\n"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    cpu_flags.cache_clear()
    yield
    cpu_flags.cache_clear()


@pytest.mark.parametrize(
    ("machine", "text", "more", "capability", "limit", "expected"),
    [
        ("x86_64", X86, "", "AVX512", None, ""),
        ("x86_64", X86, " avx512_bf16", "AVX512", None, "AVX512-BF16"),
        ("x86_64", X86, " avx512_bf16 amx_bf16", "AVX512", None, "AMX"),
        ("x86_64", X86, " avx512_bf16 amx_bf16", "AVX2", None, ""),
        ("x86_64", X86, " avx512_bf16 amx_bf16", "AVX512", "AVX512_CORE_BF16", "AVX512-BF16"),
        ("x86_64", X86, " avx512_bf16 amx_bf16", "AVX512", "AVX512_CORE", ""),
        ("AMD64", X86, " avx512_bf16", "AVX512_BF16", "default", "AVX512-BF16"),
        ("aarch64", ARM, "", "DEFAULT", None, ""),
        ("aarch64", ARM, " bf16", "SVE256", None, "Arm BF16"),
    ],
)
def test_instructions_for_bfloat16(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    text: str,
    more: str,
    capability: str,
    limit: str | None,
    expected: str,
) -> None:
    (tmp_path / "cpuinfo").write_text(text.format(more=more))
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert bfloat16_instructions() == expected
    assert instruction_set() == f"{capability} with {expected}" if expected else f"{capability} without bfloat16"


@pytest.mark.parametrize("answer", [True, False])
def test_pytorch_answers_where_the_system_lists_no_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: answer, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert bool(bfloat16_instructions()) is answer


def test_without_onednn_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert bfloat16_instructions() == ""


def test_the_slowdown_is_a_ratio_of_times() -> None:
    assert 0.01 < bfloat16_slowdown() < 1000
