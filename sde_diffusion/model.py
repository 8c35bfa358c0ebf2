"""The score model: a network, a process, and what the network predicts.

The network sees the noisy state at unit scale and estimates some mixture of data and noise; the rest is affine:

    ε̂ = c_skip x + c_out F(c_in x, c_noise, label),    s = −ε̂/σ,    c_in = (α²σ_d² + σ²)^−½

with α = a(t), σ = std(t) and σ_d the standard deviation of the data.

References: Karras et al. 2022, arXiv:2206.00364, section 5; Salimans & Ho 2022, arXiv:2202.00512, section 4, for `v`.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sde_diffusion.arguments import as_process
from sde_diffusion.errors import InputError, require, require_kind, require_positive
from sde_diffusion.registry import lookup
from sde_diffusion.runtime.cuda_graphs import Graphed
from sde_diffusion.score import ScoreFn, on_device
from sde_diffusion.sde import SDE, Moment
from sde_diffusion.tensors import expand

Prediction = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""(a(t), std(t), σ_d) -> (c_skip, c_out), all of the shape of t."""


def predict_eps(a: Tensor, std: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """F estimates ε: ε̂ = F."""
    return torch.zeros_like(a), torch.ones_like(a)


def predict_x0(a: Tensor, std: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """F estimates x0: ε̂ = (x − α F)/σ. Rounding of x and F grows by 1/σ: 1e3 (VP), 1e6 (sub-VP) at t_min."""
    return 1 / std, -a / std


def predict_v(a: Tensor, std: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """F estimates v = (α ε − σ x0)/r, r² = α² + σ²: ε̂ = σ/r² x + α/r F."""
    r = torch.hypot(a, std)
    return std / r**2, a / r


def predict_edm(a: Tensor, std: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """F is that of Karras et al., eq. 7: F = 0 is the score of data N(0, σ_d² I)."""
    total = torch.hypot(a * sigma_data, std)
    return std / total**2, -a * sigma_data / total


PREDICTIONS: dict[str, Prediction] = {"eps": predict_eps, "x0": predict_x0, "v": predict_v, "edm": predict_edm}


def quarter_log_snr(at: Moment) -> Tensor:
    """c_noise = −λ/4 with λ = log(α/σ), about −2 … 2 (sub-VP: −3.5); for VE the log(σ)/4 of Karras et al. 2022."""
    return -0.25 * at.half_log_snr


def thousand_steps(at: Moment) -> Tensor:
    """c_noise = 999 t, the index of DDPM's step for any process, as if it had 1000 of them."""
    return 999 * at.t


def step_index(at: Moment) -> Tensor:
    """c_noise = T t − 1, the published index 0 … T − 1 of a level of a chain.

    Raises:
        InputError: The process stands for no chain.
    """
    if at.levels is None:
        raise InputError(
            "`model.conditioning` = step counts the levels of a chain, and this process has none; take log_snr or "
            "time, or a process with levels such as ddpm"
        )
    return at.levels * at.t - 1


def standard_deviation(at: Moment) -> Tensor:
    """c_noise = σ(t); its logarithm is the network's affair."""
    return at.std


NOISE_CONDITIONINGS: dict[str, Callable[[Moment], Tensor]] = {
    "log_snr": quarter_log_snr,
    "time": thousand_steps,
    "step": step_index,
    "std": standard_deviation,
}


class _Coefficients(NamedTuple):
    """s = of_x x + of_net F(c_in x, c_noise), with numbers or what broadcasts against states, and c_noise (B,)."""

    c_in: Tensor | float
    c_noise: Tensor
    of_x: Tensor | float
    of_net: Tensor | float


class ScoreModel(nn.Module):
    """s(x, t) = −(c_skip x + c_out F(c_in x, c_noise, label))/σ.

    The coefficients are computed in the precision of `t` and applied in that of `x`; autocast reaches only the network,
    whose output is cast back to the dtype of `x`.

    Args:
        net: F(x (B, *D), c_noise (B,)) -> (B, *D), or F(x, c_noise, label (B,) or None); (B, 2 D₁, …) with a learned
            variance. Its attribute `classes` says how many labels it knows; without one it knows none.
        sde: The process.
        prediction: What F estimates, a name in `PREDICTIONS`.
        conditioning: What F is told of the time, a name in `NOISE_CONDITIONINGS`.
        sigma_data: Standard deviation σ_d of the data.
        learned_variance: Whether F has a second head, which tells the variance of a reverse step.
        scale_input: Whether F sees c_in x; else it sees x itself, as published networks for VP processes do.

    Raises:
        InputError: No network, no process, an unknown name, `sigma_data` ≤ 0, or a conditioning that does not suit the
            process.
    """

    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        *,
        prediction: str = "eps",
        conditioning: str = "log_snr",
        sigma_data: float = 0.5,
        learned_variance: bool = False,
        scale_input: bool = True,
    ) -> None:
        super().__init__()
        require_positive(sigma_data=sigma_data)
        require_kind("net", net, nn.Module, "MLP((2,))")
        self.net, self.sde, self.sigma_data = net, as_process(sde), sigma_data
        self.learned_variance, self.scale_input = learned_variance, scale_input
        self.predict = lookup(PREDICTIONS, prediction, "prediction")
        self.c_noise = lookup(NOISE_CONDITIONINGS, conditioning, "noise conditioning")
        self.c_noise(sde.at(torch.tensor(sde.t_max)))  # what does not suit the process says so now
        self._takes_label = _takes_label(net)
        self._recorded: Graphed | None = None

    def record(self) -> None:
        """Call the network through CUDA graphs from now on, where no gradient is asked for; its weights stay put."""
        self._recorded = Graphed(self.net)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The score of x_t = `x`, (B, *D). Costs one call of the network.

        Args:
            x: (B, *D).
            t: () or (B,).
            label: (B,) int64, −1 for none; None is the same as all −1.
        """
        return self._estimate(x, t, label)[0]

    def score_and_fraction(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The score, and the second head's v = ½(F₂ + 1) of Σ = exp(v log β + (1 − v) log β̃), each (B, *D).

        Costs one call of the network; arguments as of `forward`.

        Raises:
            InputError: The model has one head.

        Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15 and published code.
        """
        score, second = self._estimate(x, t, label)
        if second is None:
            raise InputError(
                "a learned variance needs a model of two heads, but this one has one; train one with "
                "model.learned_variance = true, or take another variance"
            )
        return score, 0.5 * (second + 1)

    def ahead(self, times: Tensor, x: Tensor, label: Tensor | None = None) -> Sequence[Callable[[Tensor], Tensor]]:
        """See `score.Foresees`: at each of `times` (n,) only the network is left, and two operations around it."""
        c_in, c_noise, of_x, of_net = self._coefficients(times)
        known = map(_Coefficients, c_in.tolist(), on_device(c_noise, x), of_x.tolist(), of_net.tolist())
        return [partial(self._known_score, coefficients, label) for coefficients in known]

    def _known_score(self, coefficients: _Coefficients, label: Tensor | None, x: Tensor) -> Tensor:
        return self._evaluate(coefficients, x, label)[0]

    def _estimate(self, x: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The score and the raw second head, if there is one, each (B, *D)."""
        c_in, c_noise, of_x, of_net = self._coefficients(t)
        c_noise = c_noise.to(x).expand(x.shape[0])
        return self._evaluate(_Coefficients(expand(c_in, x), c_noise, expand(of_x, x), expand(of_net, x)), x, label)

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`_Coefficients` at `t`, of its shape and precision."""
        at = self.sde.at(t)
        a, std = at.mean_coef, at.std
        c_in = 1 / torch.hypot(a * self.sigma_data, std) if self.scale_input else torch.ones_like(a)
        c_skip, c_out = self.predict(a, std, self.sigma_data)
        return c_in, self.c_noise(at), -c_skip / std, -c_out / std

    def _evaluate(self, at: _Coefficients, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The score and the raw second head, with coefficients that broadcast against `x` (B, *D)."""
        network = self._recorded or self.net
        given = (at.c_in * x, at.c_noise, label) if self._takes_label else (at.c_in * x, at.c_noise)
        estimate: Tensor = network(*given).to(x.dtype)
        second = None
        if self.learned_variance:
            estimate, second = estimate.chunk(2, 1)
        if isinstance(at.of_x, float):
            score = at.of_net * estimate
            return (score.add_(x, alpha=at.of_x) if at.of_x else score), second
        return at.of_x * x + at.of_net * estimate, second

    def bind(self, label: Tensor | int | None) -> ScoreFn:
        """The score function of one label for all samples, of one label each, (B,), or of none (None or −1).

        Raises:
            InputError: A label that the network does not know.
        """
        labels = torch.as_tensor(-1 if label is None else label)
        low, high = int(labels.min()), int(labels.max())
        classes = int(getattr(self.net, "classes", 0))
        rule = f"from 0 to {classes - 1}, or −1 for none" if classes else "−1 (none): the network has no classes"
        require(low >= -1 and high < classes, f"`label` must be {rule}, got {low if low < -1 else high}")
        if high == -1:
            return self
        return _Labelled(self, labels)


def _takes_label(net: nn.Module) -> bool:
    """Whether `net` is called as F(x, c_noise, label); else as F(x, c_noise)."""
    parameters = inspect.signature(net.forward).parameters.values()
    places = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len(places) >= 3 or any(one.kind is one.VAR_POSITIONAL for one in parameters)


@dataclass(frozen=True, eq=False)
class _Labelled:
    """The score function of `model` for labels () or (B,)."""

    model: ScoreModel
    labels: Tensor

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        score: Tensor = self.model(x, t, self.labels.to(x.device).expand(len(x)))
        return score

    @property
    def learned_variance(self) -> bool:
        return self.model.learned_variance

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `ScoreModel.score_and_fraction`."""
        return self.model.score_and_fraction(x, t, self.labels.to(x.device).expand(len(x)))

    def ahead(self, times: Tensor, x: Tensor) -> Sequence[Callable[[Tensor], Tensor]]:
        """See `score.Foresees`."""
        return self.model.ahead(times, x, self.labels.to(x.device).expand(len(x)))

    def select(self, rows: Tensor) -> "_Labelled":
        """The same for the samples `rows` (n,) of the batch."""
        return self if self.labels.ndim == 0 else _Labelled(self.model, self.labels[rows.to(self.labels.device)])
