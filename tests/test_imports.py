"""What `import sde_diffusion` loads, seen from a fresh interpreter."""

import subprocess
import sys

HEAVY = {"matplotlib", "scipy", "sklearn", "tensorboard", "torchdiffeq", "torchvision"}  # imported where they are used


def test_importing_the_package_leaves_heavy_packages_alone() -> None:
    program = "import sys, sde_diffusion; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "sde_diffusion.solvers.scipy_ode" in loaded
    assert not HEAVY & set(loaded)
