"""A budget of score evaluations, and the way between two latents."""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.sampling import sample
from sde_diffusion.sde import SDE
from sde_diffusion.slerp import slerp
from sde_diffusion.solvers import DDIM, DEIS, DPMpp2M, DPMpp3M, GridSolver, for_budget
from sde_diffusion.verify.check import Check, Measured, Setting, worst
from sde_diffusion.verify.problems import mixture, moments, processes, seeded

BUDGETS = (1, 2, 5, 8, 10, 17, 25, 40, 60, 100)


def checks(setting: Setting) -> Iterator[Check]:
    """The checks of this part of the area `solvers`."""
    for name, sde in processes(betas=False).items():
        for kind in ("deterministic", "stochastic"):
            yield Check("a budget is spent and kept", f"{name} {kind}", partial(_budget, setting, sde, kind))
        for solver in (DPMpp2M(steps=2), DPMpp3M(steps=2, rule="midpoint"), DEIS(steps=2, points=2)):
            measure = partial(_last_step, setting, sde, solver)
            yield Check("a short run ends with a step of DDIM", f"{name} {type(solver).__name__}", measure)
    yield Check("great circle between latents", "ends, angle and norm", partial(_slerp, setting))


def _budget(setting: Setting, sde: SDE, kind: str) -> Measured:
    """Evaluations made, counted, planned and asked for are the same number, for all costs here are 1."""
    oracle, calls, off = mixture(setting, sde), [], 0
    for nfe in BUDGETS:

        def score(x: Tensor, t: Tensor) -> Tensor:
            calls.append(1)
            return oracle.score(x, t)

        calls.clear()
        plan = for_budget(nfe, stochastic=kind == "stochastic")
        t_end, noise = plan.t_end(sde), seeded(setting, 0)
        result = sample(score, sde, plan.solver, (2, 2), noise=noise, t_end=t_end, denoise=plan.denoise)
        off += abs(len(calls) - nfe) + abs(result.nfe - nfe) + abs(plan.nfe - nfe)
        off += plan.solver.stochastic != (kind == "stochastic")
        if t_end is not None:  # ς = σ/a at the end
            level = math.exp(-float(sde.half_log_snr(torch.tensor(t_end, dtype=torch.float64))))
            off += abs(level / (plan.level or 0.0) - 1) > 1e-6
    return Measured(float(off), 0.0)


def _last_step(setting: Setting, sde: SDE, solver: GridSolver) -> Measured:
    """The first step has no history and the last must not use it, so a run of two is DDIM."""
    found = moments(setting, sde, solver, sde.t_max, 0.1)
    exact = moments(setting, sde, DDIM(steps=2, grid=solver.grid), sde.t_max, 0.1)
    off = max(abs(a - b) / (1 + abs(b)) for a, b in zip(found, exact, strict=True))
    return Measured(off, 64 * sde.prior_std * setting.eps)


def _slerp(setting: Setting) -> Measured:
    """z(w) is at the angles wΩ and (1 − w)Ω from the ends, with the norm between theirs."""
    z1, z2 = setting.normal(6, 3, 5), 2 * setting.normal(6, 3, 5, seed=2)
    w = setting.tensor([0.0, 0.25, 0.5, 0.8, 1.0]).double()
    path = slerp(z1, z2, w)
    off = worst(path[:, 0], z1.double()) + worst(path[:, -1], z2.double())
    (ends1, ends2), rows = (z.double().flatten(1) for z in (z1, z2)), path.double().flatten(2)
    norm1, norm2, norm = ends1.norm(dim=1), ends2.norm(dim=1), rows.norm(dim=2)
    off += worst(norm, (1 - w) * norm1[:, None] + w * norm2[:, None])
    whole = torch.acos((ends1 * ends2).sum(1) / norm1 / norm2)
    for end, length, share in ((ends1, norm1, w), (ends2, norm2, 1 - w)):
        cosine = (rows * end[:, None]).sum(2) / norm / length[:, None]
        off += worst(cosine, torch.cos(share * whole[:, None]))
    return Measured(off, 1e3 * setting.eps)
