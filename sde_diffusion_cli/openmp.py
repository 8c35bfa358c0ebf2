"""How OpenMP's threads wait. It is chosen before PyTorch is imported, which settles it.

Between two operations PyTorch's threads wait for each other. By default they spin, which is fastest as long as each has
a core of its own. Where another process is busy there are fewer cores than threads, and a thread that spins keeps the
one thread from its core that all the others wait for. Then it is better that they sleep: benchmarks/openmp_waiting.py.
"""

import os
import time
from pathlib import Path
from statistics import median

LOAD = Path("/proc/loadavg")
SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SAMPLES, SECONDS_BETWEEN = 15, 0.004


def choose_waiting() -> None:
    """Set OMP_WAIT_POLICY to PASSIVE where other processes leave fewer cores than PyTorch has threads.

    What the user has set stays. Takes 60 ms. Does nothing on systems other than Linux, and with one thread.
    """
    if any(name in os.environ for name in SET_BY_USER):
        return
    cores = os.cpu_count() or 1
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    threads = int(asked) if asked.isdigit() else own
    if threads > 1 and threads + running_elsewhere() > cores:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def running_elsewhere() -> float:
    """How many threads of other processes run or want to run, the median over 60 ms; 0 where Linux does not tell."""
    counts = []
    for _ in range(SAMPLES):
        try:
            counts.append(int(LOAD.read_text().split()[3].partition("/")[0]) - 1)  # without this thread
        except (OSError, IndexError, ValueError):
            return 0
        time.sleep(SECONDS_BETWEEN)
    return median(counts)
