"""A classifier that knows noise: log p(y | x_t) at every time t, for classifier guidance.

The network sees the noisy state at unit scale, F(c_in x, c_noise) with c_in = (α²σ_d² + σ²)^−½ and c_noise = −λ/4 as in
`ScoreModel`, and is trained by cross-entropy on x_t,

    L = ∫ E_{x_0, y, ε} [−log p_F(y | x_t, t)] dt,    x_t = a x_0 + σ ε,

whose minimiser is p(y | x_t) at every t.

Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sde_diffusion.errors import require, require_positive
from sde_diffusion.sde import SDE
from sde_diffusion.tensors import expand


class NoisyClassifier(nn.Module):
    """log p(y | x_t) = log softmax F(c_in x, c_noise).

    Args:
        net: F(x (B, *D), c_noise (B,)) -> logits (B, classes); its attribute `classes` is their number.
        sde: The process.
        sigma_data: Standard deviation σ_d of the data.

    Raises:
        InputError: `sigma_data` ≤ 0.
    """

    def __init__(self, net: nn.Module, sde: SDE, *, sigma_data: float = 0.5) -> None:
        super().__init__()
        require_positive(sigma_data=sigma_data)
        self.net, self.sde, self.sigma_data = net, sde, sigma_data

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(y | x_t) for every y, (B, classes), in the dtype of `x`. Costs one call of the network.

        Args:
            x: (B, *D).
            t: () or (B,).
        """
        c_in = 1 / torch.hypot(self.sde.mean_coef(t) * self.sigma_data, self.sde.std(t))
        c_noise = -0.25 * self.sde.half_log_snr(t).to(x).expand(x.shape[0])
        logits: Tensor = self.net(expand(c_in, x) * x, c_noise)
        return logits.to(x.dtype).log_softmax(1)

    def bind(self, labels: Tensor) -> "LabelledClassifier":
        """log p(label | x_t), (B,), for the `labels` (B,) of a batch.

        Raises:
            InputError: A label that is no class.
        """
        classes = int(getattr(self.net, "classes", 0))
        low, high = int(labels.min()), int(labels.max())
        wrong = low if low < 0 else high
        require(0 <= low <= high < classes, f"`label` must be from 0 to {classes - 1} for the classifier, got {wrong}")
        return LabelledClassifier(self, labels)


@dataclass(frozen=True, eq=False)
class LabelledClassifier:
    """(x (B, *D), t (B,)) -> log p(label | x_t), (B,)."""

    classifier: NoisyClassifier
    labels: Tensor

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        every: Tensor = self.classifier(x, t)
        return every.gather(1, self.labels.to(x.device)[:, None])[:, 0]

    def select(self, rows: Tensor) -> "LabelledClassifier":
        """The same for the samples `rows` (n,) of the batch."""
        return LabelledClassifier(self.classifier, self.labels[rows.to(self.labels.device)])


def cross_entropy(classifier: nn.Module, sde: SDE, x0: Tensor, label: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """−log p_F(label | x_t) at given times and noise, (B,) nats.

    Args:
        x0, eps: Clean data and forward noise, (B, *D).
        label, t: (B,).
    """
    return functional.nll_loss(classifier(sde.perturb(x0, t, eps), t), label, reduction="none")
