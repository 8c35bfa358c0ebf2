"""Pictures: grids of samples, denoising strips, scatter plots, histograms. Each is one PNG, written atomically."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sde_diffusion.data import DataSpec
from sde_diffusion.runtime.atomic_write import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # half a second to import: only who plots pays

MIN_SIDE = 48  # pixels; smaller images are enlarged by whole numbers, without smoothing
GAP, GREY = 2, 128  # pixels between images, and their colour
COLUMNS, FONT = 16, 14  # most images of a class, and the height [pixels] of its name


def save_samples(path: Path, spec: DataSpec, values: Tensor, *, columns: int | None = None) -> None:
    """Draw samples in data units, (N, *shape): images as a grid, points as a scatter plot, else as lines."""
    if spec.is_image:
        _save_grid(path, spec.to_uint8(values.cpu()), columns or _square(len(values)))
    elif spec.dims == 2:
        _save_scatter(path, [values.cpu().flatten(1)], ["samples"])
    else:
        _save_lines(path, values.cpu().flatten(1))


def save_classes(path: Path, spec: DataSpec, values: Tensor, labels: Tensor) -> None:
    """Draw samples in data units, (N, *shape), of the classes `labels` (N,), −1 for none.

    Images have a row a class with its name at the left, at most 16 of each; points and lines a colour a class.
    """
    values, labels = values.cpu(), labels.cpu()
    classes: list[int] = sorted(set(labels.tolist()))
    names = [spec.classes[k] if k >= 0 else "no class" for k in classes]
    if spec.is_image:
        rows = [spec.to_uint8(values[labels == k][:COLUMNS]) for k in classes]
        _save_named_rows(path, rows, names)
        return
    figure = _figure(5, 5) if spec.dims == 2 else _figure(7, 4)
    axes = figure.add_subplot()
    for number, (k, name) in enumerate(zip(classes, names, strict=True)):
        found, colour = values[labels == k].flatten(1), f"C{number % 10}"
        if spec.dims == 2:
            axes.scatter(found[:, 0].numpy(), found[:, 1].numpy(), s=2, alpha=0.5, color=colour, label=name)
        else:
            axes.plot(found[:2].numpy().T, linewidth=1, color=colour, label=[name, *[None] * (len(found[:2]) - 1)])
    if spec.dims == 2:
        axes.set(aspect="equal")
    axes.legend(markerscale=4)
    _save_figure(path, figure)


def save_strip(path: Path, spec: DataSpec, frames: Sequence[Tensor], times: Sequence[float]) -> None:
    """Draw how a few samples form: states in data units, each (N, *shape), one column per time, noise at the left."""
    if spec.is_image:
        _save_grid(path, _interleave([spec.to_uint8(frame.cpu()) for frame in frames]), len(frames))
    elif spec.dims == 2:
        _save_scatter(path, [frame.cpu().flatten(1) for frame in frames], [f"t = {t:.3g}" for t in times])
    else:
        _save_lines(path, _interleave([frame.cpu().flatten(1)[:1] for frame in frames]))


def save_rows(path: Path, spec: DataSpec, states: Sequence[Tensor], titles: Sequence[str]) -> None:
    """Draw the same examples in several states, in data units, each (N, *shape): images one row a state.

    Points have one panel a state and in all panels the colour of where they are in the first; of other data the states
    of the first example are lines.
    """
    if spec.is_image:
        _save_grid(path, torch.cat([spec.to_uint8(state.cpu()) for state in states]), len(states[0]))
    elif spec.dims == 2:
        points = [state.cpu().flatten(1) for state in states]
        _save_scatter(path, points, titles, colour=points[0][:, 0])
    else:
        _save_lines(path, _interleave([state.cpu().flatten(1)[:1] for state in states]))


def save_paths(path: Path, spec: DataSpec, paths: Tensor) -> None:
    """Draw ways from one example to another, in data units (P, F, *shape): images one row a way, points on a line.

    Of other data the first way is drawn, a line for each of its F stops.
    """
    paths = paths.cpu()
    if spec.is_image:
        _save_grid(path, spec.to_uint8(paths.flatten(0, 1)), paths.shape[1])
    elif spec.dims == 2:
        figure = _figure(5, 5)
        axes = figure.add_subplot()
        for way in paths.flatten(2).numpy():
            (line,) = axes.plot(way[:, 0], way[:, 1], marker=".", linewidth=1)
            axes.plot(way[[0, -1], 0], way[[0, -1], 1], "o", color=line.get_color())
        axes.set(aspect="equal")
        _save_figure(path, figure)
    else:
        _save_lines(path, paths[0].flatten(1))


def save_histogram(path: Path, values: Tensor, *, label: str, mean: float, half_width: float | None) -> None:
    """Draw the distribution of one number per example, with the mean and its interval, if it has one."""
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    axes.hist(values.cpu().numpy(), bins=min(60, max(10, len(values) // 8)), color="#4c72b0")
    error = "" if half_width is None else f" ± {half_width:.3f}"
    axes.axvline(mean, color="#c44e52", label=f"mean {mean:.3f}{error}")
    if half_width is not None:
        axes.axvspan(mean - half_width, mean + half_width, color="#c44e52", alpha=0.25)
    axes.set(xlabel=label, ylabel="examples")
    axes.legend()
    _save_figure(path, figure)


def save_curves(
    path: Path, x: Sequence[float], curves: Mapping[str, Sequence[tuple[float, float]]], *, xlabel: str, ylabel: str
) -> None:
    """Draw means with the half-widths of their intervals against x, on a logarithmic scale, a named curve each."""
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    for label, points in curves.items():
        mean, half_width = zip(*points, strict=True)
        axes.errorbar(x, mean, yerr=half_width, label=label, marker=".", capsize=2)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log")
    axes.legend()
    _save_figure(path, figure)


def _square(count: int) -> int:
    return max(1, math.isqrt(count))


def _interleave(frames: Sequence[Tensor]) -> Tensor:
    """Frames (N, …) each -> (N · frames, …), row by row."""
    return torch.stack(list(frames), 1).flatten(0, 1)


def _save_grid(path: Path, images: Tensor, columns: int) -> None:
    _save_image(path, _grid(images, columns))


def _save_named_rows(path: Path, rows: Sequence[Tensor], names: Sequence[str]) -> None:
    """Images (n, …), one row for each of `names`, which stand at the left; shorter rows end in grey."""
    columns = max(map(len, rows))
    blank = [row.new_full((columns - len(row), *row.shape[1:]), GREY) for row in rows]
    grid = _grid(torch.cat([part for pair in zip(rows, blank, strict=True) for part in pair]), columns)
    font = ImageFont.load_default(size=FONT)
    margin = 2 * FONT + max(int(font.getlength(name)) for name in names)
    picture = Image.new("RGB", (margin + grid.width, grid.height), "white")
    picture.paste(grid, (margin, 0))
    draw, step = ImageDraw.Draw(picture), (grid.height - GAP) / len(rows)
    for i, name in enumerate(names):
        draw.text((FONT, GAP + (i + 0.5) * step), name, fill="black", font=font, anchor="lm")
    _save_image(path, picture)


def _grid(images: Tensor, columns: int) -> Image.Image:
    zoom = -(-MIN_SIDE // min(images.shape[-2:]))
    images = images.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = images.new_full((channels, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP), GREY)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        grid[:, top : top + height, left : left + width] = image
    return Image.fromarray(grid.expand(3, -1, -1).permute(1, 2, 0).numpy())


def _save_scatter(path: Path, sets: Sequence[Tensor], titles: Sequence[str], colour: Tensor | None = None) -> None:
    figure = _figure(3.2 * len(sets) + 0.8, 4)
    shade = None if colour is None else colour.numpy()
    panels = figure.subplots(1, len(sets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, points, title in zip(panels, sets, titles, strict=True):
        axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=2, alpha=0.5, c=shade)
        axes.set(title=title, aspect="equal")
    _save_figure(path, figure)


def _save_lines(path: Path, series: Tensor) -> None:
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    axes.plot(series[:16].numpy().T, linewidth=1)
    axes.set(xlabel="coordinate", ylabel="value")
    _save_figure(path, figure)


def _save_image(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    write_atomically(path, buffer.getvalue())


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save_figure(path: Path, figure: "Figure") -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
