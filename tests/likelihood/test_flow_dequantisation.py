"""Learned dequantisation: its density, its start, and what it is bound to."""

import math

import pytest
import torch

from sde_diffusion.data import DataSpec
from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import BinFlow, FlowDequantisation, UniformDequantisation, importance_weighted
from sde_diffusion.likelihood.audit.learned_noise import PART
from sde_diffusion.sde import VPSDE
from tests.conftest import assert_mean
from tests.likelihood.flows import rough_flow

SPEC = DataSpec("arrays", (2, 3), levels=8)
VALUES = (torch.arange(60) % 8).reshape(10, 2, 3).to(torch.uint8)


def test_at_the_start_it_is_uniform_noise() -> None:
    """To float32: logit and sigmoid of numbers down to 2^−24."""
    noise = FlowDequantisation().bind({PART: BinFlow(SPEC)})
    ours = noise.draw(SPEC, VPSDE(), VALUES, seed=1, draws=3)
    uniform = UniformDequantisation().draw(SPEC, VPSDE(), VALUES, seed=1, draws=3)
    torch.testing.assert_close(ours.x, uniform.x, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.log_q, uniform.log_q, rtol=0, atol=1e-4)


def test_the_density_is_that_of_the_draws() -> None:
    """E_q[1/q] is the volume of the bin, (2/L)^D, and E_q[h/q] = ∫ h for h = Π (1 + x − low)."""
    spec = DataSpec("arrays", (2,), levels=2)
    values = torch.tensor([[0, 1]], dtype=torch.uint8).expand(40_000, 2)
    x, log_q = FlowDequantisation().bind({PART: rough_flow(spec)}).draw(spec, VPSDE(), values, seed=1)
    assert log_q.std() > 0.05, "it is not flat"
    assert_mean((-log_q[0]).exp(), 1.0)
    inside = x[0].double() - torch.tensor([-1.0, 0.0])
    assert_mean((1 + inside).prod(1) * (-log_q[0]).exp(), 1.5**2)


def test_the_weighted_bound_of_a_known_density_is_its_mass() -> None:
    """With q as it is and p uniform on [−1, 1]^D: log P(n) = −D log L in the limit; at K = 4096 to its error."""
    noise = FlowDequantisation().bind({PART: rough_flow(SPEC)})
    x, log_q = noise.draw(SPEC, VPSDE(), VALUES, seed=1, draws=4096)
    log_p = torch.full_like(log_q, -SPEC.dims * math.log(2))
    bound = importance_weighted(log_p[..., None], log_q, exact=True)
    exact = -SPEC.dims * math.log(8)
    spread = (log_p - log_q - exact).exp().std(0) / math.sqrt(4096)
    assert ((bound - exact).abs() < 4 * spread + 1e-6).all()
    assert (x.abs() <= 1 + 1e-6).all()


def test_gradients_reach_the_flow_through_x_and_through_its_density() -> None:
    flow = rough_flow(SPEC).requires_grad_(True)
    centre = SPEC.to_model(VALUES)
    for part in (0, 1):
        flow.zero_grad()
        flow(centre, torch.full_like(centre, 0.3))[part].sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in flow.parameters())


def test_what_it_belongs_to() -> None:
    with pytest.raises(InputError, match=r"`likelihood.dequantisation` must not be flow for this checkpoint"):
        FlowDequantisation().bind({})
    with pytest.raises(InputError, match="belongs to a trained model; bind it"):
        FlowDequantisation().draw(SPEC, VPSDE(), VALUES, seed=1)
    with pytest.raises(
        InputError, match=r"`training.dequantise` must be uniform for arrays: its values are continuous"
    ):
        BinFlow(DataSpec("arrays", (2, 3), levels=None))
