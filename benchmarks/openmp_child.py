"""One measurement of openmp_waiting.py, in a process of its own: training speed with the defaults of the digits.

python benchmarks/openmp_child.py SECONDS [--choose]
"""

import sys
import time
from pathlib import Path

from sde_diffusion_cli.openmp import choose_waiting


def images_per_second(seconds: float) -> float:
    """Of training steps, after five to warm up."""
    import torch

    from sde_diffusion.config.build import Config, build_trainer
    from sde_diffusion.data import training_batches
    from sde_diffusion.training import RunFolder

    config = Config()
    trainer = build_trainer(config, RunFolder(Path("runs/unused")), torch.device("cpu"))
    batches = training_batches(trainer.train, batch=config.training.batch, seed=0)
    for _ in range(5):
        trainer.train_step(next(batches))
    steps, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        trainer.train_step(next(batches))
        steps += 1
    return steps * config.training.batch / passed


if __name__ == "__main__":
    if "--choose" in sys.argv:
        choose_waiting()  # before PyTorch is imported
    print(images_per_second(float(sys.argv[1])))
