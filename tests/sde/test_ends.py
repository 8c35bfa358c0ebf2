"""The ends of time: fields of every process, and what a process without any data left at the end is told."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sde_diffusion.config.schema import Config, plain_config, read_config
from sde_diffusion.errors import InputError
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.sampling import sample
from sde_diffusion.sde import SDE, SDES, VPSDE


@dataclass(frozen=True)
class Straight(SDE):
    """a = 1 − t, std = t: nothing of the data is left at t = 1."""

    def log_mean_coef(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def std(self, t: Tensor) -> Tensor:
        return t.clone()

    def drift_coef(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(2 * t / (1 - t))

    @property
    def prior_std(self) -> float:
        return self.t_max


@dataclass(frozen=True)
class Shorter(Straight):
    """The same, which stops before."""

    t_max = 0.999


def test_a_process_without_data_at_its_end_is_refused() -> None:
    with pytest.raises(InputError, match=r"`t_max` must be .*a\(t_max\) > 0.*lower it, e.g. `t_max` = 0.999"):
        Straight()


@pytest.mark.parametrize("sde", [Straight(t_max=0.999), Shorter()])
def test_it_samples_when_it_stops_before(sde: SDE) -> None:
    assert sde.t_max == 0.999
    data = GaussianMixture(sde, torch.ones(1), torch.zeros(1, 1), torch.tensor([0.5]))
    x = sample(data.score, sde, "ode", (4000, 1)).x
    assert abs(float(x.std()) - 0.5) < 4 * 0.5 / (2 * 4000) ** 0.5


def test_an_own_default_can_be_overridden() -> None:
    assert Shorter(t_max=0.5).t_max == 0.5


@pytest.mark.parametrize("name", SDES)
def test_ends_are_options_of_every_process(name: str) -> None:
    config = read_config(None, [f"sde.name={name}", "sde.t_max=0.9"])
    assert config.sde.t_max == 0.9
    assert plain_config(config)["sde"]["t_max"] == 0.9


def test_a_config_from_before_the_field_has_the_default() -> None:
    older = plain_config(Config())
    del older["sde"]["t_max"]
    assert read_config(None, (), older).sde == VPSDE()


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.9, 0.5), (0.0, 1.0)])
def test_ends_out_of_order_are_refused(low: float, high: float) -> None:
    with pytest.raises(InputError, match="`t_min` must be in"):
        VPSDE(t_min=low, t_max=high)
