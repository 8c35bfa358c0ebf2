"""`encode`, `decode` and `interpolate`: there and back, whatever the batch, killed or not."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from sde_diffusion.data import DATASETS, sweep
from sde_diffusion.slerp import slerp
from tests.commands.running import TINY, invoke, succeed, train
from tests.commands.test_sample import counting, killed_after
from tests.training.test_trainer import Killed

GRID = ("--solver", "dpmpp_2m", "--steps", 6, "--grid", "log_snr")


def arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(file) as stored:
        return dict(stored)


def facts(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())  # type: ignore[no-any-return]


def encoded(run: Path, out: Path, *more: object) -> dict[str, npt.NDArray[Any]]:
    succeed("encode", run, *more, "--out", out)
    return arrays(out / "latents.npz")


def test_latents_come_with_indices_labels_errors_statistics_and_a_picture(tmp_path: Path, trained: Path) -> None:
    outcome = succeed("encode", trained, *GRID, "--start", 290, "--limit", 100, "--batch", 3, "--out", tmp_path)
    rows, told = arrays(tmp_path / "latents.npz"), facts(tmp_path, "encode")
    assert {file.name for file in tmp_path.iterdir()} == {"latents.npz", "encode.json", "encode.png"}
    assert set(rows) == {"z", "index", "labels", "rms", "largest", "exact"}
    assert (rows["z"].shape, rows["z"].dtype) == ((7, 1, 8, 8), np.float32)
    assert rows["index"].tolist() == list(range(290, 297))
    assert rows["labels"].tolist() == DATASETS["digits"]().load("test").fetch(torch.arange(290, 297))[1].tolist()
    assert told["z"]["std"] == pytest.approx(float(np.sqrt((rows["z"].astype(float) ** 2).mean())), rel=1e-9)
    norms = np.linalg.norm(rows["z"].reshape(7, -1).astype(float), axis=1)
    assert told["z"]["norm"] == pytest.approx(norms.mean(), rel=1e-9)
    assert told["z"]["prior_norm"] == pytest.approx(math.sqrt(64 - 0.5), rel=1e-4)  # E|z| ≈ √(D − ½)
    back = told["round_trip"]
    assert back["rms"] == pytest.approx(rows["rms"].mean(), rel=1e-9)
    assert back["rms_in_data_units"] == pytest.approx(8.5 * back["rms"], rel=1e-9)
    assert back["rms_max"] == rows["rms"].max() <= rows["largest"].max() == back["largest"]
    assert told["nfe"] == [6, 6]
    assert "7 examples, test of digits, from t = 1e-05 to 1; 6 score evaluations each way" in outcome.out
    assert "of the numbers come back exactly" in outcome.out
    assert "the prior's: 0, 1, 7.969" in outcome.out
    with Image.open(tmp_path / "encode.png") as image:
        assert image.size == (7 * 50 + 2, 3 * 50 + 2)


def test_a_tight_ode_comes_back_exactly(tmp_path: Path, trained: Path) -> None:
    tight = encoded(trained, tmp_path, "--solver", "ode", "--rtol", 1e-6, "--atol", 1e-6, "--limit", 3)
    assert tight["rms"].max() < 1e-4
    assert tight["exact"].min() > 0.98  # a number within the error of the edge of its level may cross it
    loose = encoded(trained, tmp_path / "loose", *GRID, "--limit", 3)
    assert loose["rms"].min() > 10 * tight["rms"].max()


def test_the_error_is_that_of_decoding_the_file(tmp_path: Path, trained: Path) -> None:
    told = encoded(trained, tmp_path / "a", *GRID, "--limit", 5)
    file = tmp_path / "a" / "latents.npz"
    succeed("decode", trained, "--latents", file, *GRID, "--no-denoise", "--out", tmp_path / "b")
    decoded = arrays(tmp_path / "b" / "samples.npz")["samples"]
    originals = DATASETS["digits"]().load("test").fetch(torch.arange(5))[0].numpy()
    same = (decoded == originals).reshape(5, -1).mean(1)
    assert np.array_equal(same, told["exact"])


def test_the_batch_changes_nothing_but_rounding(tmp_path: Path, trained: Path) -> None:
    a, b = (encoded(trained, tmp_path / str(n), *GRID, "--limit", 7, "--batch", n, "--no-check") for n in (7, 2))
    np.testing.assert_allclose(a["z"], b["z"], rtol=0, atol=1e-4)  # float32; a sum in another order
    assert set(a) == {"z", "index", "labels"}
    part = encoded(trained, tmp_path / "part", *GRID, "--start", 3, "--limit", 2, "--batch", 2, "--no-check")
    np.testing.assert_allclose(part["z"], a["z"][3:5], rtol=0, atol=1e-4)
    assert "round_trip" not in facts(tmp_path / "part", "encode")


def test_a_killed_encode_goes_on_where_it_stopped(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("encode", trained, *GRID, "--limit", 10, "--batch", 3)
    succeed(*options, "--out", tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(Killed):
            invoke(*options, "--out", tmp_path / "killed")
    assert not (tmp_path / "killed" / "latents.npz").exists()
    sizes = counting(monkeypatch, "encode", "to_latents", lambda loaded, x0, *_: len(x0))
    succeed(*options, "--out", tmp_path / "killed")
    assert sizes == [3, 1]
    whole, killed = (arrays(tmp_path / name / "latents.npz") for name in ("whole", "killed"))
    assert set(whole) == set(killed)
    assert all(np.array_equal(whole[name], killed[name]) for name in whole)
    assert (tmp_path / "whole" / "encode.png").read_bytes() == (tmp_path / "killed" / "encode.png").read_bytes()


def test_files_seeds_and_bins(tmp_path: Path, trained: Path) -> None:
    digits = DATASETS["digits"]().load("test").fetch(torch.arange(2))[0].numpy()
    np.save(tmp_path / "mine.npy", digits)
    split = encoded(trained, tmp_path / "split", *GRID, "--limit", 2)
    file = encoded(trained, tmp_path / "file", *GRID, "--file", tmp_path / "mine.npy")
    assert np.array_equal(split["z"], file["z"])
    assert "labels" not in file
    assert facts(tmp_path / "file", "encode")["file"] == str(tmp_path / "mine.npy")
    other = encoded(trained, tmp_path / "seed", *GRID, "--limit", 2, "--seed", 1)
    assert not np.array_equal(split["z"], other["z"]), "other dequantisation noise"
    centres = [
        encoded(trained, tmp_path / f"c{n}", *GRID, "--limit", 2, "--seed", n, "--no-dequantise")["z"] for n in (0, 1)
    ]
    assert np.array_equal(*centres)


def test_decoding_takes_any_latents_and_options(tmp_path: Path, labelled: Path) -> None:
    z = np.random.default_rng(0).standard_normal((5, 1, 8, 8))
    np.save(tmp_path / "z.npy", z)
    np.savez(tmp_path / "z.npz", latents=z.astype(np.float32), labels=np.zeros(5, int))
    base = ("decode", labelled, *GRID)
    succeed(*base, "--latents", tmp_path / "z.npy", "--batch", 2, "--out", tmp_path / "npy")
    succeed(*base, "--latents", tmp_path / "z.npz", "--seed", 4, "--out", tmp_path / "npz")
    first, second = (arrays(tmp_path / name / "samples.npz") for name in ("npy", "npz"))
    assert set(first) == {"samples"}
    assert (first["samples"] != second["samples"]).mean() < 0.01  # rounding, over the edge of a level
    assert facts(tmp_path / "npy", "decode")["shape"] == [5, 1, 8, 8]
    assert facts(tmp_path / "npy", "decode")["nfe"] == [7, 7]
    with Image.open(tmp_path / "npy" / "samples.png") as image:
        assert image.height == 3 * 50 + 2
    for i, more in enumerate([("--label", 7), ("--t-end", 0.3), ("--t-end", 0.3, "--no-denoise")]):
        outcome = succeed(*base, "--latents", tmp_path / "z.npy", *more, "--out", tmp_path / str(i))
        assert "5 samples" in outcome.out
        assert not np.array_equal(arrays(tmp_path / str(i) / "samples.npz")["samples"], first["samples"])
    assert arrays(tmp_path / "0" / "samples.npz")["labels"].tolist() == [7] * 5


def test_a_killed_decode_goes_on_where_it_stopped(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "z.npy", np.random.default_rng(0).standard_normal((5, 1, 8, 8)))
    options = ("decode", trained, "--latents", tmp_path / "z.npy", *GRID, "--batch", 2)
    succeed(*options, "--out", tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_after(patch, 1)
        with pytest.raises(Killed):
            invoke(*options, "--out", tmp_path / "killed")
    sizes = counting(monkeypatch, "decode", "to_samples", lambda loaded, z, *_: len(z))
    succeed(*options, "--out", tmp_path / "killed")
    assert sizes == [2, 1]
    whole, killed = (arrays(tmp_path / name / "samples.npz")["samples"] for name in ("whole", "killed"))
    assert np.array_equal(whole, killed)


def test_interpolation_goes_from_one_original_to_the_other(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("interpolate", trained, *GRID, "--pair", 3, 17, "--pair", 0, 3, "--frames", 5, "--batch", 4)
    outcome = succeed(*options, "--out", tmp_path / "whole")
    found = arrays(tmp_path / "whole" / "frames.npz")
    assert found["samples"].shape == (10, 1, 8, 8)
    assert found["pair"].tolist() == [0] * 5 + [1] * 5
    assert found["weight"].tolist() == [0, 0.25, 0.5, 0.75, 1] * 2
    own = encoded(trained, tmp_path / "own", *GRID, "--limit", 18, "--no-check")["z"]
    ends = torch.from_numpy(own[[3, 0]]), torch.from_numpy(own[[17, 3]])
    expected = slerp(*ends, torch.linspace(0, 1, 5, dtype=torch.float64)).flatten(0, 1)
    np.testing.assert_allclose(found["z"], expected.numpy(), rtol=0, atol=1e-4)
    assert "3 to 17: latents " in outcome.out
    assert len(facts(tmp_path / "whole", "interpolate")["degrees"]) == 2
    originals = DATASETS["digits"]().load("test").fetch(torch.tensor([3, 17]))[0].float() * (255 / 16)
    with Image.open(tmp_path / "whole" / "interpolate.png") as image:
        assert image.size == (7 * 50 + 2, 2 * 50 + 2)
        drawn = np.asarray(image)[5:50:6, :, 0]  # a pixel of 6 × 6 each
        assert np.array_equal(drawn[:, 5:50:6], originals[0, 0].round().numpy())
        assert np.array_equal(drawn[:, 305:350:6], originals[1, 0].round().numpy())
    with monkeypatch.context() as patch:
        killed_after(patch, 1)
        with pytest.raises(Killed):
            invoke(*options, "--out", tmp_path / "killed")
    sizes = counting(monkeypatch, "interpolate", "to_samples", lambda loaded, z, *_: len(z))
    succeed(*options, "--out", tmp_path / "killed")
    assert sizes == [4, 2]
    again = arrays(tmp_path / "killed" / "frames.npz")
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_dry_runs_print_what_would_be_done(tmp_path: Path, trained: Path) -> None:
    for command in (["encode"], ["decode", "--latents", "z.npy"], ["interpolate", "--pair", 1, 2]):
        outcome = succeed(*command, trained, *GRID, "--out", tmp_path / "out", "--dry-run")
        assert "name: dpmpp_2m" in outcome.out
    assert not (tmp_path / "out").exists()


def test_points_have_pictures_too(tmp_path: Path) -> None:
    options = ("--set", "data=two_moons", "--set", "model.network=mlp", "--set", "model.sigma_data=1")
    run = train(tmp_path / "run", *options, "--set", "training.sample_every=0", base=TINY[2:], steps=1)
    outcome = succeed("encode", run, *GRID, "--limit", 20, "--out", tmp_path / "encode")
    assert "exactly" not in outcome.out
    assert "data units" in outcome.out
    rows = arrays(tmp_path / "encode" / "latents.npz")
    x = next(sweep(DATASETS["two_moons"]().load("test"), batch=20, seed=0))[1].x
    assert rows["z"].shape == x.shape
    succeed("decode", run, *GRID, "--latents", tmp_path / "encode" / "latents.npz", "--out", tmp_path / "decode")
    succeed("interpolate", run, *GRID, "--pair", 0, 1, "--pair", 2, 3, "--out", tmp_path / "interpolate")
    for picture in ("encode/encode.png", "decode/samples.png", "interpolate/interpolate.png"):
        assert (tmp_path / picture).stat().st_size > 1000
