"""Projections of x̂0: their formulas, their options, and their way into a run."""

import pytest
import torch

from sde_diffusion.config.build import REGISTRIES, SamplingConfig
from sde_diffusion.config.parse import parse, plain
from sde_diffusion.errors import InputError
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.projections import PROJECTIONS, Clip, DynamicThreshold
from sde_diffusion.rng import generator
from sde_diffusion.sampling import sample
from sde_diffusion.sde import VPSDE
from sde_diffusion.solvers import DPMpp2M, SeededNoise
from tests.conftest import f64

X0 = 2 * torch.randn(5, 3, 4, generator=generator(1), dtype=torch.float64)


def test_clip() -> None:
    assert torch.equal(Clip(low=-0.5, high=2.0)(X0), X0.clip(-0.5, 2.0))


@pytest.mark.parametrize("quantile", [0.3, 0.9, 1.0])
def test_dynamic_threshold(quantile: float) -> None:
    found = DynamicThreshold(quantile=quantile)(X0)
    for row, x0 in zip(found, X0, strict=True):
        s = max(1.0, float(x0.abs().quantile(quantile)))
        torch.testing.assert_close(row, x0.clip(-s, s) / s, rtol=1e-10, atol=0)
    small = 0.1 * X0
    assert torch.equal(DynamicThreshold(quantile=quantile)(small), small)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_conformance(name: str) -> None:
    projection = PROJECTIONS[name]()
    for x0 in (X0, X0.float(), X0[:, 0]):
        whole = projection(x0)
        assert whole.dtype == x0.dtype
        assert whole.abs().max() <= 1
        assert torch.equal(whole[2:3], projection(x0[2:3]))


def test_a_run_ends_inside() -> None:
    sde = VPSDE()
    oracle = GaussianMixture.gaussian(sde, f64([0.9, -0.9]), 0.6)
    for project in (Clip(), DynamicThreshold(quantile=1.0)):
        x = sample(oracle.score, sde, DPMpp2M(), (50, 2), noise=SeededNoise(0), project=project).x
        assert x.abs().max() <= 1


def test_a_config_names_one() -> None:
    config = parse(SamplingConfig, {"project": {"name": "dynamic_threshold", "quantile": 0.9}}, REGISTRIES)
    assert config.projection == DynamicThreshold(quantile=0.9)
    assert parse(SamplingConfig, plain(config, REGISTRIES), REGISTRIES) == config
    assert parse(SamplingConfig, {"clip": True}, REGISTRIES).projection == Clip()
    assert SamplingConfig().projection is None
    with pytest.raises(InputError, match="`project` must name one of clip, dynamic_threshold, or be null"):
        parse(SamplingConfig, {"project": {"quantile": 0.9}}, REGISTRIES)
    with pytest.raises(InputError, match="`project` must be null where `clip` is true"):
        parse(SamplingConfig, {"project": "dynamic_threshold", "clip": True}, REGISTRIES)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"name": "clip", "low": 1.0}, "`high` must be > `low` = 1.0, got 1.0"),
        ({"name": "dynamic_threshold", "quantile": 0.0}, r"`quantile` must be in \(0, 1\], got 0.0"),
        ({"name": "dynamic_threshold", "bound": 0.0}, "`bound` must be > 0, got 0.0"),
    ],
)
def test_bad_options(raw: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(SamplingConfig, {"project": raw}, REGISTRIES)
