"""What training makes of discrete values n, and which noise of `likelihood` fits a model that was trained so.

A new way is a class here and a row in `TRAINING_NOISES`. For continuous data all but `flow` are without effect.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusion.data import DataSpec
from sde_diffusion.errors import require_positive
from sde_diffusion.likelihood import BinFlow, prior_gap
from sde_diffusion.rng import Draws, draws_of
from sde_diffusion.sde import SDE


@dataclass(frozen=True)
class TrainingNoise(ABC):
    """Points x for discrete values n.

    Attributes:
        uniform: Whether a number uniform in [0, 1) is added to n, and not ½.
        trained_on: What the model then knows, in words.
        scored_by: The row of `DEQUANTISATIONS` that fits.
    """

    uniform: ClassVar[bool] = False
    trained_on: ClassVar[str]
    scored_by: ClassVar[str]

    @abstractmethod
    def part(self, spec: DataSpec) -> BinFlow | None:
        """The module to be trained beside the model, if there is one.

        Raises:
            InputError: The data are such as it cannot have.
        """


@dataclass(frozen=True)
class UniformNoise(TrainingNoise):
    """n + u, u uniform in [0, 1): a model of a density that is flat in each bin. Score it with `uniform`.

    Reference: Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """

    uniform = True
    trained_on = "uniform noise in the bins"
    scored_by = "uniform"

    def part(self, spec: DataSpec) -> None:
        return None


@dataclass(frozen=True)
class BinCentres(TrainingNoise):
    """The centres of the bins: a model of spikes, which the process itself widens to N(a c, σ² I) at `t_min`.

    Score it with `truncated_normal`, and choose `sde.t_min` so that σ there is about a sixth of a bin, 1/(3L).

    Reference: Zheng et al. 2023 (i-DODE), arXiv:2305.03935, section 4.2.
    """

    trained_on = "the centres of the bins"
    scored_by = "truncated_normal"

    def part(self, spec: DataSpec) -> None:
        return None


@dataclass(frozen=True)
class FlowNoise(TrainingNoise):
    """x ~ q_φ(x | n), a flow that is trained with the model on the bound of −log P(n). Score it with `flow`.

    Wants `loss.weighting: likelihood` and `loss.distance: l2`, for which the loss is that bound.

    Attributes:
        width, layers: Features of its small networks, and couplings after the first.

    Raises:
        InputError: The data are continuous.

    Reference: Ho et al. 2019 (Flow++), arXiv:1902.00275, section 3.1; Song et al. 2021b, arXiv:2101.09258.
    """

    width: int = 32
    layers: int = 4

    trained_on = "noise of a flow"
    scored_by = "flow"

    def __post_init__(self) -> None:
        require_positive(width=self.width, layers=self.layers)

    def part(self, spec: DataSpec) -> BinFlow:
        return BinFlow(spec, width=self.width, layers=self.layers)


TRAINING_NOISES: dict[str, type[TrainingNoise]] = {"uniform": UniformNoise, "centre": BinCentres, "flow": FlowNoise}


def flow_dequantised(
    flow: BinFlow, sde: SDE, centre: Tensor, *, generator: torch.Generator | Draws
) -> tuple[Tensor, Tensor]:
    """Points x ~ q_φ(x | n), and what the bound of −log P(n) holds besides the score's error.

    With λ = g² half the loss is the diffusion part of a bound in nats per dimension (Song et al. 2021b, theorem 3):

        −log P(n) ≤ E_q[log q_φ(x | n) + KL(q(x_T | x) ‖ prior) + (D/2) L(x)] + L_reconstruction

    and L_reconstruction, of a decoder N(x; x_s/a, (σ/a)² I) at s = t_min, is (D/2) log(2πe σ²/a²) wherever x is. So
    up to that constant the bound is D/2 times the mean of L and of what is returned here.

    Args:
        flow: q_φ; gradients reach it through x and through its density.
        sde: The process.
        centre: Of the bins of n, (B, *D).
        generator: Source of u.

    Returns:
        x, (B, *D), and (2/D) (log q_φ(x | n) + KL), (B,), of the units of the loss. Costs no score.
    """
    u = draws_of(generator, len(centre)).uniform(centre.shape[1:], centre.dtype)
    x, log_q = flow(centre, u)
    return x, (2 / centre[0].numel()) * (log_q + prior_gap(sde, x).to(log_q))
