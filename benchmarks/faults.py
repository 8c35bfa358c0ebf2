"""The faults of `benchmarks/mutants.py`: small mistakes of the kind that people make, one text replaced by another.

`old` stands exactly once in `file` (tests/test_faults.py sees to it), so that a refactoring is noticed.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One text of one file, replaced by another that is wrong.

    Attributes:
        name: Short and unique.
        file: Path within the package.
        old, new: The right text, which stands there once, and the wrong one.
        breaks: What is wrong then.
        area: Areas of `verify` to run first, comma-separated.
        tests: Test files or folders to run first, within `tests/`, comma-separated.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    area: str
    tests: str


SDE = ("sde", "conformance/test_sdes.py,sde")
SCORE = ("score", "conformance/test_continuity.py,conformance/test_predictions.py,test_score.py,test_model.py")
LOSS = ("losses", "conformance/test_time_samplers.py,conformance/test_weightings.py,losses")
GRID = ("solvers", "conformance/test_grids.py,test_grids.py,solvers")
SOLVER = ("solvers", "solvers,conformance/test_solvers.py")
NOISE = ("solvers", "test_rng.py,test_sampling.py,conformance/test_solvers.py")
ODE = ("solvers,likelihood", "solvers/test_runge_kutta.py,solvers/test_per_sample_ode.py,solvers")
LIKELIHOOD = ("likelihood", "likelihood")
UNITS = ("likelihood", "data/test_spec.py,likelihood")
DATA = ("training", "data/test_loader.py,training")
TRAINING = ("training", "training/test_parts.py,training")

FAULTS = [
    # processes
    Fault(
        "vp-exp",
        "sde/vp.py",
        "torch.sqrt(-torch.expm1(-self.beta.integral(t)))",
        "torch.sqrt(1 - torch.exp(-self.beta.integral(t)))",
        "`exp` for `expm1`: std near t_min",
        *SDE,
    ),
    Fault(
        "vp-drift-half",
        "sde/vp.py",
        "return -0.5 * self.beta.rate(t)",
        "return -self.beta.rate(t)",
        "a missing ½ in the drift",
        *SDE,
    ),
    Fault(
        "vp-wrong-a",
        "sde/vp.py",
        "return -0.5 * self.beta.integral(t)",
        "return -self.beta.integral(t)",
        "the wrong a: ᾱ where √ᾱ is meant",
        *SDE,
    ),
    Fault(
        "subvp-std-of-vp",
        "sde/subvp.py",
        "return -torch.expm1(-self.beta.integral(t))",
        "return torch.sqrt(-torch.expm1(-self.beta.integral(t)))",
        "VP's standard deviation in sub-VP",
        *SDE,
    ),
    Fault(
        "subvp-diffusion",
        "sde/subvp.py",
        "-torch.expm1(-2 * self.beta.integral(t))",
        "-torch.expm1(-self.beta.integral(t))",
        "e^{−B} for e^{−2B} in g",
        *SDE,
    ),
    Fault("ve-prior", "sde/ve.py", "return self.sigma_max", "return 1.0", "the prior's std is 1 for VE", *SDE),
    Fault(
        "ve-variance",
        "sde/ve.py",
        "return self.sigma_min * torch.exp(self._log_ratio * t)",
        "return (self.sigma_min * torch.exp(self._log_ratio * t)) ** 2",
        "the variance where the standard deviation is meant",
        *SDE,
    ),
    Fault(
        "ve-diffusion",
        "sde/ve.py",
        "math.sqrt(2 * self._log_ratio)",
        "math.sqrt(self._log_ratio)",
        "a missing 2 in g",
        *SDE,
    ),
    Fault(
        "linear-integral",
        "sde/beta.py",
        "t * (self.min + 0.5 * t * (self.max - self.min))",
        "t * (self.min + t * (self.max - self.min))",
        "a missing ½ in ∫β",
        *SDE,
    ),
    Fault(
        "cosine-offset",
        "sde/beta.py",
        "return 0.5 * math.pi / (1 + self.offset)",
        "return 0.5 * math.pi",
        "the cosine's time is not scaled by 1 + s: another curve, consistent with itself",
        *SDE,
    ),
    Fault(
        "time-at",
        "sde/base.py",
        "low, high = torch.where(early, middle, low), torch.where(early, high, middle)",
        "low, high = torch.where(early, low, middle), torch.where(early, middle, high)",
        "bisection goes the wrong way",
        *SDE,
    ),
    Fault(
        "prior-density",
        "sde/base.py",
        "math.log(self.prior_std) + 0.5 * math.log(2 * math.pi)",
        "math.log(self.prior_std) + math.log(2 * math.pi)",
        "a missing ½ in the prior's log-density",
        *SDE,
    ),
    # scores and models
    Fault(
        "drift-factor",
        "score.py",
        "expand(0.5 * (1 + eta**2) * sde.diffusion(t) ** 2, x)",
        "expand((1 + eta**2) * sde.diffusion(t) ** 2, x)",
        "a missing ½ in the reverse drift",
        *SCORE,
    ),
    Fault(
        "drift-eta",
        "score.py",
        "expand(0.5 * (1 + eta**2) * sde.diffusion(t) ** 2, x)",
        "expand(0.5 * (1 + eta) * sde.diffusion(t) ** 2, x)",
        "η for η² in the reverse drift: right for 0 and 1",
        *SCORE,
    ),
    Fault(
        "tweedie",
        "score.py",
        "(x + expand(sde.std(t) ** 2, x) * score)",
        "(x + expand(sde.std(t), x) * score)",
        "std for std² in Tweedie's formula",
        *SCORE,
    ),
    Fault(
        "v-sign", "model.py", "return std / r**2, a / r", "return std / r**2, -a / r", "the sign of c_out for v", *SCORE
    ),
    Fault(
        "edm-total",
        "model.py",
        "return std / total**2, -a * sigma_data / total",
        "return std / total, -a * sigma_data / total",
        "edm's c_skip divides by √ of what it should",
        *SCORE,
    ),
    Fault(
        "c-in",
        "model.py",
        "self.net(expand(c_in, x) * x, c_noise, label)",
        "self.net(x, c_noise, label)",
        "the network's input is not scaled",
        *SCORE,
    ),
    Fault(
        "c-noise",
        "model.py",
        "return -0.25 * sde.half_log_snr(t)",
        "return -0.5 * sde.half_log_snr(t)",
        "the factor of c_noise",
        *SCORE,
    ),
    Fault(
        "label-none",
        "networks/embedding.py",
        "if label is None else label + 1",
        "if label is None else label.clamp(min=0)",
        "label −1 (none) is embedded as class 0",
        "score",
        "networks,test_model.py",
    ),
    # losses
    Fault(
        "density-not-divided",
        "losses/dsm.py",
        "weighting.of_eps(sde, t) / density * error",
        "weighting.of_eps(sde, t) * error",
        "the loss is not divided by the density of its times",
        *LOSS,
    ),
    Fault("eps-sign", "losses/dsm.py", "* score + eps", "* score - eps", "the sign of ε in the loss", *LOSS),
    Fault(
        "weight-of-eps",
        "losses/weighting.py",
        "return self(sde, t) / sde.std(t) ** 2",
        "return self(sde, t) / sde.std(t)",
        "λ/std for λ/std²",
        *LOSS,
    ),
    Fault(
        "t-min-ignored",
        "losses/time_sampling.py",
        "return sde.t_min + span * u, torch.full_like(u, 1 / span)",
        "return sde.t_max * u, torch.full_like(u, 1 / span)",
        "times below t_min are drawn, and then clamped to it",
        *LOSS,
    ),
    Fault(
        "wrong-quantile",
        "losses/time_sampling.py",
        "return edges[cell] + (u - cdf[cell]) / mass * width, mass / width",
        "return edges[cell] + u * width, mass / width",
        "the draw's place within its cell is not what is left of u",
        *LOSS,
    ),
    # grids and projections
    Fault(
        "shifted-grid",
        "grids.py",
        "torch.linspace(0, 1, steps + 1, dtype=torch.float64)",
        "torch.linspace(0, 1, steps + 2, dtype=torch.float64)[1:]",
        "the grid is shifted by a step; its ends are still right",
        *GRID,
    ),
    Fault(
        "karras-rho",
        "grids.py",
        "return sde.time_at(-self.rho * torch.log(ends[0] + u * (ends[1] - ends[0])))",
        "return sde.time_at(-self.rho * torch.log(1 / (1 / ends[0] + u * (1 / ends[1] - 1 / ends[0]))))",
        "Karras' ρ inverted: equal steps in (std/a)^{−1/ρ}",
        *GRID,
    ),
    Fault(
        "threshold-scale",
        "projections.py",
        "return x0.clamp(-limit, limit) * (self.bound / limit)",
        "return x0.clamp(-limit, limit)",
        "dynamic thresholding clips but does not scale",
        "solvers",
        "test_projections.py",
    ),
    Fault(
        "clip-range",
        "projections.py",
        "low: float = -1.0",
        "low: float = 0.0",
        "x̂0 is clipped to [0, 1]",
        "solvers",
        "test_projections.py,test_build.py",
    ),
    # noise and the process
    Fault(
        "seed-ignored",
        "solvers/noise.py",
        "SampleStream(self.seed, start=self.start",
        "SampleStream(0, start=self.start",
        "the seed is ignored",
        *NOISE,
    ),
    Fault(
        "index-ignored",
        "solvers/noise.py",
        "start=self.start, count=count, device=self.device",
        "start=0, count=count, device=self.device",
        "the sample's index is ignored: noise depends on the batch",
        *NOISE,
    ),
    Fault(
        "same-noise-each-step",
        "solvers/noise.py",
        "if self._stream is None or self._stream.count != len(x):",
        "if True:",
        "every step draws the same noise",
        *NOISE,
    ),
    Fault(
        "nfe-of-x0",
        "solvers/base.py",
        "x0 = x0_from_score(self.sde, self._evaluate(x, t), x, t)",
        "x0 = x0_from_score(self.sde, self._score_fn(x, t.to(x).expand(len(x))), x, t)",
        "evaluations of x̂0 are not counted",
        "solvers",
        "conformance/test_solvers.py",
    ),
    Fault(
        "projected-score",
        "solvers/base.py",
        "return score_from_x0(self.sde, self.x0(x, t), x, t)",
        "return self._evaluate(x, t)",
        "the score does not follow a projected x̂0",
        "solvers",
        "solvers,test_sampling.py",
    ),
    # solvers
    Fault(
        "ancestral-noise",
        "solvers/ancestral.py",
        'added.sqrt() if self.variance == "large" else added.sqrt() * ratio',
        "added.sqrt()",
        "noise on the last step, where the bridge has none: β for β̃",
        *SOLVER,
    ),
    Fault(
        "em-noise",
        "solvers/euler_maruyama.py",
        "process.sde.diffusion(t) * h.abs().sqrt()",
        "process.sde.diffusion(t) * h.abs()",
        "the noise of a step in proportion to h, not √h",
        *SOLVER,
    ),
    Fault(
        "reverse-diffusion-fall",
        "solvers/reverse_diffusion.py",
        "x_next = x - fall * x",
        "x_next = x + fall * x",
        "ρ for 2 − ρ: the wrong way in x",
        *SOLVER,
    ),
    Fault(
        "ddim-eta",
        "solvers/ddim.py",
        "kept = torch.sqrt(1 - self.eta**2 * renewed)",
        "kept = torch.sqrt(1 - self.eta * renewed)",
        "η for η² in the kept share",
        *SOLVER,
    ),
    Fault(
        "heun-average",
        "solvers/heun.py",
        "slope = 0.5 * (slope + process.eps(x_next, t_next))",
        "slope = process.eps(x_next, t_next)",
        "Heun takes the second slope, not the mean of both",
        *SOLVER,
    ),
    Fault(
        "heun-churn",
        "solvers/heun.py",
        "added = (torch.exp(-2 * sde.half_log_snr(raised)) - level**2).sqrt()",
        "added = torch.exp(-sde.half_log_snr(raised)) - level",
        "churn adds standard deviations where variances add",
        *SOLVER,
    ),
    Fault(
        "stale-history",
        "solvers/unipc.py",
        "history = (here, *state.history) if state else (here,)",
        "history = (here, *state.history[::-1]) if state else (here,)",
        "the history of a multistep solver is swapped",
        *SOLVER,
    ),
    Fault(
        "short-history",
        "solvers/dpmpp_3m.py",
        "history = (here, *state.history[:2]) if state else (here,)",
        "history = (here, *state.history[:1]) if state else (here,)",
        "the third order forgets its third value",
        *SOLVER,
    ),
    Fault(
        "sde-2m-sign",
        "solvers/dpmpp_sde_2m.py",
        "* (x0 - x0_before)",
        "* (x0_before - x0)",
        "extrapolates backwards",
        *SOLVER,
    ),
    Fault(
        "phi-recursion",
        "solvers/exponential.py",
        "rows.append(1 - k / h * rows[-1])",
        "rows.append(1 - 1 / h * rows[-1])",
        "a factor k missing in the moments of long steps",
        *SOLVER,
    ),
    Fault(
        "corrector-step",
        "solvers/correctors.py",
        "h = expand(2 * (rho * self.snr",
        "h = expand(4 * (rho * self.snr",
        "Langevin steps twice as long",
        *SOLVER,
    ),
    Fault(
        "batch-norm",
        "solvers/correctors.py",
        "return (length / pull).clamp(",
        "return (length.mean() / pull.mean()).expand(len(z)).clamp(",
        "a sample's Langevin step depends on its batch",
        *SOLVER,
    ),
    Fault(
        "bridge",
        "solvers/adaptive_sde.py",
        "spread = torch.sqrt(h * (1 - share))",
        "spread = torch.sqrt(h)",
        "the Brownian bridge keeps all its variance",
        *SOLVER,
    ),
    Fault(
        "rejected-kept",
        "solvers/adaptive_sde.py",
        "accepted = (error <= 1) & (t > t_to)",
        "accepted = t > t_to",
        "rejected steps of the adaptive SDE solver are taken",
        *SOLVER,
    ),
    # adaptive Runge–Kutta
    Fault(
        "step-accepted",
        "solvers/runge_kutta.py",
        "good = (error <= 1) & live.active",
        "good = live.active.clone()",
        "rejected steps are taken",
        *ODE,
    ),
    Fault(
        "error-unscaled",
        "solvers/runge_kutta.py",
        "self.norm(_combine(weights, slopes).mul_(h).div_(scale))",
        "self.norm(_combine(weights, slopes).mul_(h))",
        "the error of a step is not measured in tolerances",
        *ODE,
    ),
    Fault(
        "compaction",
        "solvers/runge_kutta.py",
        "live, rhs = live.select(rows), select(rhs, rows)",
        "live, rhs = live.select(rows), select(rhs, rows.flip(0))",
        "when samples leave the batch, the random directions of the others are permuted",
        *ODE,
    ),
    Fault(
        "tableau",
        "solvers/tableaux.py",
        "(44 / 45, -56 / 15, 32 / 9)",
        "(44 / 45, -56 / 15, 32 / 19)",
        "a mistyped coefficient of Dormand and Prince's pair",
        *ODE,
    ),
    Fault(
        "tableau-error",
        "solvers/tableaux.py",
        "errors=((71 / 57600, 0, -71 / 16695, 71 / 1920,",
        "errors=((71 / 57600, 0, -71 / 16695, 17 / 1920,",
        "a mistyped coefficient of its error estimate",
        *ODE,
    ),
    # units and data
    Fault(
        "bits-offset",
        "data/spec.py",
        "return math.log2(self.scale if self.levels is None else self.levels / 2)",
        "return math.log2(self.scale if self.levels is None else self.levels)",
        "the offset of bits/dim is 8 for 7",
        *UNITS,
    ),
    Fault(
        "bits-or-nats",
        "data/spec.py",
        "return -log_prob / (self.dims * math.log(2)) + self.bits_offset",
        "return -log_prob / self.dims + self.bits_offset",
        "nats beside bits",
        *UNITS,
    ),
    Fault(
        "dequantisation-centred",
        "data/spec.py",
        "(values.float() + (0.5 if u is None else u))",
        "(values.float() + (0.5 if u is None else u - 0.5))",
        "dequantisation noise in [−½, ½)",
        *UNITS,
    ),
    Fault(
        "dequantisation-missing",
        "data/loader.py",
        "return Batch(spec.to_model(values, u), None if labels is None else labels.to(device, non_blocking=True))",
        "return Batch(spec.to_model(values), None if labels is None else labels.to(device, non_blocking=True))",
        "training does without dequantisation noise",
        *DATA,
    ),
    Fault(
        "resume-off-by-one",
        "data/loader.py",
        "epoch, used = divmod(start * batch, length)",
        "epoch, used = divmod(start * batch + 1, length)",
        "a resumed run's data are off by one",
        *DATA,
    ),
    # training
    Fault(
        "ema-decay",
        "training/ema.py",
        "1 - self.decay_at(step))",
        "self.decay_at(step))",
        "the average and the new weights change places",
        *TRAINING,
    ),
    Fault(
        "ema-warm-up",
        "training/ema.py",
        "return min(self.decay, (1 + step) / (10 + step))",
        "return self.decay",
        "no warm-up: the first weights are remembered",
        *TRAINING,
    ),
    Fault(
        "ema-stale",
        "training/trainer.py",
        "self.ema.update(self.model, k)",
        "self.ema.update(self.ema.model, k)",
        "the average never changes",
        "training",
        "training/test_trainer.py",
    ),
    Fault(
        "optimizer-not-restored",
        "training/trainer.py",
        'self.optimizer.state[parameter] = {key: moments[f"{key}.{name}"].to(self.device) for key in keys}',
        "pass",
        "a resumed run forgets the optimizer's moments",
        "training",
        "training/test_trainer.py",
    ),
    Fault(
        "warm-up",
        "training/options.py",
        "(step + 1) / max(1, self.warmup)",
        "step / max(1, self.warmup)",
        "the learning rate's warm-up is off by one: the first step is idle",
        *TRAINING,
    ),
    Fault(
        "clip-skipped",
        "training/trainer.py",
        "config.clip or math.inf)",
        "math.inf)",
        "gradients are not clipped",
        "training",
        "training/test_trainer.py",
    ),
    Fault(
        "validation-noise",
        "training/trainer.py",
        "draws = generator(self.seed, _VALIDATION, start, device=self.device)",
        "draws = generator(self.seed, _LOSS, self.step, device=self.device)",
        "validation draws training's noise, another at every step",
        "training",
        "training/test_trainer.py",
    ),
]
