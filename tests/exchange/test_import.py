"""`import` as a user types it: what it makes, and one clear line for what cannot be."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sde_diffusion.training import RunFolder, load_checkpoint
from tests.commands.running import invoke, succeed
from tests.exchange.models import random_model, save_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("foreign") / "pipeline", random_model())


def test_an_imported_model_is_a_run_like_any_other(pipeline: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "1×8×8, no classes, step 0" in succeed("import", pipeline, "--out", run).out
    checkpoint = load_checkpoint(RunFolder(run).checkpoints()[0])
    assert checkpoint.group("model").keys() == checkpoint.group("ema").keys()
    assert checkpoint.meta["data"]["shape"] == [1, 8, 8]
    assert checkpoint.meta["data"]["levels"] == 256
    succeed("sample", run, "--solver", "ddim", "--steps", 2, "--count", 2)
    outcome = invoke("sample", run, "--ema", 0.05)
    assert outcome.code == 2
    assert "average of length 0.05 at step 0 cannot be found: the run kept no averages" in outcome.error
    assert (run / "sample_ddim_seed0_steps2" / "samples.png").is_file()


def test_an_import_is_scored_trained_on_and_exported(pipeline: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("import", pipeline, "--data", "digits", "--out", run)
    out = succeed("likelihood", run, "--limit", 2, "--rtol", 0.1, "--atol", 0.1).out
    assert "bits/dim over 1×8×8 = 64 dimensions of 17 levels" in out
    quick = ("--set", "training.preview={name: ddim, steps: 2}", "--set", "training.preview_count=4")
    out = succeed("train", "--config", run / "config.yaml", "--out", run, "--steps", 1, *quick).out
    assert "from step 0 to 1" in out
    assert "wrote" in succeed("export", run, "--out", tmp_path / "exported").out


def test_a_bare_model_and_a_file_of_it_are_the_same(pipeline: Path, tmp_path: Path) -> None:
    runs = []
    for source in (pipeline, pipeline / "unet", pipeline / "unet" / "diffusion_pytorch_model.safetensors"):
        runs.append(tmp_path / str(len(runs)))
        succeed("import", source, "--out", runs[-1])
    first, *others = (load_checkpoint(RunFolder(run).checkpoints()[0]).tensors for run in runs)
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in first.items())


def test_classes_decide_the_data_set_and_are_named_by_it(tmp_path: Path) -> None:
    """Ten classes of 28 × 28 are those of MNIST; others are of the user's images."""
    options = {"sample_size": 28, "layers_per_block": 1}
    for classes, name in ((10, "mnist"), (3, "images")):
        folder = save_pipeline(tmp_path / name, random_model(num_class_embeds=classes, **options))
        succeed("import", folder, "--out", tmp_path / "runs" / name)
        data = load_checkpoint(RunFolder(tmp_path / "runs" / name).checkpoints()[0]).meta["data"]
        assert (data["name"], data["classes"]) == (name, list(map(str, range(classes))))
        succeed("sample", tmp_path / "runs" / name, "--nfe", 2, "--count", 1, "--label", 2)
    for options, message in (
        ((), "has never been trained without a class"),
        (("--label", 2, "--guidance", 2), "the score without a label"),
    ):
        outcome = invoke("sample", tmp_path / "runs" / "mnist", "--nfe", 2, *options)
        assert outcome.code == 2
        assert message in outcome.error
    outcome = invoke("import", tmp_path / "images", "--data", "mnist", "--out", tmp_path / "new")
    assert outcome.code == 2
    assert "`data.name` must be a data set of 3 classes, got mnist of 10; name it by --data" in outcome.error


def test_the_config_can_be_seen_and_changed(pipeline: Path, tmp_path: Path) -> None:
    outcome = succeed("import", pipeline, "--dry-run", "--data", "digits", "--set", "sampling.count=5")
    assert "name: digits" in outcome.out
    assert "count: 5" in outcome.out


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def copy_of(pipeline: Path, folder: Path) -> Path:
    """The bare model, to be damaged."""
    folder.mkdir()
    for file in (pipeline / "unet").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def as_pickle(folder: Path, content: object) -> None:
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(content, folder / "diffusion_pytorch_model.bin")


def test_a_pickle_of_tensors_is_read(pipeline: Path, tmp_path: Path) -> None:
    folder = copy_of(pipeline, tmp_path / "model")
    as_pickle(folder, load_file(folder / "diffusion_pytorch_model.safetensors"))
    succeed("import", folder, "--out", tmp_path / "run")


def test_a_hostile_pickle_is_not_executed(pipeline: Path, tmp_path: Path) -> None:
    folder, trace = copy_of(pipeline, tmp_path / "model"), tmp_path / "trace"
    as_pickle(folder, {"conv_in.weight": Hostile(trace)})
    torch.load(folder / "diffusion_pytorch_model.bin", weights_only=False)
    assert trace.exists(), "it is hostile"
    trace.rmdir()
    outcome = invoke("import", folder, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert re.search(
        r"model\.bin was not loaded: it names posix.mkdir, and a pickle may hold tensors alone", outcome.error
    )
    assert not trace.exists()
    assert not (tmp_path / "run").exists()


def test_a_broken_pickle_is_one_line(pipeline: Path, tmp_path: Path) -> None:
    folder = copy_of(pipeline, tmp_path / "model")
    as_pickle(folder, {})
    for content in (b"", b"\x80\x02}q\x00", b"PK\x03\x04"):
        (folder / "diffusion_pytorch_model.bin").write_bytes(content)
        outcome = invoke("import", folder, "--out", tmp_path / "run")
        assert outcome.code == 2
        assert "it is damaged, or holds more than tensors" in outcome.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"conv_in.bias": None},
            r"lacks the tensor 'conv_in\.bias', which `model\.network` has as 'down\.0\.entry\.bias'",
        ),
        (
            {"conv_in.weight": torch.zeros(16, 2, 3, 3)},
            r"tensor 'conv_in\.weight' of .* must have shape \(16, 1, 3, 3\)",
        ),
        ({"extra.weight": torch.zeros(1)}, r"has the tensor 'extra\.weight', for which .* has no place; change its"),
        (
            {"conv_in.bias": torch.zeros(16, dtype=torch.int64)},
            r"'conv_in\.bias' of .* must hold real numbers, got torch.int64",
        ),
        ({"conv_in.bias": torch.full((16,), float("nan"))}, r"tensor 'conv_in\.bias' of .* must be finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    pipeline: Path, tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    folder = copy_of(pipeline, tmp_path / "model")
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file) | change
    save_file({name: value for name, value in weights.items() if value is not None}, file)
    outcome = invoke("import", folder, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert re.search(message, outcome.error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/absent"], "there is nothing at .*absent"),
        (["{}"], "cannot tell what .* is; known formats: diffusers.*; give one by --format"),
        (["{}", "--format", "difusers"], "unknown format 'difusers'; did you mean 'diffusers'"),
        (["{}", "--format", "diffusers"], "cannot read .*config.json: No such file"),
        (
            ["MODEL", "--set", "model.learned_variance=true"],
            "`model.learned_variance` must be false, as the heads of the imported network are, got true; leave it out",
        ),
        (["MODEL", "--set", "model.conditional=true"], "`model.conditional` must be false, as the classes of the"),
        (["MODEL", "--shape", "3x8"], "`--shape` must be 1xHEIGHTxWIDTH as .* says, got 3x8"),
        (["MODEL", "--shape", "3x-8"], "`--shape` must be sizes > 0 such as 3x32x32, got '3x-8'"),
        (
            ["MODEL", "--data", "cifar10"],
            r"`data.name` must be a data set of shape \(1, 8, 8\), got cifar10 of \(3, 32",
        ),
        (["MODEL", "--set", "model.network.channels=32"], "tensor 'conv_in.weight' of .* must have shape"),
        (["MODEL", "--out", "RUN"], "the run .* has checkpoints already; choose another --out"),
    ],
)
def test_bad_input_is_one_line(pipeline: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    succeed("import", pipeline, "--out", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    names = {"{}": str(tmp_path / "empty"), "MODEL": str(pipeline), "RUN": str(tmp_path / "run")}
    typed = [names.get(word, word.replace("{}", str(tmp_path))) for word in arguments]
    outcome = invoke("import", *typed, *(() if "--out" in typed else ("--out", tmp_path / "new")))
    assert outcome.code == 2
    assert re.search(message, outcome.error)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "_class_name",
            "UNet2DConditionModel",
            "`_class_name` of .* must be UNet2DModel to be imported, got 'UNet2DConditionModel'",
        ),
        ("cross_attention_dim", 32, "`cross_attention_dim` of .* is no option of a UNet2DModel that is known here"),
        ("resnet_time_scale_shift", "spatial", "`resnet_time_scale_shift` of .* must be default or scale_shift to be"),
        ("norm_eps", 0, "`norm_eps` of .* must be a number > 0 to be imported, got 0"),
        ("attn_norm_num_groups", 8, "`attn_norm_num_groups` of .* must be null or `norm_num_groups`"),
        ("mid_block_scale_factor", 2, "`mid_block_scale_factor` of .* must be 1 to be imported, got 2"),
        ("act_fn", "gelu", "`act_fn` of .* must be silu or swish to be imported, got 'gelu'"),
        (
            "time_embedding_type",
            "fourier",
            "`time_embedding_type` of .* must be positional to be imported, got 'fourier'",
        ),
        ("time_embedding_dim", 7, "`time_embedding_dim` of .* must be null or 64 to be imported, got 7"),
        ("block_out_channels", [16, 24], "`block_out_channels` of .* must hold multiples of its first number"),
        ("block_out_channels", "16", "`block_out_channels` of .* must be a list of whole numbers > 0"),
        ("norm_num_groups", 5, "`block_out_channels` of .* must divide by `norm_num_groups` = 5"),
        ("attention_head_dim", 5, "`attention_head_dim` of .* must divide `block_out_channels`"),
        ("layers_per_block", 0, "`layers_per_block` of .* must be a whole number > 0"),
        ("freq_shift", 2, "`freq_shift` of .* must be 0 or 1"),
        (
            "down_block_types",
            ["DownBlock2D", "SkipDownBlock2D"],
            "`down_block_types` of .* must hold DownBlock2D and Attn",
        ),
        ("down_block_types", ["DownBlock2D"], "`down_block_types` of .* must name 2 blocks"),
        ("up_block_types", ["UpBlock2D", "UpBlock2D"], "`up_block_types` of .* must have attention at the levels at"),
        ("sample_size", None, "`sample_size` of .* must be one or two whole numbers > 0, or be given by --shape"),
    ],
)
def test_a_config_that_cannot_be_expressed_names_the_key(
    pipeline: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    folder = copy_of(pipeline, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    outcome = invoke("import", folder, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert re.search(message, outcome.error)


def test_a_pipeline_with_more_than_a_network_is_refused(pipeline: Path, tmp_path: Path) -> None:
    folder = copy_of(pipeline, tmp_path / "model")
    index = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], "vqvae": ["diffusers", "VQModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    outcome = invoke("import", folder, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "must name a pipeline of `unet` and `scheduler` alone, got `vqvae` too" in outcome.error


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"_class_name": "PNDMScheduler"},
            "`_class_name` of .* must be one of DDPMScheduler, DDIMScheduler to be imported",
        ),
        (
            {"beta_schedule": "laplace"},
            "`beta_schedule` of .* must be one of linear, scaled_linear, sigmoid, squaredcos",
        ),
        ({"beta_end": 1.0}, "`last` must be < 1, for β is the share of the variance made new, got 1.0"),
        ({"prediction_type": "flow"}, "`prediction_type` of .* must be one of epsilon, sample, v_prediction to be"),
        ({"variance_type": "learned"}, "`variance_type` of .* must be one of fixed_small, .*, learned_range to be"),
        ({"variance_type": "learned_range"}, "`variance_type` of .* must be fixed, for the network has one head"),
        ({"rescale_betas_zero_snr": True}, "`rescale_betas_zero_snr` of .* must be false to be imported, got True"),
        ({"trained_betas": [0.1, 0.2]}, "`trained_betas` of .* must be null, with the rates named by `beta_schedule`"),
        ({"num_train_timesteps": 1}, "`num_train_timesteps` of .* must be ≥ 2 to be imported, got 1"),
        ({"num_train_timesteps": "many"}, "`num_train_timesteps` of .* must be a whole number > 0 to be imported"),
        ({"beta_end": 1.5}, "`sde.beta`.*`last` must be < 1"),
        ({"thresholding": True, "sample_max_value": 2}, "`sample_max_value` of .* must be 1, or at least 1000"),
    ],
)
def test_a_scheduler_that_cannot_be_expressed_names_the_key(
    pipeline: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    folder = copy_of(pipeline, tmp_path / "model")
    scheduler = json.loads((pipeline / "scheduler" / "scheduler_config.json").read_text()) | changed
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    outcome = invoke("import", folder, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert re.search(message, outcome.error)


def test_a_model_without_a_scheduler_is_said_to_be_taken_for_that_of_ddpm(pipeline: Path, tmp_path: Path) -> None:
    folder = copy_of(pipeline, tmp_path / "model")
    outcome = succeed("import", folder, "--out", tmp_path / "run", "--set", "sde.steps=300")
    assert "no scheduler_config.json beside the model: taken to be DDPM's" in outcome.err
    assert "steps: 300" in (tmp_path / "run" / "config.yaml").read_text()
