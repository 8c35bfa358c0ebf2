"""Config: every way in which YAML becomes objects, and what is said when it cannot."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sde_diffusion.config.build import REGISTRIES, Config, plain_config, read_config
from sde_diffusion.config.parse import Raw, differences, merge, override, parse, plain, read_yaml
from sde_diffusion.data import DATASETS
from sde_diffusion.data.sources.arrays import Arrays
from sde_diffusion.errors import InputError
from sde_diffusion.sde import SDES, VESDE, VPSDE, CosineBeta, LinearBeta
from sde_diffusion.solvers import SOLVERS, PerSampleODE

RICH: Raw = {
    "seed": 3,
    "sde": {"name": "vp", "t_min": 1e-4, "beta": {"name": "cosine"}},
    "data": {"name": "arrays", "file": "a.npy", "classes": ["a", "b"], "levels": 17},
    "model": {"network": {"name": "unet", "multipliers": [1, 2], "attention": []}, "conditional": True},
    "loss": {"weighting": "simple", "time_sampler": "stratified", "distance": "huber"},
    "training": {"clip": None, "flip": True, "preview": {"name": "em", "steps": 7, "grid": "quadratic"}},
    "sampling": {"solver": "ancestral", "t_end": 1e-3},
    "likelihood": {"divergence": "exact", "limit": 10},
}


def config_of(*assignments: str, **raw: Any) -> Config:
    return parse(Config, override(raw, assignments), REGISTRIES)


def message_of(*assignments: str, **raw: Any) -> str:
    with pytest.raises(InputError) as caught:
        config_of(*assignments, **raw)
    return str(caught.value)


@pytest.mark.parametrize("raw", [{}, RICH], ids=["defaults", "rich"])
def test_plain_is_the_inverse_of_parse(raw: Raw) -> None:
    config = parse(Config, raw, REGISTRIES)
    resolved = plain_config(config)
    again = parse(Config, yaml.safe_load(yaml.safe_dump(resolved)), REGISTRIES)
    assert again.sde == config.sde
    assert again.training == config.training
    assert plain_config(again) == resolved
    assert differences(raw, raw) == {}


@pytest.mark.parametrize(
    ("kind", "name", "row"), [(kind, name, row) for kind, table in REGISTRIES.items() for name, row in table.items()]
)
def test_every_row_of_every_registry_goes_there_and_back(kind: type, name: str, row: type) -> None:
    @dataclass
    class Holder:
        part: kind = None  # type: ignore[valid-type]

    holder = parse(Holder, {"part": name}, REGISTRIES)
    resolved = plain(holder, REGISTRIES)
    assert resolved["part"]["name"] == name
    assert plain(parse(Holder, resolved, REGISTRIES), REGISTRIES) == resolved


def test_a_name_alone_a_section_and_a_section_without_a_name() -> None:
    assert config_of(sde="ve").sde == VESDE()
    assert config_of(sde={"name": "ve", "sigma_max": 20}).sde == VESDE(sigma_max=20.0)
    assert config_of(sde={"t_min": 1e-4}).sde == VPSDE(t_min=1e-4), "of the default"
    assert config_of("sde.beta.max=10").sde == VPSDE(beta=LinearBeta(max=10.0))
    preview = config_of("training.preview.atol=0.5").training.preview
    assert preview == PerSampleODE(rtol=1e-3, atol=0.5), "the default's own options stay"
    assert config_of(training={"preview": "ode"}).training.preview == PerSampleODE()
    assert config_of("model.network.channels=8").model.network.options["time"] == "scale_shift"


def test_numbers_in_every_spelling() -> None:
    for text in ("1e-4", "1.0e-4", "0.0001", "'1e-4'"):
        assert config_of(f"training.learning_rate={text}").training.learning_rate == 1e-4
    assert isinstance(config_of("training.learning_rate=1").training.learning_rate, float)
    assert config_of("training.clip=null").training.clip is None
    assert config_of("training.clip=~").training.clip is None
    assert config_of("sampling.t_end=1e-3").sampling.t_end == 1e-3
    assert config_of("model.network.multipliers=[1, 3]").model.network.options["multipliers"] == (1, 3)
    assert config_of("model.network.multipliers=2").model.network.options["multipliers"] == (2,)
    assert config_of("data={name: arrays, classes: [x, y]}").data == Arrays(classes=("x", "y"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.steps=many", "`training.steps` must be a whole number, got 'many'"),
        ("training.steps=1.5", "`training.steps` must be a whole number, got 1.5"),
        ("training.steps=true", "`training.steps` must be a whole number, got True"),
        ("training.steps=", "`training.steps` must be a whole number, got None"),
        ("training.learning_rate=fast", "`training.learning_rate` must be a finite number, got 'fast'"),
        ("training.learning_rate=true", "`training.learning_rate` must be a finite number, got True"),
        ("training.learning_rate=.nan", "`training.learning_rate` must be a finite number, got nan"),
        ("training.clip=inf", "`training.clip` must be a finite number, got 'inf'"),
        (f"sde.t_min=1{'0' * 400}", "`sde.t_min` must be a finite number, got 1000"),
        ("training.flip=1", "`training.flip` must be true or false, got 1"),
        ("training.flip=maybe", "`training.flip` must be true or false, got 'maybe'"),
        ("data={name: images, root: 3}", "`data.root` must be text, got 3"),
        ("model.network.multipliers=[1, two]", "`model.network.multipliers` must be a whole number, got 'two'"),
        ("training.optimizer=sgd", "`training.optimizer` must be one of adam, adamw, got 'sgd'"),
        ("training=3", "`training` must be a section of keys, got 3"),
        ("training=[1]", r"`training` must be a section of keys, got [1]"),
        ("sde=[vp]", "`sde` must be a name or a section with a name, got ['vp']"),
        ("sde=null", "`sde` must be a name or a section with a name, got None"),
        ("sde.name=[1]", "`sde.name` must be one of vp, subvp, ve, ddpm, got [1]"),
        ("sde.name=", "`sde.name` must be one of vp, subvp, ve, ddpm, got None"),
        ("sde={name: vpp}", "unknown sde 'vpp'; did you mean 'vp'? known: vp, subvp, ve"),
        ("sde.beta.name=liner", "unknown sde.beta 'liner'; did you mean 'linear'?"),
        ("data=fashion-mnist", "unknown data 'fashion-mnist'; did you mean 'fashion_mnist'?"),
        ("sampling.solver=oed", "unknown sampling.solver 'oed'; did you mean 'ode'?"),
        ("model.network=unnet", "unknown model.network 'unnet'; did you mean 'unet'?"),
        ("loss.weighting=simpel", "unknown loss.weighting 'simpel'; did you mean 'simple'?"),
        ("loss.time_sampler=importence", "unknown loss.time_sampler 'importence'; did you mean 'importance'?"),
        ("likelihood.divergence=exakt", "unknown likelihood.divergence 'exakt'; did you mean 'exact'?"),
        ("training.preview.grid.name=x", "unknown config key 'training.preview.grid' of 'ode'"),
        ("model.prediction=epsilon", "unknown prediction 'epsilon'; did you mean 'eps'?"),
        ("trainig.steps=3", "unknown config key 'trainig'; did you mean 'training'? known: seed, sde, data"),
        ("training.step=3", "unknown config key 'training.step'; did you mean 'steps'?"),
        ("sde.sigma_max=3", "unknown config key 'sde.sigma_max' of 'vp'"),
        ("model.network.classes=3", "unknown config key 'model.network.classes' of 'unet'"),
        ("data={name: two_moons, tran: 3}", "unknown config key 'data.tran' of 'two_moons'; did you mean 'train'?"),
        ("loss.weighting={name: simple, power: 2}", "unknown config key 'loss.weighting.power' of 'simple'; it has no"),
        ("training.steps=0", "in `training`: `steps` must be > 0, got 0"),
        ("training.batch=-3", "in `training`: `batch` must be > 0, got -3"),
        ("sde.t_min=0", "in `sde`: `t_min` must be"),
        ("sde={name: ddpm, steps: 1}", "in `sde`: `steps` of a chain must be ≥ 2, got 1"),
        (
            "sde={name: ddpm, beta: {last: 1.0}}",
            "in `sde.beta`: `last` must be < 1, for β is the share",
        ),
        ("sde={name: ddpm, beta: {name: cosine, cap: 1}}", "in `sde.beta`: `cap` must be in (0.0, 1)"),
        ("sampling.solver.rtol=0", "in `sampling.solver`: `rtol` must be > 0"),
        ("likelihood.ode.on_failure=nan", "in `likelihood`: `ode.on_failure` must be raise, for a mean has no value"),
        ("likelihood.confidence=1", "in `likelihood`: `confidence` must be in (0, 1)"),
        ("steps", "an override must have the form section.key=value, got 'steps'"),
        ("=3", "an override must have the form section.key=value, got '=3'"),
        ("training..steps=3", "an override must have the form section.key=value"),
        ("training.steps=[3", "the value of the override 'training.steps=[3' is not YAML; quote it"),
        ("seed.x=3", "`seed.x` cannot be set: `seed` is a value, not a section"),
    ],
)
def test_what_cannot_be_is_named_by_its_dotted_path(assignment: str, message: str) -> None:
    assert message in message_of(assignment, seed=0)


def test_configs_name_rows_and_never_code(tmp_path: Path) -> None:
    for name in ("os.system", "sde_diffusion.sde.VPSDE", "!!python/name:os.system", "__class__"):
        assert "unknown sde" in message_of(sde={"name": name})
    for text in ("seed: !!python/object/apply:os.system ['true']", "sde: !!python/name:os.system"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(InputError, match="is not YAML"):
            read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", r"is not YAML: .* at line 1, column \d"),
        (b"a: b: c", "is not YAML: mapping values are not allowed here at line 1, column 5"),
        (b"- 1\n- 2", "must hold a mapping of sections"),
        (b"hello", "must hold a mapping of sections"),
        (b"a: \xff\xfe", "not a text file"),
        (b"\x00\x01", "is not YAML"),
        (b"{[1]: 2}", "is not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"bad\.yaml.*{message}"):
        read_yaml(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the config file .*none\.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="Is a directory"):
        read_yaml(tmp_path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert plain_config(read_config(tmp_path / "a.yaml")) == plain_config(Config())


def test_override_nests_replaces_and_leaves_its_argument_alone() -> None:
    raw: Raw = {"sde": "vp", "training": {"steps": 1}}
    assert override(raw, ["training.batch=2", "sde.beta.max=3", "a.b.c=[1, x]"]) == {
        "sde": {"name": "vp", "beta": {"max": 3}},
        "training": {"steps": 1, "batch": 2},
        "a": {"b": {"c": [1, "x"]}},
    }
    assert raw == {"sde": "vp", "training": {"steps": 1}}


def test_another_name_drops_the_options_of_the_old_one() -> None:
    raw: Raw = {"sde": {"name": "vp", "t_min": 1e-4}}
    assert override(raw, ["sde.name=ve"]) == {"sde": {"name": "ve"}}
    assert override(raw, ["sde.name=vp"]) == raw
    assert override(raw, ["sde=ve", "sde.sigma_max=3"]) == {"sde": {"name": "ve", "sigma_max": 3}}
    assert merge(raw, {"sde": {"name": "ve", "sigma_max": 3}}) == {"sde": {"name": "ve", "sigma_max": 3}}
    assert merge(raw, {"sde": "ve"}) == {"sde": "ve"} or merge(raw, {"sde": "ve"}) == {"sde": {"name": "ve"}}
    assert merge(raw, {"sde": "vp"}) == raw
    assert merge(raw, {"sde": {"beta": "cosine"}}) == {"sde": {"name": "vp", "t_min": 1e-4, "beta": "cosine"}}


def test_a_file_goes_over_the_base_and_overrides_over_both(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("training: {batch: 2}\nsde: {beta: cosine}\nsampling: {count: 5}\n")
    base = plain_config(config_of("training.batch=1", "training.steps=9", "sampling.batch=3"))
    config = read_config(tmp_path / "a.yaml", ["sampling.count=6"], base)
    assert (config.training.batch, config.training.steps) == (2, 9)
    assert (config.sampling.count, config.sampling.batch) == (6, 3)
    assert config.sde == VPSDE(beta=CosineBeta())


def test_missing_keys_take_the_defaults_of_the_component() -> None:
    whole = plain_config(Config())
    for section in whole:
        rest = {key: value for key, value in whole.items() if key != section}
        assert plain_config(parse(Config, rest, REGISTRIES)) == whole


def test_differences_have_dotted_paths() -> None:
    old = plain_config(config_of())
    new = plain_config(config_of("training.steps=5", "sde.beta.max=3"))
    assert differences(old, new) == {"training.steps": (1000, 5), "sde.beta.max": (20.0, 3.0)}


@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8)))
def test_any_mapping_is_a_config_or_an_input_error(raw: dict[str, Any]) -> None:
    known = dict(zip(("seed", "sde", "training", "data"), raw.values(), strict=False))
    for candidate in (raw, known, {"training": raw}, {"sde": raw}):
        with contextlib.suppress(InputError):
            parse(Config, candidate, REGISTRIES)


def test_the_tables_are_those_of_the_packages() -> None:
    assert {*SDES} <= {*REGISTRIES[next(k for k in REGISTRIES if k.__name__ == "SDE")]}
    assert DATASETS in REGISTRIES.values()
    assert SOLVERS in REGISTRIES.values()
