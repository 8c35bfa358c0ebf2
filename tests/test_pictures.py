"""Pictures, pixel by pixel where they are grids."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from sde_diffusion.data import DataSpec
from sde_diffusion.errors import InputError
from sde_diffusion.pictures import save_classes, save_histogram, save_paths, save_rows, save_samples, save_strip
from sde_diffusion.rng import generator

GREY = DataSpec("digits", (1, 8, 8), levels=17)
COLOUR = DataSpec("images", (3, 50, 60), levels=256)
POINTS = DataSpec("two_moons", (2,), levels=None)
SERIES = DataSpec("arrays", (20,), levels=None)
GAP = 128


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_a_grid_runs_row_by_row_and_enlarges_small_images_sharply(tmp_path: Path) -> None:
    values = torch.arange(9, dtype=torch.uint8).reshape(9, 1, 1, 1).expand(9, 1, 8, 8).clone()
    values[5, 0, 0, 7] = 16
    save_samples(tmp_path / "a.png", GREY, values)
    shown = pixels(tmp_path / "a.png")
    side, step = 6 * 8, 6 * 8 + 2
    assert shown.shape == (3 * step + 2, 3 * step + 2, 3)
    for i in range(9):
        top, left = 2 + step * (i // 3), 2 + step * (i % 3)
        tile = shown[top : top + side, left : left + side]
        expected = np.full((side, side, 3), round(i * 255 / 16))
        if i == 5:
            expected[:6, -6:] = 255
        assert np.array_equal(tile, expected)
    gaps = [k for k in range(3 * step + 2) if k % step < 2]
    assert (shown[gaps] == GAP).all()
    assert (shown[:, gaps] == GAP).all()


def test_an_incomplete_row_is_filled_up(tmp_path: Path) -> None:
    save_samples(tmp_path / "a.png", GREY, torch.zeros(5, 1, 8, 8, dtype=torch.uint8))
    assert pixels(tmp_path / "a.png").shape == (3 * 50 + 2, 2 * 50 + 2, 3)


def test_colours_and_uneven_sides_are_kept(tmp_path: Path) -> None:
    values = torch.randint(256, (2, 3, 50, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_samples(tmp_path / "a.png", COLOUR, values, columns=2)
    shown = pixels(tmp_path / "a.png")
    assert shown.shape == (54, 126, 3)
    assert np.array_equal(shown[2:52, 64:124], values[1].permute(1, 2, 0).numpy())


def test_a_strip_has_one_row_per_sample_and_time_from_left_to_right(tmp_path: Path) -> None:
    frames = [torch.full((3, 1, 8, 8), 5 * time, dtype=torch.uint8) for time in range(4)]
    for frame in frames:
        frame[1] += 1
    save_strip(tmp_path / "a.png", GREY, frames, [1.0, 0.5, 0.1, 0.0])
    shown = pixels(tmp_path / "a.png")
    assert shown.shape == (3 * 50 + 2, 4 * 50 + 2, 3)
    grid = shown[26::50, 26::50, 0]
    level = np.array([[0, 5, 10, 15], [1, 6, 11, 16], [0, 5, 10, 15]])
    assert np.array_equal(grid, np.round(level * 255 / 16))


@pytest.mark.parametrize("spec", [POINTS, SERIES], ids=lambda spec: spec.name)
def test_points_and_series_are_drawn(tmp_path: Path, spec: DataSpec) -> None:
    values = torch.randn(30, *spec.shape, generator=torch.Generator().manual_seed(0))
    save_samples(tmp_path / "a.png", spec, values)
    save_strip(tmp_path / "b.png", spec, [values, 2 * values], [1.0, 0.0])
    one, two = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert one.std() > 5, "not a blank page"
    assert two.std() > 5
    if spec is POINTS:
        assert two.shape[1] > 1.5 * one.shape[1], "one panel per time"


def test_a_histogram_marks_the_mean_and_its_interval(tmp_path: Path) -> None:
    values = 3 + torch.randn(200, generator=torch.Generator().manual_seed(0))
    save_histogram(tmp_path / "wide.png", values, label="bits/dim", mean=3.0, half_width=0.5)
    save_histogram(tmp_path / "none.png", values, label="bits/dim", mean=3.0, half_width=None)
    shown = [pixels(tmp_path / name).astype(int) for name in ("wide.png", "none.png")]
    red = [int((picture[..., 0] - picture[..., 1] > 20).sum()) for picture in shown]
    assert red[0] > 3 * red[1] > 0, red
    save_histogram(tmp_path / "one.png", values[:1], label="bits/dim", mean=float(values[0]), half_width=None)


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/a\.png: "):
        save_samples(tmp_path / "file" / "a.png", GREY, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_rows_have_a_state_each_and_paths_an_example(tmp_path: Path) -> None:
    values = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 1, 8, 8).clone()
    save_rows(tmp_path / "rows.png", GREY, [values[:3], values[3:]], ["a", "b"])
    save_paths(tmp_path / "paths.png", GREY, values.reshape(2, 3, 1, 8, 8))
    for name in ("rows.png", "paths.png"):
        shown = pixels(tmp_path / name)
        assert shown.shape == (2 * 50 + 2, 3 * 50 + 2, 3)
        for i in range(6):
            assert (shown[10 + 50 * (i // 3), 10 + 50 * (i % 3)] == round(i * 255 / 16)).all()


@pytest.mark.parametrize("spec", [POINTS, SERIES])
def test_rows_and_paths_of_other_data(tmp_path: Path, spec: DataSpec) -> None:
    values = torch.randn(2, 5, *spec.shape, generator=generator(0))
    save_rows(tmp_path / "rows.png", spec, list(values), ["a", "b"])
    save_paths(tmp_path / "paths.png", spec, values)
    for name in ("rows.png", "paths.png"):
        assert len(np.unique(pixels(tmp_path / name).reshape(-1, 3), axis=0)) > 20


def test_classes_have_a_row_each_with_a_name(tmp_path: Path) -> None:
    spec = DataSpec("digits", (1, 8, 8), levels=17, classes=("nought", "one", "two"))
    labels = torch.tensor([2, 0, 2, -1, 0, 2])
    values = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 1, 8, 8).clone()
    save_classes(tmp_path / "a.png", spec, values, labels)
    shown = pixels(tmp_path / "a.png")
    margin = shown.shape[1] - (3 * 50 + 2)
    assert shown.shape[0] == 3 * 50 + 2
    assert margin > 0
    names = shown[:, :margin].min(2) < 128
    assert all(names[2 + 50 * row : 50 + 50 * row].any() for row in range(3)), "a name each"
    middles = shown[26::50, margin + 26 :: 50, 0]
    level = [round(i * 255 / 16) for i in range(6)]
    assert middles.tolist() == [[level[3], GAP, GAP], [level[1], level[4], GAP], [level[0], level[2], level[5]]]
    save_classes(tmp_path / "many.png", spec, values[:1].expand(40, -1, -1, -1), torch.arange(40) % 2)
    assert pixels(tmp_path / "many.png").shape[0] == 2 * 50 + 2
    assert pixels(tmp_path / "many.png").shape[1] > 16 * 50


@pytest.mark.parametrize("shape", [(2,), (20,)])
def test_classes_of_other_data_have_colours(tmp_path: Path, shape: tuple[int, ...]) -> None:
    spec = DataSpec("arrays", shape, levels=None, classes=("a", "b"))
    values, labels = torch.randn(30, *shape, generator=generator(0)), torch.arange(30) % 2
    save_classes(tmp_path / "a.png", spec, values, labels)
    shown = pixels(tmp_path / "a.png").astype(int)
    blue, orange = (shown[..., 2] - shown[..., 0] > 40).sum(), (shown[..., 0] - shown[..., 2] > 40).sum()
    assert min(blue, orange) > 50
