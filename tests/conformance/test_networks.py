"""What every network must satisfy: pure, zero at the start, aware of noise level and label, and of no batch mate."""

import inspect
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError
from sde_diffusion.networks import EMBEDDINGS, NETWORKS

TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 1}
SMALL: dict[str, dict[str, Any]] = {
    "unet": TINY,
    "ddpmpp": TINY,
    "ncsnpp": TINY | {"attention": (6,)},
    "dit": {"width": 16, "depth": 2},
    "mlp": {"width": 16},
}
SHAPE = (2, 9, 6)
CLASSES = 3


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(name: str, shape: tuple[int, ...] = SHAPE, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name](shape, **SMALL.get(name, {}) | options).eval()


def awake(net: nn.Module) -> nn.Module:
    """The network in float64 as if trained: no parameter is zero any more."""
    generator = torch.Generator().manual_seed(1)
    net.double()
    for parameter in net.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.add_(noise, alpha=0.1)
    return net


def batch(count: int = 4, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor, Tensor]:
    """x, c_noise and label, the first without one."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    c_noise = torch.linspace(-1.7, 1.2, count, dtype=torch.float64)
    return x, c_noise, torch.arange(count) % (CLASSES + 1) - 1


def test_the_output_has_the_shape_of_the_input_and_starts_as_zero(name: str) -> None:
    x, c_noise, label = batch()
    out = build(name, classes=CLASSES)(x.float(), c_noise.float(), label)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.zeros_like(x, dtype=torch.float32), rtol=0, atol=0)


def test_heads_come_one_after_another_and_start_as_zero(name: str) -> None:
    """Twice the numbers, all zero at first; once trained, all of them answer to the input and to the noise level."""
    x, c_noise, label = batch()
    net = build(name, classes=CLASSES, heads=2)
    out = net(x.float(), c_noise.float(), label)
    torch.testing.assert_close(out, torch.zeros(len(x), 2 * SHAPE[0], *SHAPE[1:]), rtol=0, atol=0)
    net = awake(net)
    for changed in (net(x + 1, c_noise, label), net(x, c_noise + 0.1, label)):
        for head in (net(x, c_noise, label) - changed).chunk(2, 1):
            assert head.shape == x.shape
            assert head.flatten(1).norm(dim=1).min() > 1e-3


def test_the_noise_level_matters(name: str) -> None:
    net = awake(build(name))
    x, c_noise, _ = batch()
    assert (net(x, c_noise) - net(x, c_noise + 0.1)).flatten(1).norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_each_embedding_serves(name: str, embedding: str) -> None:
    net = awake(build(name, embedding=embedding, embedding_scale=4.0))
    x, c_noise, _ = batch()
    assert (net(x, c_noise) - net(x, -c_noise)).abs().max() > 1e-3


def test_the_label_matters_and_none_is_minus_one(name: str) -> None:
    net = awake(build(name, classes=CLASSES))
    x, c_noise, _ = (part[:1].expand(CLASSES + 1, *part.shape[1:]) for part in batch())
    out = net(x, c_noise, torch.tensor([-1, 0, 1, 2]))
    distances = torch.cdist(out.flatten(1), out.flatten(1)) + torch.eye(CLASSES + 1)
    assert distances.min() > 1e-3
    torch.testing.assert_close(net(x, c_noise, None)[0], out[0], rtol=1e-10, atol=1e-12)


def test_labels_for_a_network_without_classes_are_an_error(name: str) -> None:
    with pytest.raises(InputError, match="the network has no classes, but got labels; build it with `classes` > 0"):
        build(name).double()(*batch())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": -1}, "`classes` must be ≥ 0, got -1"),
        ({"heads": 0}, "`heads` must be > 0, got 0"),
        ({"embedding": "fourrier"}, "unknown embedding 'fourrier'; did you mean 'fourier'"),
        ({"embedding_scale": 0.0}, "`embedding_scale` must be > 0, got 0.0"),
    ],
)
def test_a_bad_condition_is_an_error(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name, **options)


def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    net = awake(build(name, classes=CLASSES))
    x, c_noise, label = batch()
    together = net(x, c_noise, label)
    alone = torch.cat([net(x[i : i + 1], c_noise[i : i + 1], label[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_the_gradient_reaches_every_parameter_and_the_input(name: str) -> None:
    net = awake(build(name, classes=CLASSES)).train()
    x, c_noise, label = batch()
    x.requires_grad_()
    net(x, c_noise, label).square().sum().backward()
    assert x.grad is not None
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


def test_evaluation_is_pure(name: str) -> None:
    """Twice the same, neither drawing random numbers nor changing a buffer; and vjps can be taken one after another."""
    net = awake(build(name))
    x, c_noise, _ = batch()
    rng, state = torch.get_rng_state(), {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        first = net(x, c_noise)
    vjps = []
    for _ in range(2):
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            out = net(leaf, c_noise)
            vjps.append(torch.autograd.grad(out, leaf, torch.ones_like(out))[0])
        torch.testing.assert_close(out, first, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(vjps[0], vjps[1], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_the_seed_decides_the_parameters(name: str) -> None:
    first, second = build(name).state_dict(), build(name).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_bfloat16_autocast_is_close(name: str) -> None:
    """bfloat16 has 8 bits: each rounding is 2⁻⁹ of a value, and some dozen of them add up to a few per cent."""
    net = awake(build(name)).float()
    x, c_noise, _ = batch()
    exact = net(x.float(), c_noise.float())
    for grad in (False, True):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            rough = net(x.float(), c_noise.float())
        assert rough.dtype == torch.bfloat16
        assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_it_compiles_as_one_graph(name: str) -> None:
    net = awake(build(name, classes=CLASSES))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*batch()), net(*batch()), rtol=1e-10, atol=1e-12)


def test_options_are_of_types_that_a_config_can_hold(name: str) -> None:
    network = NETWORKS[name]
    parameters = inspect.signature(network).parameters
    hints = get_type_hints(network.__init__)
    assert list(parameters)[:3] == ["shape", "classes", "heads"]
    assert (parameters["classes"].default, parameters["heads"].default) == (0, 1)
    for option in list(parameters)[1:]:
        assert parameters[option].kind is inspect.Parameter.KEYWORD_ONLY, option
        assert parameters[option].default is not inspect.Parameter.empty, option
        hint = hints[option]
        choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        for choice in choices:
            plain = choice in (bool, int, float, str, tuple[int, ...], types.NoneType)
            assert plain or get_origin(choice) is Literal, option
