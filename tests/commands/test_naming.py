"""Results that nobody named a folder for do not overwrite each other."""

from pathlib import Path

import pytest

from tests.commands.running import invoke, succeed, train

RUN = ("--set", "model.conditional=true", "--set", "training.sample_every=0", "--set", "training.snapshot_every=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("named") / "run", *RUN)


SAMPLES: dict[str, tuple[object, ...]] = {
    "": (),
    "_label3": ("--label", 3),
    "_label0-1-2": ("--label", "0,1,2"),
    "_label-all": ("--label", "all"),
    "_label3_guidance2": ("--label", 3, "--guidance", 2),
    "_label3_guidance2_interval0.2-5": ("--label", 3, "--guidance", 2, "--set", "sampling.guidance.interval=[0.2, 5]"),
    "_label3_autoguidance_by-": (
        *("--label", 3, "--set", "sampling.guidance.name=autoguidance"),
        *("--set", "sampling.guidance.checkpoint={run}"),
    ),
    "_ema0.05": ("--ema", 0.05),
    "_ema-none": ("--no-ema",),
    "_log_snr_no_denoise_clip": ("--grid", "log_snr", "--no-denoise", "--clip"),
}


def test_samples_of_other_settings_have_other_folders(run: Path) -> None:
    found = set()
    for tail, options in SAMPLES.items():
        given = [str(option).format(run=run) for option in options]
        out = succeed("sample", run, "--solver", "ddim", "--steps", 2, "--count", 1, *given).out
        (folder,) = {Path(line.split()[1]).parent for line in out.splitlines() if line.startswith("wrote")}
        assert folder.name.startswith(f"sample_ddim_seed0_steps2{tail}")
        assert folder.name.removeprefix(f"sample_ddim_seed0_steps2{tail}").isalnum() == tail.endswith("_by-")
        found.add(folder)
    assert len(found) == len(SAMPLES)
    succeed("sample", run, "--nfe", 4, "--count", 1, "--batch", 1)
    assert [path.name for path in run.glob("sample_*_nfe4")], "what the budget chose need not be said"


def test_likelihoods_encodings_and_what_comes_back(run: Path) -> None:
    loose = ("--limit", 2, "--rtol", 0.1, "--atol", 0.1)
    for ema in ((), ("--ema", 0.05)):
        succeed("likelihood", run, *loose, "--no-reference", *ema)
        succeed("encode", run, "--solver", "ddim", "--steps", 2, "--limit", 2, "--label", "own", "--no-check", *ema)
        succeed("interpolate", run, "--solver", "ddim", "--steps", 2, "--pair", 0, 3, "--frames", 2, *ema)
    names = {path.name for path in run.iterdir()}
    for ema in ("", "_ema0.05"):
        assert f"likelihood_test_seed0_rtol0.1_atol0.1_limit2{ema}" in names
        encoded = f"encode_test_ddim_seed0_steps2_limit2_no_check_label-own{ema}"
        assert encoded in names
        assert f"interpolate_test_ddim_seed0_steps2_pairs0-3_frames2{ema}" in names
        succeed("decode", run, "--latents", run / encoded / "latents.npz", "--solver", "ddim", "--steps", 2)
    decoded = [path.name for path in run.glob("decode_latents_*_ddim_steps2")]
    assert len(decoded) == 2, "files of one name are told by their content"


def test_a_name_is_never_too_long_for_a_disk(run: Path) -> None:
    many = ",".join(str(i % 10) for i in range(200))
    out = succeed("sample", run, "--solver", "ddim", "--steps", 2, "--count", 1, "--label", many).out
    other = succeed("sample", run, "--solver", "ddim", "--steps", 2, "--count", 1, "--label", f"{many},1").out
    first, second = (text.splitlines()[-1].split()[1] for text in (out, other))
    assert first != second
    assert invoke("sample", run, "--label", many, "--dry-run").code == 0
