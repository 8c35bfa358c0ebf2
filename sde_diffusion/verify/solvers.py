"""Solvers: order, moments, cost, independence of the batch; and their grids, correctors, projections and noise."""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.grids import GRIDS, LevelsGrid, TimeGrid
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.projections import PROJECTIONS, Projection
from sde_diffusion.sampling import Samples, encode, sample
from sde_diffusion.sde import SDE
from sde_diffusion.solvers import (
    CORRECTORS,
    SOLVERS,
    AdaptiveODE,
    Ancestral,
    Corrector,
    GridSolver,
    Langevin,
    PerSampleODE,
    PredictorCorrector,
    ReverseProcess,
    Solver,
)
from sde_diffusion.solvers.adaptive_sde import BrownianPath
from sde_diffusion.verify import budget
from sde_diffusion.verify.check import SLOPE, Check, Measured, NotShown, Setting, mean_off, order, worst
from sde_diffusion.verify.problems import (
    MEAN,
    KnownVariance,
    exact_moments,
    gaussian,
    mixture,
    moments,
    processes,
    seeded,
    solvers,
    variants,
)

EXACT = ("ancestral", "ddim", "heun", "dpmpp_2m", "dpmpp_3m", "dpmpp_sde_2m", "unipc", "deis")
"""Rows that, by their documentation, are exact in one step where the data are a single point."""

COORDINATES: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "uniform": lambda sde, t: t,
    "quadratic": lambda sde, t: t.sqrt(),
    "log_snr": lambda sde, t: sde.half_log_snr(t),
    "karras": lambda sde, t: torch.exp(-sde.half_log_snr(t) / 7),
}
"""What a grid spaces equally."""

SAMPLES = 500


def checks(setting: Setting) -> Iterator[Check]:
    """All checks of this area."""
    yield from budget.checks(setting)
    every, few = processes(), processes(betas=False)
    for name, sde in every.items():
        for key, solver in solvers().items():
            if (
                isinstance(solver, GridSolver) and _has_order(key, solver) and (name in few or key in SOLVERS)
            ):  # other rates β(t) with the defaults alone
                yield Check("order of convergence", f"{name} {key}", partial(_order, setting, sde, solver))
        for key in EXACT:
            yield Check("one step is exact for a single point", f"{name} {key}", partial(_point, setting, sde, key))
        yield Check(
            "the right learned variance is exact", f"{name} ancestral", partial(_learned_variance, setting, sde)
        )
        for key, grid in GRIDS.items():
            yield Check("grid's ends and spacing", f"{name} {key}", partial(_grid, setting, sde, key, grid()))
    for name, sde in few.items():
        for key, cls in SOLVERS.items():
            yield Check("moments of the mixture", f"{name} {key}", partial(_mixture, setting, sde, cls()))
        for key, solver in solvers().items():
            args = (setting, sde, solver)
            yield Check("evaluations are counted", f"{name} {key}", partial(_evaluations, *args))
            yield Check("the last estimate has no noise", f"{name} {key}", partial(_last, *args))
            yield Check("same seed, same sample", f"{name} {key}", partial(_seeds, *args))
            yield Check("sample i in any batch", f"{name} {key}", partial(_batch, *args))
            if not solver.stochastic and "lower_final=never" not in key:  # as by default in a long run
                yield Check("decode inverts encode", f"{name} {key}", partial(_inverse, *args))
            if isinstance(solver, AdaptiveODE):
                yield Check("error within the tolerance", f"{name} {key}", partial(_tolerance, setting, sde, solver))
        for key, corrector in ((k + label, c) for k, cls in CORRECTORS.items() for label, c in variants(cls).items()):
            yield Check("Langevin step", f"{name} {key}", partial(_corrector, setting, sde, corrector))
        for key, projection in PROJECTIONS.items():
            yield Check("projected x̂0", f"{name} {key}", partial(_projection, setting, sde, projection()))
    yield Check("a rejected step's noise is bridged", "adaptive_sde", partial(_bridge, setting))
    yield Check("noise is standard normal, keyed by seed and sample", "SeededNoise", partial(_noise, setting))


def _has_order(key: str, solver: Solver) -> bool:
    """Whether a step is affine in state and noise, and long runs differ from the default's and are at their order.

    Langevin steps depend on state and noise. Lowered last steps change nothing in a long run, or `always` so little
    that its order shows late.
    """
    return "lower_final" not in key and not (
        isinstance(solver, PredictorCorrector) and isinstance(solver.corrector, Langevin)
    )


def _short(solver: Solver) -> Solver:
    """The solver with few steps or a loose tolerance, where accuracy does not matter."""
    if isinstance(solver, GridSolver):
        return replace(solver, steps=8)
    tolerance = 1e-3 if isinstance(solver, AdaptiveODE) else 1e-2
    loose = {field.name: tolerance for field in fields(solver) if field.name in ("rtol", "atol")}
    return replace(solver, **loose)


def _run(setting: Setting, sde: SDE, solver: Solver, oracle: GaussianMixture, count: int, *, seed: int = 0) -> Samples:
    noise = seeded(setting, seed)
    return sample(oracle.score, sde, solver, (count, *oracle.means.shape[1:]), noise=noise)


def _order(setting: Setting, sde: SDE, solver: GridSolver) -> Measured:
    """The error of mean and standard deviation, with no Monte Carlo, falls as steps^−order."""
    t_from, t_to, counts = 0.4, 0.05, [96, 192]  # short of these some are not yet at their order
    exact, errors = exact_moments(sde, t_to), []
    for steps in counts:
        found = moments(setting, sde, replace(solver, steps=steps), t_from, t_to)
        errors.append(abs(found[0] - exact[0]) + abs(found[1] - exact[1]))
    if errors[-1] < 20 * counts[-1] * setting.eps:  # a change of 2 % is a slope off by 0.03
        raise NotShown(f"with {counts[-1]} steps the error of {errors[-1]:.1e} is rounding in {setting.dtype}")
    return Measured(abs(order(counts, errors) - solver.order), SLOPE)


def _point(setting: Setting, sde: SDE, name: str) -> Measured:
    solver = SOLVERS[name]()
    assert isinstance(solver, GridSolver)
    found = moments(setting, sde, replace(solver, steps=1), 0.6, 0.2, std=0.0)
    exact = exact_moments(sde, 0.2, std=0.0)
    return Measured(abs(found[0] - exact[0]) + abs(found[1] - exact[1]), 64 * sde.prior_std * setting.eps)


def _learned_variance(setting: Setting, sde: SDE) -> Measured:
    """Few steps with the variance that Gaussian data give each of them end at the exact moments."""
    solver = Ancestral(steps=4, variance="learned")
    score_fn = KnownVariance(sde, solver.grid(sde, 0.6, 0.2, solver.steps))
    found, exact = moments(setting, sde, solver, 0.6, 0.2, score_fn=score_fn), exact_moments(sde, 0.2)
    return Measured(max(abs(value / right - 1) for value, right in zip(found, exact, strict=True)), 256 * setting.eps)


def _grid(setting: Setting, sde: SDE, name: str, grid: TimeGrid) -> Measured:
    """Equal spacing; of levels, whole ones as equally spaced as these can be."""
    if isinstance(grid, LevelsGrid) and sde.levels is None:
        raise NotShown("the process has no levels")
    off = 0.0
    for t_from, t_to in ((sde.t_max, sde.t_min), (sde.t_min, sde.t_max), (0.7, 0.2)):
        times = grid(sde, t_from, t_to, 10)
        off += float((float(times[0]), float(times[-1])) != (t_from, t_to))
        off += float((times.diff().sign() != math.copysign(1, t_to - t_from)).sum())
        if name in COORDINATES:
            gaps = COORDINATES[name](sde, times).diff()
            off += worst(gaps, gaps.mean(), scale=float(gaps.mean()))
        if isinstance(grid, LevelsGrid):
            assert sde.levels is not None
            levels = times * sde.levels
            off += worst(levels, levels.round()) + float((levels.diff() - levels.diff().mean()).abs().max() > 1)
    return Measured(off, 1e-9)


def _mixture(setting: Setting, sde: SDE, solver: Solver) -> Measured:
    """From the oracle's p_T: means, second moments, log-density and shares of the components, in 4.5 s.e."""
    dims = 2
    if isinstance(solver, PredictorCorrector):  # Langevin steps that depend on x have a bias of order snr² and 1/D
        dims, solver = 32, replace(solver, corrector=replace(solver.corrector, snr=0.03))
    if isinstance(solver, GridSolver):  # a bias well below the error of so few samples
        solver = replace(solver, steps=200 // solver.order)
    oracle = mixture(setting, sde, (dims,))
    start = oracle.sample(SAMPLES, setting.tensor(sde.t_max), generator=setting.generator(2))
    noise = seeded(setting, 3)
    x = sample(oracle.score, sde, solver, tuple(start.shape), noise=noise, x_init=start, denoise=False).x
    t_min = setting.tensor(sde.t_min)
    exact = oracle.sample(20_000, t_min, generator=setting.generator(4))
    statistics: list[Callable[[Tensor], Tensor]] = [
        lambda x: x[:, 0],
        lambda x: x[:, 1],
        lambda x: x[:, 0] ** 2,
        lambda x: x[:, 0] * x[:, 1],
        lambda x: oracle.log_prob(x, t_min),
        lambda x: (torch.cdist(x, oracle.means).argmin(1) == 0).to(x),
    ]
    measured = [mean_off(statistic(x), float(statistic(exact).mean())) for statistic in statistics]
    # the reference is a sample too, of 40 times the size
    return Measured(max(error / bound for error, bound in measured), math.sqrt(1 + SAMPLES / 20_000))


def _evaluations(setting: Setting, sde: SDE, solver: Solver) -> Measured:
    oracle, times = mixture(setting, sde), []

    def score(x: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return oracle.score(x, t)

    noise, off = seeded(setting, 0), 0
    for steps in (5, 10) if isinstance(solver, GridSolver) else (0,):
        times.clear()
        solver = replace(solver, steps=steps) if isinstance(solver, GridSolver) else _short(solver)
        nfe = sample(score, sde, solver, (3, 2), noise=noise).nfe
        off += abs(nfe - len(times))
        if isinstance(solver, GridSolver):
            off += abs(nfe - 1 - solver.evaluations * steps)  # 1 for the final estimate
        low, high = setting.tensor(sde.t_min), setting.tensor(sde.t_max)
        off += sum(int(((t < low) | (t > high)).sum()) for t in times)
    return Measured(float(off), 0.0)


def _last(setting: Setting, sde: SDE, solver: Solver) -> Measured:
    """Of data that are a single point, E[x_0 | x_t] is the point, however noisy x_t is."""
    oracle = GaussianMixture.gaussian(sde, setting.tensor([MEAN, -MEAN]), 0.0)
    return Measured(worst(_run(setting, sde, _short(solver), oracle, 3).x, oracle.means.double()), 1e3 * setting.eps)


def _seeds(setting: Setting, sde: SDE, solver: Solver) -> Measured:
    oracle, short = mixture(setting, sde), _short(solver)
    first, again, other = (_run(setting, sde, short, oracle, 3, seed=seed).x for seed in (7, 7, 8))
    return Measured(float((first != again).sum()) + float((first == other).sum()), 0.0)


def _batch(setting: Setting, sde: SDE, solver: Solver) -> Measured:
    """Sample 70 of 0 … 99, as the first of two, and beside one far out.

    On the CPU in float64 results differ by rounding; by the tolerance where the batch shares its steps.
    """
    oracle, short = mixture(setting, sde), _short(solver)

    def draw(start: int, count: int, outlier: float = 0.0) -> Tensor:
        noise = seeded(setting, 5, start)
        x = sde.prior_std * noise.prior((count, 2))
        x[-1] += outlier
        return sample(oracle.score, sde, short, (count, 2), noise=noise, x_init=x).x

    whole, alone, mated = draw(0, 100)[70], draw(70, 2)[0], draw(70, 2, outlier=30 * sde.prior_std)[0]
    bound = 1e5 * setting.eps * max(1.0, sde.prior_std if setting.dtype == torch.float32 else 1.0)
    if isinstance(solver, AdaptiveODE) and not isinstance(solver, PerSampleODE):
        bound += 0.1  # a hundred tolerances
    return Measured(max(worst(whole, alone.double()), worst(mated, alone.double())), bound)


def _inverse(setting: Setting, sde: SDE, solver: Solver) -> Measured:
    """To the latent and back on a Gaussian flow: the steps' tolerances, or an error that falls with the steps."""
    oracle = gaussian(setting, sde, 2)
    x0 = oracle.sample(4, setting.tensor(sde.t_min), generator=setting.generator(2))

    def there_and_back(solver: Solver) -> tuple[float, int]:
        latent, noise = encode(oracle.score, sde, solver, x0), seeded(setting, 0)
        back = sample(oracle.score, sde, solver, (4, 2), noise=noise, x_init=latent.x, denoise=False)
        return worst(back.x, x0.double()), latent.nfe + back.nfe

    rounding = sde.prior_std * max(1e-6, 1e3 * setting.eps)  # 1e-6 of the latent is no error of anyone
    if isinstance(solver, AdaptiveODE):
        off, nfe = there_and_back(solver)
        return Measured(off, nfe * (solver.atol + solver.rtol) + rounding)
    assert isinstance(solver, GridSolver)
    off, fine = (there_and_back(replace(solver, steps=steps // solver.order))[0] for steps in (120, 240))
    return Measured(fine, off / 2 ** (solver.order - SLOPE) + rounding)


def _tolerance(setting: Setting, sde: SDE, solver: AdaptiveODE) -> Measured:
    """n steps, each of whose scaled error is at most one, on the flow of a Gaussian in both directions."""
    oracle, off, bound = gaussian(setting, sde, 2), 0.0, 0.0
    for t_from, t_to in ((sde.t_max, sde.t_min), (sde.t_min, sde.t_max)):
        start, end = setting.tensor(t_from), setting.tensor(t_to)
        x = oracle.sample(4, start, generator=setting.generator(2))
        process, exact = ReverseProcess(sde, oracle.score), oracle.flow(x, start, end)
        size = 1 + max(float(x.abs().max()), float(exact.abs().max()))
        off += worst(solver.solve(process, x, t_from, t_to), exact.double())
        bound += process.nfe * (solver.atol + solver.rtol * size) + 1e3 * size * setting.eps
    return Measured(off, bound)


def _corrector(setting: Setting, sde: SDE, corrector: Corrector) -> Measured:
    """x + h s + √(2h) z with h = 2 (ρ r spread)², the noise as large as the drift's size says."""
    oracle, t, t_next = mixture(setting, sde, (40,)), torch.tensor(0.6).double(), torch.tensor(0.5).double()
    x = oracle.sample(6, setting.tensor(0.6), generator=setting.generator(2))
    noise = seeded(setting, 1)
    moved = corrector.correct(ReverseProcess(sde, oracle.score, noise=noise), x, t, t_next)
    z = seeded(setting, 1)(x, t, t).double()
    score = oracle.score(x, t.expand(6)).double()
    rho, std = float(sde.mean_coef(t) / sde.mean_coef(t_next)), float(sde.std(t))
    spread = torch.full((6, 1), std, dtype=torch.float64, device=x.device)
    if isinstance(corrector, Langevin):
        long, pull = z.norm(dim=1, keepdim=True), score.norm(dim=1, keepdim=True)
        spread = (long / pull).clamp(max=math.hypot(float(sde.mean_coef(t)), std))
        if corrector.norm == "batch":
            spread = (long.mean() / pull.mean()).expand(6, 1)
    h = 2 * (rho * corrector.snr * spread) ** 2
    exact = x.double() + h * score + (2 * h).sqrt() * z
    return Measured(worst(moved, exact, scale=float(exact.abs().max())), 256 * setting.eps)


def _projection(setting: Setting, sde: SDE, projection: Projection) -> Measured:
    """Into the data's range, each sample alone, nothing changed inside; and score and ε̂ follow x̂0."""
    x = torch.cat([3 * setting.normal(4, 50), 0.1 * setting.normal(4, 50, seed=2)])
    found = projection(x)
    off = float((found.abs() - 1).clamp(min=0).max()) + worst(found[4:], x[4:].double())
    off += worst(torch.cat([projection(row[None]) for row in x]), found.double())
    oracle, t = gaussian(setting, sde, 50), torch.tensor(0.5, dtype=torch.float64)
    plain = ReverseProcess(sde, oracle.score)
    process = ReverseProcess(sde, oracle.score, project=projection)
    x0, a, std = projection(plain.x0(x, t)).double(), float(sde.mean_coef(t)), float(sde.std(t))
    off += worst(process.x0(x, t), x0) + worst(process.eps(x, t), (x.double() - a * x0) / std)
    return Measured(off, 1e3 * setting.eps)


def _bridge(setting: Setting) -> Measured:
    """Of an increment over 1 that is too long, 0.4 and then the rest: variances 0.4 and 0.6, uncorrelated, same sum."""
    z = [setting.normal(4000, 1, seed=seed) for seed in (1, 2, 3)]
    path, lengths = BrownianPath(z[0]), torch.ones(4000, dtype=torch.float64)
    whole = path.next(lengths, z[0])[1]
    first = path.next(0.4 * lengths, z[1])[1]
    path.drop(lengths > 0)
    rest = path.next(0.6 * lengths, z[2])[1]
    products = [whole**2 - 1, first**2 - 0.4, rest**2 - 0.6, first * rest]
    off = max(error / bound for error, bound in (mean_off(p[:, 0], 0.0) for p in products))
    return Measured(max(off, worst(first + rest, whole.double()) / (64 * setting.eps)), 1.0)


def _noise(setting: Setting) -> Measured:
    """Moments over 6400 samples, fresh in each draw, the same for sample 70 in any batch; in 4.5 s.e."""
    zero, noise = torch.zeros(()), seeded(setting, 1)
    first = noise.prior((6400, 2))
    second = noise(first, zero, zero)
    alone = seeded(setting, 1, 70)
    same = torch.equal(alone.prior((1, 2)), first[70:71]) and torch.equal(alone(first[:1], zero, zero), second[70:71])
    if not same:
        raise AssertionError("sample 70 has other noise alone than in a batch")
    other = seeded(setting, 2).prior((6400, 2))
    products = [first, first**2 - 1, first * second, first * other, first[1:] * first[:-1], first * first.flip(1)]
    return Measured(max(error / bound for error, bound in (mean_off(p[:, 0], 0.0) for p in products)), 1.0)
