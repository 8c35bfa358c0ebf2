"""benchmarks/throughput.py: what it measures, how it goes on, and the tables it makes of it."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sde_diffusion

sys.path.insert(0, str(Path(sde_diffusion.__file__).parents[1] / "benchmarks"))

import throughput
import throughput_cases as cases
import throughput_page as page

CPU = torch.device("cpu")
QUICK = throughput.parts_of(CPU, quick=True)


def measure(part: throughput.Part) -> dict[str, Any]:
    """In this process, which has loaded what it needs."""
    return throughput.measure(part, CPU, quick=True, start=lambda part: throughput.Bench(part, CPU))


def case(tool: str, mode: str, seconds: list[float], first: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"tool": tool, "mode": mode, "seconds": seconds, "first_call": first, "forward_flops": 10**6} | more


def result(*found: dict[str, Any], phase: str = "train", precision: str = "float32") -> dict[str, Any]:
    facts = {"phase": phase, "problem": "28×28×1", "batch": 64, "steps": 1, "precision": precision, "skipped": {}}
    return facts | {
        "products": {"mm 100": [0.002, 0.002], "conv 50": [0.001, 0.001]},
        "cases": list(found),
        "commit": "abc",
    }


@pytest.mark.parametrize("name", ["train-tiny-float32", "infer-tiny-bfloat16", "sample-tiny-float32"])
def test_a_part_times_every_tool_that_is_there(name: str) -> None:
    part = QUICK[name]
    found = measure(part)
    names = {page.name_of(one) for one in found["cases"]} | set(found["skipped"])
    assert names == {variant.key for variant in part.variants}
    assert all(len(one["seconds"]) == found["rounds"] and min(one["seconds"]) > 0 for one in found["cases"])
    assert "sde_diffusion, default" in page.report(found)
    assert json.loads(json.dumps(found)) == found


def test_the_setting_that_is_recorded_is_that_of_what_ran() -> None:
    """Training and use are resolved apart: at 28 × 28 on the CPU the layout differs."""
    problem = dataclasses.replace(cases.TINY, shape=(1, 28, 28), batch=2)
    variant = cases.Variant(cases.OURS, "default", "float32")
    assert cases.build("train", problem, variant, CPU).setting.startswith("contiguous, not compiled")
    assert cases.build("infer", problem, variant, CPU).setting.startswith("channels_last, not compiled")


def test_the_memory_of_a_step_is_that_of_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(sde_diffusion.__file__).parents[1]))
    whole = QUICK["memory-tiny-float32"]
    part = throughput.Part(whole.phase, whole.problem, whole.precision, whole.modes[:1])
    found = throughput.measure_memory(part, CPU, quick=True)
    assert found["cases"][0]["bytes"] > 0
    assert "MiB" in page.report(found)


def test_a_tool_in_a_process_of_its_own_is_asked_and_says_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(sde_diffusion.__file__).parents[1]))
    apart = throughput.Apart(QUICK["infer-tiny-float32"], CPU, quick=True)
    try:
        assert apart.build("sde_diffusion, default")["forward_flops"] > 0
        assert apart.seconds("sde_diffusion, default", 2) > 0
        with pytest.raises(RuntimeError, match="KeyError: 'mm 9'"):
            apart.seconds("mm 9", 1)
    finally:
        apart.close()


def test_a_process_that_ends_is_told() -> None:
    apart = throughput.Apart(throughput.Part("none", cases.TINY, "float32", ()), CPU, quick=True)
    with pytest.raises(RuntimeError, match="the process ended with exit code 1"):
        apart.build("nothing")
    apart.close()


@pytest.mark.parametrize("problem", [cases.SMALL, cases.COLOUR, cases.CIFAR], ids=lambda one: one.name)
def test_the_networks_have_equal_flops(problem: cases.Problem) -> None:
    pytest.importorskip("diffusers")
    config = cases.read_config(cases.ROOT / "configs" / problem.config if problem.config else None, problem.ours)
    ours = cases.forward_flops(config.model.network(problem.shape), problem.shape)
    theirs = cases.diffusers_network(problem, CPU)[1]
    assert theirs == ours, "the architecture is the same"
    if problem is not cases.CIFAR:
        assert 0.5e9 < ours < 0.7e9
        if throughput.machine_facts(["denoising-diffusion-pytorch"])["versions"]["denoising-diffusion-pytorch"]:
            others = cases.lucidrains_diffusion(problem, CPU)[1]
            assert abs(others / ours - 1) < throughput.TOLERANCE


def test_a_product_is_the_same_however_it_is_asked_for() -> None:
    as_mm, as_convolution = (throughput.product(how, 32, torch.float32, CPU)() for how in ("mm", "conv"))
    # a (in, pixels) in the one, b (out, in) in the other: b a against a b of the same two matrices
    draws = torch.Generator().manual_seed(0)
    a, b = torch.randn(32, 32, generator=draws), torch.randn(32, 32, generator=draws)
    torch.testing.assert_close(as_mm, a @ b)
    torch.testing.assert_close(as_convolution.reshape(32, 32), b @ a)


def test_parts_are_merged_and_what_is_there_is_not_missing(tmp_path: Path) -> None:
    file, facts = tmp_path / "found.json", throughput.machine_facts()
    throughput.merge(file, "one", {"x": 1}, facts)
    throughput.merge(file, "two", {"x": 2}, facts)
    throughput.merge(file, "one", {"x": 3}, facts)
    found = throughput.read(file)["parts"]
    assert {name: one["x"] for name, one in found.items()} == {"one": 3, "two": 2}
    assert all("commit" in one for one in found.values())


def test_an_absent_tool_is_skipped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> cases.Job:
        raise ImportError("no such package")

    monkeypatch.setitem(cases.BUILDERS["infer"], cases.DIFFUSERS, absent)
    part = QUICK["infer-tiny-float32"]
    found = measure(throughput.Part("infer", part.problem, "float32", part.modes[:2]))
    assert found["skipped"] == {"diffusers, eager": "no such package"}
    assert "skipped diffusers, eager: no such package" in page.report(found)


def test_shares_ratios_and_break_even_are_those_of_their_formulas() -> None:
    ours = case("sde_diffusion", "default", [0.2, 0.2, 0.4], 1.0)
    compiled = case("sde_diffusion", "compiled", [0.1, 0.1, 0.1], 21.0)
    theirs = case("diffusers", "eager", [0.4, 0.8, 0.8])
    part = result(ours, compiled, theirs)
    assert page.machine_rate(part) == pytest.approx(2 * 100**3 / 0.002)
    assert page.share(part, ours) == pytest.approx(3 * 1e6 * 64 / 0.2 / 1e9)
    assert page.images_per_second(part, ours) == pytest.approx(320)
    spread = page.ratio(theirs, ours)
    assert (spread.low, spread.median, spread.high) == (2, 2, 3)
    assert page.compiled(part, compiled) == pytest.approx((20, 200))
    assert page.compiled(part, ours) is None
    assert page.compiled(part, theirs) is None
    assert page.compiled(part | {"cold": False}, compiled) is None, "it was read from a cache"


def test_goals_are_met_or_not() -> None:
    part = result(
        case("sde_diffusion", "default", [0.2, 0.2]),
        case("sde_diffusion", "compiled", [0.1, 0.1]),
        case("diffusers", "eager", [0.3, 0.3]),
        case("diffusers", "compiled", [0.15, 0.15]),
        case("denoising-diffusion-pytorch", "compiled", [0.12, 0.12]),
    )
    found = {goal.what.rpartition(": ")[2]: (goal.measured, goal.met) for goal in page.cpu_goals({"train": part})}
    assert found["default against diffusers eager"] == ("1.50× (1.50 … 1.50)", False)
    assert found["best against the better peer compiled"] == ("1.20× (1.20 … 1.20)", False)
    assert found["share of matmul, best"] == ("192 %", True)
    memory = {"phase": "memory", "problem": "28×28×1", "precision": "float32"}
    heap = [("sde_diffusion", "default", 80), ("diffusers", "eager", 100), ("diffusers", "compiled", 90)]
    memory["cases"] = [{"tool": tool, "mode": mode, "bytes": size} for tool, mode, size in heap]
    (goal,) = page.memory_goals({"memory": memory})
    assert (goal.measured, goal.met) == ("0.889×", True)


@pytest.mark.parametrize(("instructions", "precisions"), [("", {"float32"}), ("AMX", {"float32", "bfloat16"})])
def test_eager_parts_are_of_what_the_cpu_computes_in(
    monkeypatch: pytest.MonkeyPatch, instructions: str, precisions: set[str]
) -> None:
    monkeypatch.setattr(throughput, "bfloat16_instructions", lambda: instructions)
    monkeypatch.setattr(throughput, "instruction_set", lambda: f"AVX512 with {instructions}")
    parts = throughput.parts_of(CPU, quick=False, eager=True).values()
    assert {part.precision for part in parts} == precisions
    assert {part.phase for part in parts} == {"train", "infer"}
    assert all(mode in ("default", "eager") for part in parts for _, mode in part.modes)
    assert throughput.file_name(CPU, quick=False, eager=True).startswith(page.EAGER)


def test_each_kind_of_cpu_has_its_row() -> None:
    ours, theirs = case("sde_diffusion", "default", [0.2, 0.2]), case("diffusers", "eager", [0.3, 0.4])
    kind = {"machine": {"instructions": "AVX2", "cpu": "Some", "threads": 2}, "parts": {"train": result(ours, theirs)}}
    table = page.kinds_of_cpu([kind])
    assert "AVX2: Some, 2 threads" in table
    assert "1.75× (1.62 … 1.88), 320/s, 96 %" in table
    assert table.splitlines()[-1].count("–") == 3
    assert page.kinds_of_cpu([]) == page.NOT_MEASURED


def test_sampling_is_held_against_the_bare_network() -> None:
    part = result(
        case("sde_diffusion", "default", [1.04, 1.04]),
        case("sde_diffusion", "bare network", [1.0, 1.0]),
        case("diffusers", "eager", [2.0, 2.0]),
        phase="sample",
    )
    found = {goal.what.rpartition(": ")[2]: (goal.measured, goal.met) for goal in page.cuda_goals({"sample": part})}
    assert found["against the bare network"] == ("1.04× (1.04 … 1.04)", True)
    assert found["against diffusers DDIM"] == ("1.92× (1.92 … 1.92)", False)
