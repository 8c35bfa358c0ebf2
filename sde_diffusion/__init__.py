"""Score-based generative models in continuous time: training, sampling and likelihoods.

    data ──► dsm_loss(score_fn, sde, x0, …) ──► Trainer ──► checkpoint ──► ScoreModel ──► ScoreFn(x, t)
                                                                                            │
                                       sample(score_fn, sde, solver, …), log_likelihood(score_fn, sde, x0, …)

Everything takes a score function (x, t) -> ∇ log p_t(x), be it a model or a closed form (`GaussianMixture.score`).
"""

from sde_diffusion.chain import DiscreteChain
from sde_diffusion.classifier import NoisyClassifier
from sde_diffusion.data import Batch, DataSpec, sweep, training_batches
from sde_diffusion.errors import InputError, RunError
from sde_diffusion.grids import KarrasGrid, LogSNRGrid, QuadraticGrid, TimeGrid, UniformGrid
from sde_diffusion.guidance import Autoguidance, ClassifierFree, ClassifierGuidance
from sde_diffusion.interpolation import slerp
from sde_diffusion.likelihood import (
    ExactTrace,
    GaussianReference,
    Hutchinson,
    LedgerOptions,
    Levels,
    Points,
    TruncatedNormal,
    UniformDequantisation,
    chain_bound,
    continuous_bound,
    ledger,
    log_likelihood,
    mean_interval,
)
from sde_diffusion.losses import (
    ImportanceTime,
    LikelihoodWeighting,
    SimpleWeighting,
    StratifiedTime,
    UniformTime,
    denoising_error,
    dsm_loss,
)
from sde_diffusion.model import ScoreModel
from sde_diffusion.networks import MLP, UNet
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.projections import Clip, DynamicThreshold
from sde_diffusion.rng import generator
from sde_diffusion.sampling import Samples, decode, encode, sample
from sde_diffusion.score import ScoreFn, eps_from_score, reverse_drift, x0_from_score
from sde_diffusion.sde import DDPM, SDE, VESDE, VPSDE, CosineBeta, CosineBetas, LinearBeta, LinearBetas, SubVPSDE
from sde_diffusion.solvers import (
    DDIM,
    DEIS,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    DPMpp2M,
    DPMpp3M,
    DPMppSDE2M,
    EulerMaruyama,
    Heun,
    Langevin,
    PerSampleODE,
    PredictorCorrector,
    ReverseDiffusion,
    ReverseProcess,
    ScipyODE,
    SeededNoise,
    Solver,
    TorchdiffeqODE,
    UniPC,
    for_budget,
)
from sde_diffusion.training import EMA, load_checkpoint
from sde_diffusion.version import __version__

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "EMA",
    "MLP",
    "SDE",
    "VESDE",
    "VPSDE",
    "AdaptiveSDE",
    "Ancestral",
    "AnnealedLangevin",
    "Autoguidance",
    "Batch",
    "ClassifierFree",
    "ClassifierGuidance",
    "Clip",
    "CosineBeta",
    "CosineBetas",
    "DPMpp2M",
    "DPMpp3M",
    "DPMppSDE2M",
    "DataSpec",
    "DiscreteChain",
    "DynamicThreshold",
    "EulerMaruyama",
    "ExactTrace",
    "GaussianMixture",
    "GaussianReference",
    "Heun",
    "Hutchinson",
    "ImportanceTime",
    "InputError",
    "KarrasGrid",
    "Langevin",
    "LedgerOptions",
    "Levels",
    "LikelihoodWeighting",
    "LinearBeta",
    "LinearBetas",
    "LogSNRGrid",
    "NoisyClassifier",
    "PerSampleODE",
    "Points",
    "PredictorCorrector",
    "QuadraticGrid",
    "ReverseDiffusion",
    "ReverseProcess",
    "RunError",
    "Samples",
    "ScipyODE",
    "ScoreFn",
    "ScoreModel",
    "SeededNoise",
    "SimpleWeighting",
    "Solver",
    "StratifiedTime",
    "SubVPSDE",
    "TimeGrid",
    "TorchdiffeqODE",
    "TruncatedNormal",
    "UNet",
    "UniPC",
    "UniformDequantisation",
    "UniformGrid",
    "UniformTime",
    "__version__",
    "chain_bound",
    "continuous_bound",
    "decode",
    "denoising_error",
    "dsm_loss",
    "encode",
    "eps_from_score",
    "for_budget",
    "generator",
    "ledger",
    "load_checkpoint",
    "log_likelihood",
    "mean_interval",
    "reverse_drift",
    "sample",
    "slerp",
    "sweep",
    "training_batches",
    "x0_from_score",
]
