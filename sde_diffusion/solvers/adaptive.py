"""What the integrators of the probability-flow ODE share: dx/dt = f x − ½ g² s, to a tolerance.

Reference: Song et al. 2021, arXiv:2011.13456, section 4.3.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.errors import SolveError, require_positive
from sde_diffusion.solvers.base import Solver
from sde_diffusion.solvers.process import ReverseProcess
from sde_diffusion.solvers.runge_kutta import Norm, Rhs, sample_rms


@dataclass(frozen=True, eq=False)
class Flow:
    """The drift of the probability flow as a right-hand side, (t: () or (n,), x: (n, *D)) -> (n, *D).

    Attributes:
        process: The reverse process of the n samples.
    """

    process: ReverseProcess

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.process.drift(x, t, eta=0.0)

    def select(self, rows: Tensor) -> "Flow":
        """The flow of the samples `rows` (m,) of these n."""
        return Flow(self.process.select(rows))


@dataclass(frozen=True, kw_only=True)
class AdaptiveODE(Solver):
    """dx/dt = f x − ½ g² s to a tolerance, by steps that the method chooses.

    Attributes:
        method: The formula of the steps.
        rtol, atol: Relative and absolute tolerance of one step.
    """

    stochastic = False

    method: str
    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        require_positive(rtol=self.rtol, atol=self.atol)

    @abstractmethod
    def integrate(self, rhs: Rhs, y: Tensor, t_from: float, t_to: float, *, norm: Norm = sample_rms) -> Tensor:
        """Solve dy/dt = rhs(t, y) from `t_from` to `t_to`, in either direction; the last step ends exactly there.

        Args:
            y: State at `t_from`, (B, …).
            norm: Size of each sample's scaled error of a step.

        Returns:
            State at `t_to`, the shape of `y`.

        Raises:
            SolveError: The tolerance cannot be reached; the message says at which time.
        """

    def failure(self, t: float | None, reason: str, *, samples: Sequence[int] = (), budget: str = "") -> SolveError:
        """The error of a solve that stopped at `t`, if that is known, for some samples of the batch.

        `budget` names the option that bounds the work, where it was spent.
        """
        more = f"raise {budget}, " if budget else ""
        remedy = f"{more}loosen rtol = {self.rtol:g} and atol = {self.atol:g}, or look for non-finite scores there"
        return SolveError(f"the ODE solve by {self.method!r}", f"{reason}; {remedy}", t=t, samples=samples)
