"""Learned dequantisation: a flow q_φ(x | n) on the bin of n, trained with the score model.

    −log P(n) ≤ E_q[log q_φ(x | n) − log p_θ(x)]

is least where q_φ ∝ p_θ in the bin. Trained on the bound of −log p_θ (`training/dequantise.py`), φ learns that shape,
and θ a density that need not be flat in the bin.

Reference: Ho et al. 2019 (Flow++), arXiv:1902.00275, section 3.1; Song et al. 2021b, arXiv:2101.09258.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sde_diffusion.data import DataSpec
from sde_diffusion.errors import InputError, require
from sde_diffusion.likelihood.dequantisation import Dequantisation, Dequantised
from sde_diffusion.networks import CouplingFlow
from sde_diffusion.sde import SDE

PART = "dequantisation"  # name of the module among the parts that are trained beside the model


class BinFlow(nn.Module):
    """(centre of the bin of n, uniform u) -> x in the bin and log q_φ(x | n); uniform in the bin at the start.

    Args:
        spec: Of discrete data.
        width, layers: Of the `CouplingFlow`.

    Raises:
        InputError: The data are continuous, or `width` or `layers` out of range.
    """

    def __init__(self, spec: DataSpec, *, width: int = 32, layers: int = 4) -> None:
        super().__init__()
        require(
            spec.levels is not None,
            f"`training.dequantise` must be uniform for {spec.name}: its values are continuous and have no bins for a "
            "flow to fill",
        )
        assert spec.levels is not None
        self.levels, self.dims = spec.levels, spec.dims
        self.flow = CouplingFlow(spec.shape, width=width, layers=layers)

    def forward(self, centre: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Draw x.

        Args:
            centre: 2(n + ½)/L − 1, (B, *D).
            u: In [0, 1), (B, *D).

        Returns:
            x, (B, *D), and log q_φ(x | n) in nats and model coordinates, (B,).
        """
        inside, log_density = self.flow(u.clamp(min=2**-25), centre)  # not 0, which has no logit
        return centre + (2 * inside - 1) / self.levels, log_density + self.dims * math.log(self.levels / 2)


@dataclass(frozen=True, kw_only=True)
class FlowDequantisation(Dequantisation):
    """q the flow q_φ(x | n) that was trained with the model by `training.dequantise: flow`, which it fits.

    It belongs to a checkpoint: `bind` gives the density of that one. Costs a few small networks a draw and no score.

    Raises:
        InputError: The data are continuous, or, when used, it is not bound.

    Reference: Ho et al. 2019 (Flow++), arXiv:1902.00275, section 3.1.
    """

    needs_bins = True
    noise = "from the flow trained with the model, in [0, 1), plus the mean of log₂ of its density"

    def bind(self, parts: Mapping[str, nn.Module]) -> Dequantisation:
        flow = parts.get(PART)
        if not isinstance(flow, BinFlow):
            raise InputError(
                "`likelihood.dequantisation` must not be flow for this checkpoint: it was trained without one; train "
                "with training.dequantise=flow, or score with uniform"
            )
        return _Bound(coupling=self.coupling, flow=flow)

    def transform(self, spec: DataSpec, sde: SDE, values: Tensor, u: Tensor) -> Dequantised:
        raise InputError("`dequantisation` flow belongs to a trained model; bind it to the parts of one")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bound(Dequantisation):
    """`FlowDequantisation` with its flow."""

    needs_bins = True
    noise = FlowDequantisation.noise

    flow: BinFlow

    @torch.no_grad()
    def transform(self, spec: DataSpec, sde: SDE, values: Tensor, u: Tensor) -> Dequantised:
        centre = spec.to_model(values)
        x, log_q = zip(*(self.flow(centre, row) for row in u), strict=True)
        return Dequantised(torch.stack(x), torch.stack(log_q).double())
