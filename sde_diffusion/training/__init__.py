"""Training: EMA, checkpoints, the run folder and the loop."""

from sde_diffusion.training.averages import Averaged, averaged
from sde_diffusion.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sde_diffusion.training.classifier import ClassifierTrainer
from sde_diffusion.training.dequantise import TRAINING_NOISES, BinCentres, FlowNoise, TrainingNoise, UniformNoise
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.options import LossConfig, TrainingConfig
from sde_diffusion.training.run_folder import CLASSIFIERS, RunFolder, newest_run
from sde_diffusion.training.step import WEIGHTING
from sde_diffusion.training.trainer import Trainer

__all__ = [
    "CLASSIFIERS",
    "EMA",
    "TRAINING_NOISES",
    "WEIGHTING",
    "Averaged",
    "BinCentres",
    "Checkpoint",
    "ClassifierTrainer",
    "FlowNoise",
    "LossConfig",
    "RunFolder",
    "Trainer",
    "TrainingConfig",
    "TrainingNoise",
    "UniformNoise",
    "averaged",
    "load_checkpoint",
    "newest_run",
    "save_checkpoint",
]
