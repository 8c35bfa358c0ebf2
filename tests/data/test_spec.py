"""Units: the conversions, their inverse, and bits per dimension."""

import json
import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.data import DataSpec
from sde_diffusion.errors import InputError

CONTINUOUS = DataSpec("c", (3,), levels=None, shift=5.0, scale=0.25)


def discrete(levels: int, shape: tuple[int, ...] = (1, 2, 2), classes: tuple[str, ...] = ()) -> DataSpec:
    return DataSpec("d", shape, levels=levels, classes=classes)


@pytest.mark.parametrize("levels", [2, 3, 17, 255, 256, 257, 1000, 65536])
def test_every_level_survives_the_round_trip(levels: int) -> None:
    spec = discrete(levels, (1,))
    n = torch.arange(levels, dtype=torch.int32)[:, None]
    for u in (None, torch.full(n.shape, 0.01), torch.full(n.shape, 0.99)):
        x = spec.to_model(n, u)
        assert x.dtype == torch.float32
        assert -1 <= x.min() < x.max() <= 1
        back = spec.from_model(x)
        assert back.dtype == (torch.uint8 if levels <= 256 else torch.int32)
        assert torch.equal(back.int(), n)


def test_discrete_values_sit_where_the_formula_says() -> None:
    n, u = torch.tensor([[0, 16]], dtype=torch.uint8), torch.tensor([[0.0, 0.5]])
    torch.testing.assert_close(discrete(17).to_model(n, u), torch.tensor([[-1.0, 2 * 16.5 / 17 - 1]]))
    torch.testing.assert_close(discrete(4).to_model(n * 0), torch.tensor([[-0.75, -0.75]]))


def test_values_beyond_the_range_are_clipped() -> None:
    values = discrete(17).from_model(torch.tensor([-3.0, -1.0, 1.0, 3.0]))
    assert values.tolist() == [0, 0, 16, 16]


def test_continuous_values_are_shifted_and_scaled() -> None:
    y = torch.tensor([[5.0, 5.25, 4.5]])
    x = CONTINUOUS.to_model(y)
    assert x.tolist() == [[0.0, 1.0, -2.0]]
    assert torch.equal(CONTINUOUS.from_model(x), y)
    assert CONTINUOUS.to_model(y.double()).dtype == torch.float32


@pytest.mark.parametrize("levels", [2, 17, 256, 1000])
def test_the_uniform_density_has_log2_levels_bits(levels: int) -> None:
    spec = discrete(levels, (3, 4, 4))
    log_prob = torch.full((2,), -spec.dims * math.log(2), dtype=torch.float64)  # density ½ per dimension of [−1, 1]
    bits = spec.bits_per_dim(log_prob)
    torch.testing.assert_close(bits, torch.full_like(bits, math.log2(levels)), rtol=1e-12, atol=0)


def test_continuous_bits_are_those_of_the_density_of_y() -> None:
    """x uniform on [0, 1]³ is y uniform on a cube of side ¼: −log₂ 4 bits per dimension."""
    bits = CONTINUOUS.bits_per_dim(torch.zeros(1, dtype=torch.float64))
    assert bits.tolist() == [-2.0]
    assert CONTINUOUS.bits_offset == -2.0


def test_pictures_span_black_to_white() -> None:
    assert discrete(17).to_uint8(torch.tensor([0, 8, 16])).tolist() == [0, 128, 255]
    assert discrete(256).to_uint8(torch.arange(256)).tolist() == list(range(256))
    y = torch.tensor([-9.0, 4.25, 5.0, 5.75, 99.0, math.nan])
    assert CONTINUOUS.to_uint8(y).tolist() == [0, 0, 128, 255, 255, 0]


@pytest.mark.parametrize(
    ("shape", "image"),
    [((1, 8, 8), True), ((3, 4, 6), True), ((2, 8, 8), False), ((8, 8), False), ((1, 4, 4, 4), False)],
)
def test_images_have_three_dimensions_and_one_or_three_channels(shape: tuple[int, ...], image: bool) -> None:
    assert discrete(256, shape).is_image == image
    assert discrete(256, shape).dims == math.prod(shape)


@pytest.mark.parametrize("spec", [CONTINUOUS, discrete(17, classes=("a", "b"))])
def test_json_round_trip(spec: DataSpec) -> None:
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_units_are_spelt_out() -> None:
    text = discrete(17, (1, 8, 8)).describe_units()
    assert "1×8×8 = 64 dimensions of 17 levels (0 … 16)" in text
    assert "−log₂ p(x)/64 + 3.0875 with x = 2(n + u)/17 − 1" in text
    assert "density of n + u, u uniform in [0, 1), −log₂" in text
    assert "density of n + u, u skewed, −log₂" in discrete(17, (1, 8, 8)).describe_units("skewed")
    text = CONTINUOUS.describe_units()
    assert "over 3 dimensions of continuous values" in text
    assert "−log₂ p(x)/3 − 2.0000 with x = (y − 5)/0.25" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": ()}, r"`shape` of the data must have one or more sizes, all > 0, got \(\)"),
        ({"shape": (1, 0)}, r"`shape` of the data must .*, got \(1, 0\)"),
        ({"levels": 1}, "`levels` must be from 2 to 65536, got 1"),
        ({"levels": 65537}, "`levels` must be from 2 to 65536, got 65537"),
        ({"scale": 0.0}, "`scale` must be > 0, got 0.0"),
        ({"shift": math.nan}, "`shift` must be finite, got nan"),
        ({"colour": 1}, "not the description of a data set: .*colour.*; was the file edited?"),
    ],
)
def test_impossible_specs_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataSpec.from_dict(discrete(17).to_dict() | fields)


def test_missing_fields_are_refused() -> None:
    with pytest.raises(InputError, match="not the description of a data set: 'shape'"):
        DataSpec.from_dict({"name": "x", "levels": 2})


@pytest.mark.parametrize("labels", [[0, 2], torch.tensor([-1]), [-1]])
def test_labels_out_of_range_are_refused(labels: Tensor | list[int]) -> None:
    spec = discrete(2, classes=("cat", "dog"))
    spec.check_labels([0, 1])
    with pytest.raises(InputError, match=r"`label` must be from 0 to 1, the classes of d \(cat, dog\), got (2|-1)"):
        spec.check_labels(labels)


def test_labels_need_classes() -> None:
    with pytest.raises(InputError, match="`label` cannot be used: d has no classes; leave it out"):
        discrete(2).check_labels([0])
