"""A request means the same as a flag, as `--set a.b=value`, as a mapping in `--set` and in a file."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from sde_diffusion.commands import cli
from sde_diffusion.commands.asked import Asked, flags, request
from sde_diffusion.commands.likelihood import KEYS as SCORING
from sde_diffusion.commands.solving import KEYS as SOLVING
from sde_diffusion.commands.train import KEYS as TRAINING
from sde_diffusion.config.parse import put
from tests.commands.running import TINY, invoke, succeed

NAMES = {"confidence": "--conf"}  # flags that are not called as their parameter is
FLAGLESS = {  # options that ask for nothing that a config has
    *("checkpoint", "config_file", "assignments", "device", "out", "dry_run", "ema", "timeout", "overwrite"),
    *(
        "trajectory",
        "nfe",
        "pretrained",
        "no_ema",
        "resume",
        "no_estimate",
        "data_file",
        "check",
        "dequantise",
        "reference",
        "ledger",
        "pairs",
        "frames",
        "latents",
    ),
}
VALUES = {  # other than the defaults, of every option that stands for a config key
    "solver": "heun",
    "grid": "karras",
    "steps": 7,
    "t_end": 0.01,
    "denoise": False,
    "clip": True,
    "count": 3,
    "batch": 5,
    "guidance": 1.5,
    "seed": 4,
    "label": 3,
    "limit": 3,
    "start": 2,
    "rtol": 0.01,
    "atol": 0.02,
    "probes": 3,
    "distribution": "gaussian",
    "mode": "reverse",
    "chunk": 2,
    "dequantisation": "truncated_normal",
    "draws": 2,
    "replicates": 2,
    "tol": 0.5,
    "confidence": 0.9,
    "max_solves": 500,
    "sde": "ve",
    "exact": True,
    "split": "train",
    "coupling": "antithetic",
}
COMMANDS = ("sample", "encode", "decode", "interpolate", "likelihood", "train", "classifier")
KEYS = {
    **dict.fromkeys(("sample", "encode", "decode", "interpolate"), SOLVING | {"label": "sampling.label"}),
    "likelihood": SCORING | {"label": "likelihood.label", "exact": "likelihood.divergence.name"},
    **dict.fromkeys(("train", "classifier"), TRAINING),
}
ELSEWHERE = {"encode": {"split", "start", "limit"}, "interpolate": {"split"}}  # no key of the config there
NEEDED = {"decode": ("--latents", "latents.npy"), "interpolate": ("--pair", 0, 1)}
BESIDE: dict[str, tuple[str, Any]] = {  # a key that an option cannot do without
    **dict.fromkeys(("sampling.solver.steps", "sampling.solver.grid.name"), ("sampling.solver.name", "heun")),
    "likelihood.dequantisation.coupling": ("likelihood.draws", 2),
    "likelihood.max_solves": ("likelihood.tol", 0.5),
    "sampling.guidance.scale": ("sampling.label", [3]),
}


def options_of(command: str) -> list[str]:
    names = [option.name for option in cli.commands[command].params if isinstance(option, click.Option) and option.name]
    return [name for name in names if name not in FLAGLESS | ELSEWHERE.get(command, set())]


CASES = [(command, option) for command in COMMANDS for option in options_of(command)]


def in_a_flag(option: str, value: Any) -> tuple[object, ...]:
    flag = NAMES.get(option, f"--{option.replace('_', '-')}")
    if isinstance(value, bool):
        return (flag if value else flag.replace("--", "--no-"),)
    return (flag, value)


def four_ways(folder: Path, option: str, key: str, value: Any) -> dict[str, tuple[object, ...]]:
    """The options that ask for it in each of the four ways."""
    wanted = {"exact": "exact", "label": [value] if key == "sampling.label" else value}.get(option, value)
    beside = [BESIDE[key]] if key in BESIDE else []
    section = key.partition(".")[0]
    raw: dict[str, Any] = {}
    for name, what in (*beside, (key, wanted)):
        raw = put(raw, name, what)
    file = folder / f"{option}.yaml"
    file.write_text(yaml.safe_dump(raw))
    dotted = [f"{name}={json.dumps(what)}" for name, what in (*beside, (key, wanted))]
    sets = [("--set", text) for text in dotted]
    return {
        "flag": (*(word for pair in sets[:-1] for word in pair), *in_a_flag(option, value)),
        "dotted": tuple(word for pair in sets for word in pair),
        "mapping": ("--set", f"{section}={json.dumps(raw[section])}"),
        "file": ("--config", file),
    }


@pytest.mark.parametrize(("command", "option"), CASES, ids=[f"{command}-{option}" for command, option in CASES])
def test_four_ways_to_ask_are_one(command: str, option: str, tmp_path: Path, trained: Path, labelled: Path) -> None:
    key, value = KEYS[command][option], VALUES[option]
    run = labelled if option in ("label", "guidance") else trained
    start = (command, *TINY) if command in ("train", "classifier") else (command, run, *NEEDED.get(command, ()))
    ways = four_ways(tmp_path, option, key, value)
    told = {way: invoke(*start, *asked, "--dry-run") for way, asked in ways.items()}
    assert {outcome.code for outcome in told.values()} == {0}, {way: outcome.err for way, outcome in told.items()}
    assert len({outcome.out for outcome in told.values()}) == 1, told


REFUSED = {  # a key and an option beside which it is refused, in every way; and what is said
    "steps": ("sampling.solver.steps", ("sample", "--nfe", 10), "--nfe decides how many steps there are"),
    "rtol": ("sampling.solver.rtol", ("sample", "--nfe", 10), "--nfe decides how many steps there are"),
    "atol": ("sampling.solver.atol", ("sample", "--nfe", 10), "--nfe decides how many steps there are"),
    "grid": ("sampling.solver.grid.name", ("sample", "--nfe", 10), "--nfe chooses the grid with the solver"),
    "probes": ("likelihood.divergence.probes", ("likelihood", "--tol", 0.5), "--tol chooses the probes itself"),
    "replicates": ("likelihood.replicates", ("likelihood", "--tol", 0.5), "--tol chooses the replicates itself"),
    "draws": ("likelihood.draws", ("likelihood", "--ledger"), "--ledger takes no --draws"),
    "max_solves": ("likelihood.max_solves", ("likelihood",), "goes with --tol"),
    "dequantisation": ("likelihood.dequantisation.name", ("likelihood", "--ledger"), "--ledger takes no"),
}


@pytest.mark.parametrize("option", REFUSED)
def test_four_ways_to_ask_are_refused_alike(option: str, tmp_path: Path, trained: Path, patched: None) -> None:
    key, (command, *beside), message = REFUSED[option]
    for way, asked in four_ways(tmp_path, option, key, VALUES[option]).items():
        outcome = invoke(command, trained, *beside, *asked, "--out", tmp_path / "out")
        assert (outcome.code, message in outcome.error) == (2, True), (way, outcome)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused needs nothing beside it."""
    monkeypatch.setattr("tests.commands.test_asked.BESIDE", {})


def test_a_tolerance_uses_the_ode_that_is_asked_for_in_any_way(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "loose.yaml").write_text("likelihood: {ode: {atol: 0.3}}")
    key, start = (
        "likelihood.ode.rtol",
        ("likelihood", trained, "--tol", 500, "--limit", 2, "--set", "likelihood.ode.atol=0.3"),
    )
    for way, asked in four_ways(tmp_path, "rtol", key, 0.2).items():
        succeed(*start, *asked, "--out", tmp_path / way)
        told = json.loads((tmp_path / way / "likelihood.json").read_text())
        assert told["ode_tolerance"] == {"rtol": 0.2, "atol": 0.3}, way


def test_a_run_does_not_ask_for_what_it_has(tmp_path: Path, trained: Path) -> None:
    own = trained / "config.yaml"
    small = ("--count", 2, "--dry-run")
    plain, with_file = (succeed("sample", trained, *file, "--nfe", 5, *small) for file in ((), ("--config", own)))
    assert yaml.safe_load(plain.out)["sampling"]["solver"]["steps"] == 4
    assert with_file.out == plain.out
    raw = yaml.safe_load(own.read_text())
    (tmp_path / "edited.yaml").write_text(yaml.safe_dump(put(raw, "sampling.solver", {"name": "heun"})))
    edited = succeed("sample", trained, "--config", tmp_path / "edited.yaml", "--nfe", 5, *small)
    assert yaml.safe_load(edited.out)["sampling"]["solver"]["name"] == "heun"
    for tol in (("--tol", 0.5), ("--ledger",)):
        assert succeed("likelihood", trained, "--config", own, *tol, "--dry-run").out


def test_each_value_knows_who_gave_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("sampling: {count: 3, solver: {name: em, steps: 4}}")
    base = {"sampling": {"count": 1, "batch": 2, "solver": {"name": "ode", "rtol": 0.1}}}
    given = flags({"steps": 9, "seed": None}, {"steps": "sampling.solver.steps", "seed": "seed"})
    asked = request(tmp_path / "a.yaml", ["sampling.batch=7", "sampling.solver=heun"], given).over(base)
    assert asked.raw == {"sampling": {"count": 3, "batch": 7, "solver": {"name": "heun", "steps": 9}}}
    assert asked.says("sampling.count") == "sampling.count in the config file"
    assert asked.says("sampling.batch") == "--set sampling.batch"
    assert asked.says("sampling.solver.steps") == "--steps"
    assert asked.says("sampling.solver.name") == "--set sampling.solver.name"
    assert asked.says("sampling.solver.rtol") is None
    assert asked.says("seed") is None


def test_a_name_drops_what_was_said_before_it() -> None:
    base = {"sde": {"name": "vp", "t_min": 1e-4}}
    texts = ("sde.name=ve", "sde.sigma_max=3")
    assert request(None, texts).over(base).raw == {"sde": {"name": "ve", "sigma_max": 3}}
    assert request(None, texts[::-1]).over(base).raw == {"sde": {"name": "ve"}}


def test_names_come_before_the_flags_that_need_them() -> None:
    keys = {"grid": "solver.grid.name", "steps": "solver.steps"}
    given = flags({"grid": "karras", "steps": 3}, keys)
    asked: Asked = request(None, ["solver.grid.rho=5", "solver.name=em"], given).over({"solver": {"name": "ode"}})
    assert asked.raw == {"solver": {"name": "em", "grid": {"name": "karras", "rho": 5}, "steps": 3}}
