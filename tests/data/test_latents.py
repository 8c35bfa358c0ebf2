"""Latents: units, Gaussians drawn anew, splits, and what is wrong with a folder."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sde_diffusion.data import DataSpec, sweep, training_batches
from sde_diffusion.data import dataset as base
from sde_diffusion.data.order import TrainingOrder
from sde_diffusion.data.sources.latents import Latents
from sde_diffusion.errors import InputError
from sde_diffusion.pictures import save_classes, save_rows, save_samples, save_strip

N, SHAPE = 40, (4, 3, 2)
DRAWS = np.random.default_rng(0)
MEANS = (DRAWS.normal(size=(N, *SHAPE)) * [[[[1.0]], [[2.0]], [[3.0]], [[5.0]]]] + 7).astype(np.float32)
STDS = DRAWS.uniform(0.5, 2, (N, *SHAPE)).astype(np.float32)


def write(root: Path, **arrays: Any) -> str:
    root.mkdir(parents=True, exist_ok=True)
    for i, rows in enumerate((slice(0, 30), slice(30, N))):
        np.savez(root / f"{i}.npz", **{name: values[rows] for name, values in arrays.items()})
    return str(root)


@pytest.mark.parametrize("limit", [0, 1 << 30])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_model_coordinates_are_standardised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_channel: bool, spread: float, limit: int
) -> None:
    monkeypatch.setattr(base, "MEMORY_LIMIT", limit)
    root = write(tmp_path / "a", x=MEANS, labels=np.arange(N) % 3)
    dataset = Latents(root=root, per_channel=per_channel, spread=spread, test_fraction=0.25).read("train")
    values, labels = dataset.fetch(torch.arange(30))
    x = dataset.spec.to_model(values).double()
    axes = (0, 2, 3) if per_channel else (0, 1, 2, 3)
    assert x.mean(axes).abs().max() < 1e-6
    torch.testing.assert_close(x.std(axes, correction=0), torch.full_like(x.mean(axes), spread), rtol=1e-6, atol=0)
    torch.testing.assert_close(dataset.spec.from_model(x.float()), values, rtol=1e-5, atol=1e-5)
    assert labels is not None
    assert labels.tolist() == [i % 3 for i in range(30)]
    assert dataset.in_memory == (limit > 0)
    assert DataSpec.from_dict(dataset.spec.to_dict()) == dataset.spec


def test_a_density_by_channels_is_that_of_the_latents(tmp_path: Path) -> None:
    """x ~ N(0, I) makes channel c normal with shift_c and scale_c."""
    spec = Latents(root=write(tmp_path / "a", x=MEANS), per_channel=True).read("train").spec
    y = torch.from_numpy(MEANS[:5]).double()
    x = spec.to_model(y).double()
    shift, scale = (torch.tensor(v, dtype=torch.float64).reshape(4, 1, 1) for v in (spec.shift, spec.scale))
    own = torch.distributions.Normal(shift, scale).log_prob(y).flatten(1).sum(1)  # type: ignore[no-untyped-call]
    model = torch.distributions.Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)  # type: ignore[no-untyped-call]
    expected = -own / (24 * np.log(2))
    torch.testing.assert_close(spec.bits_per_dim(model), expected, rtol=1e-6, atol=0)  # x has float32's digits
    assert "with x = (y − (6.97226, 6.91336, 7.05141, 6.84848))/(0.969253" in spec.describe_units()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_safetensors_of_any_float(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.from_numpy(MEANS).to(dtype)
    save_file({"latent": values}, tmp_path / "a.safetensors")
    dataset = Latents(root=str(tmp_path), test_fraction=0.0).read("train")
    assert torch.equal(dataset.fetch(torch.arange(N))[0], values.float())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_gaussians_are_drawn_anew_by_their_place_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Latents(root=write(tmp_path / "a", mean=MEANS, std=STDS), test_fraction=0.0)
    held = source.read("train")
    monkeypatch.setattr(base, "MEMORY_LIMIT", 0)
    stream = source.read("train")
    assert (held.in_memory, stream.in_memory) == (True, False)
    whole = [b.x for b in islice(training_batches(held, batch=N, seed=1), 40)]
    for start, workers in ((0, 0), (3, 1)):
        again = islice(training_batches(stream, batch=N, seed=1, start=start, workers=workers), 3)
        assert all(torch.equal(b.x, x) for b, x in zip(again, whole[start:], strict=False))
    parts = [next(training_batches(held, batch=N, seed=1, rows=rows)).x for rows in (range(7), range(7, N))]
    assert torch.equal(torch.cat(parts), whole[0])
    x = torch.stack(whole).double()
    assert abs(x.mean()) < 4 / x.numel() ** 0.5
    assert abs(x.square().mean() - 1) < 4 * (x.square().var() / x.numel()) ** 0.5
    order = TrainingOrder(N, seed=1).rows(torch.arange(40 * N).reshape(40, N))
    z = (held.spec.shift + held.spec.scale * x - torch.from_numpy(MEANS)[order]) / torch.from_numpy(STDS)[order]
    assert abs(z.mean()) < 4 / z.numel() ** 0.5
    assert abs(z.square().mean() - 1) < 4 * (2 / z.numel()) ** 0.5
    assert abs((z[1:] * z[:-1]).mean()) < 4 / z[1:].numel() ** 0.5, "a new draw in every step"
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 4 / z[:, 1:].numel() ** 0.5, "and in every row"


def test_a_sweep_draws_each_gaussian_alike_whatever_the_batch(tmp_path: Path) -> None:
    dataset = Latents(root=write(tmp_path / "a", mean=MEANS, std=STDS), validation=8).load("validation")
    first, second = (torch.cat([b.x for _, b in sweep(dataset, batch=size, seed=0)]) for size in (3, 8))
    assert torch.equal(first, second)
    values, _ = dataset.fetch(torch.arange(8))
    assert torch.equal(values, torch.from_numpy(MEANS[28:36])), "their means, where nothing is drawn"
    assert not torch.equal(dataset.spec.to_model(values), first)


def test_sub_folders_are_the_splits(tmp_path: Path) -> None:
    write(tmp_path / "train", x=MEANS)
    write(tmp_path / "test", x=MEANS + 1)
    train, test = (Latents(root=str(tmp_path)).read(split) for split in ("train", "test"))  # type: ignore[arg-type]
    assert (len(train), len(test)) == (N, N)
    assert train.spec == test.spec
    assert torch.equal(test.fetch(torch.arange(N))[0], torch.from_numpy(MEANS + 1))
    write(tmp_path / "test", x=MEANS[:, :2])
    with pytest.raises(
        InputError, match=r"test must hold latents like .*train, \(4, 3, 2\) without labels, got \(2, 3, 2\) without"
    ):
        Latents(root=str(tmp_path)).read("test")
    with pytest.raises(InputError, match=r"`data.labels` must be empty where there are train and test folders"):
        Latents(root=str(tmp_path), labels="x.npy").read("test")


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": MEANS, "y": MEANS}, {}, "must hold one array beside `labels`, or `mean` and `std`, got x, y; name one"),
        ({"x": MEANS.astype(np.uint8)}, {}, "must hold latents .* of floating-point numbers, got uint8 .*name=arrays"),
        ({"mean": MEANS, "std": STDS[:, :2]}, {}, r"must hold latents .*, got float32 of shape \(40, 2, 3, 2\)"),
        ({"mean": MEANS, "std": np.log(STDS)}, {}, "`std` in .* must be ≥ 0, got -.*; .* store exp.logvar / 2"),
        ({"x": MEANS * np.inf}, {}, "must be finite, got .* infinite; fix the data"),
        ({"x": MEANS * 0}, {}, "must hold more than one value, got 0"),
        ({"x": MEANS}, {"root": ""}, "`data.root` must name a folder of latents, got nothing; set it"),
        ({"x": MEANS}, {"spread": 0.0}, "`data.spread` must be > 0, got 0.0"),
        ({"x": MEANS}, {"test_fraction": 1.0}, r"`data.test_fraction` must be in \[0, 1\), got 1.0"),
        ({"x": MEANS}, {"classes": ("a",)}, "`data.classes` needs labels, and .* has none; set `data.labels`"),
        ({"x": MEANS, "labels": np.arange(N)}, {"classes": ("a",)}, "must be from 0 to 0, the classes of latents"),
    ],
)
def test_impossible_folders_are_refused(
    tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    root = write(tmp_path / "a", **arrays)
    with pytest.raises(InputError, match=message):
        Latents(**{"root": root} | options).read("train")


def test_scales_must_go_with_the_channels() -> None:
    with pytest.raises(InputError, match=r"`scale` must be a number or one for each of 4 channels, got 2"):
        DataSpec("latents", SHAPE, levels=None, scale=(1.0, 2.0))
    with pytest.raises(InputError, match=r"`scale` must be > 0, got -1.0"):
        DataSpec("latents", SHAPE, levels=None, scale=(1.0, 2.0, -1.0, 1.0))


def test_pictures_of_latents_are_drawn(tmp_path: Path) -> None:
    spec = DataSpec("latents", SHAPE, levels=None, classes=("a", "b"), shift=(0.0,) * 4, scale=(1.0,) * 4)
    values = torch.from_numpy(MEANS)
    save_samples(tmp_path / "a.png", spec, values)
    save_classes(tmp_path / "b.png", spec, values, torch.arange(N) % 2)
    save_strip(tmp_path / "c.png", spec, [values[:2]] * 3, [1.0, 0.5, 0.0])
    save_rows(tmp_path / "d.png", spec, [values[:2]] * 2, ["a", "b"])
    assert spec.to_uint8(values).shape == values.shape
    assert len(list(tmp_path.glob("*.png"))) == 4
