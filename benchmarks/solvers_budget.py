"""What `sample --nfe N` gives, from the prior to the final denoising, beside other ways to spend N evaluations.

The reference is the probability flow of the same start to t_min by small tolerances, and its denoising. Errors are RMS
per coordinate, over all samples and for the median one: where paths part, one sample that ends elsewhere decides the
first. The others are as they come, with their own grids and to t_min.
Targets are those of solvers.py under VP, sub-VP and VE, and with --checkpoint a trained model.

    python benchmarks/solvers_budget.py [--quick] [--checkpoint RUN]
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, describe, machine_facts, short, table, use_one_thread, write_results
from solvers import PROCESSES, label, problems, rms, rounded
from torch import Tensor

from sde_diffusion.config.build import choose_device, load_trained, read_config
from sde_diffusion.rng import generator
from sde_diffusion.sampling import sample
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import SDE
from sde_diffusion.solvers import (
    DDIM,
    DPMpp2M,
    Heun,
    PerSampleODE,
    Plan,
    ReverseProcess,
    SeededNoise,
    for_budget,
    within,
)
from sde_diffusion.training import load_checkpoint

NFES = (6, 10, 20, 35, 50)
OTHERS = (DDIM(), Heun(), DPMpp2M())


@dataclass(frozen=True, eq=False)
class Case:
    """A score, a start and how exactly its flow is solved."""

    name: str
    sde: SDE
    score_fn: ScoreFn
    start: Tensor
    reference: PerSampleODE

    def exact(self) -> Tensor:
        """The denoised end of the flow, (B, *D)."""
        process = ReverseProcess(self.sde, self.score_fn)
        end = self.reference.solve(process, self.start, self.sde.t_max, self.sde.t_min)
        return process.x0(end, torch.tensor(self.sde.t_min, dtype=torch.float64))

    def run(self, plan: Plan) -> Tensor:
        """What a plan makes of the start, (B, *D)."""
        found = sample(
            self.score_fn,
            self.sde,
            plan.solver,
            tuple(self.start.shape),
            noise=SeededNoise(0),
            x_init=self.start,
            t_end=plan.t_end(self.sde),
            denoise=plan.denoise,
        )
        assert found.nfe == plan.nfe
        return found.x


def trained(path: Path, count: int) -> Case:
    """The model of a checkpoint, from a reference at 1e-4: a network is no smoother than that."""
    checkpoint = load_checkpoint(path)
    model = load_trained(checkpoint, read_config(None, (), checkpoint.meta["config"]), choose_device("cpu"))
    z = torch.randn(count, *model.spec.shape, generator=generator(6))
    sde = model.model.sde
    name = f"trained: {model.spec.name}"
    return Case(name, sde, model.model.bind(-1), sde.prior_std * z, PerSampleODE(rtol=1e-4, atol=1e-4))


def measure(case: Case, nfes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Errors of the choice and of the others."""
    exact, rows = case.exact(), []
    for nfe in nfes:
        for name, plan in {"--nfe": for_budget(nfe), **{label(other): within(other, nfe) for other in OTHERS}}.items():
            x = case.run(plan)
            median = (x - exact).flatten(1).square().mean(1).sqrt().median()
            facts = {"nfe": nfe, "way": name, "solver": label(plan.solver), "spent": plan.nfe}
            rows.append({"case": case.name, **facts, "rms": rounded(rms(x, exact)), "median": rounded(float(median))})
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """`rms (median)` of every way, one line for each case and number of evaluations."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    lines: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        lines.setdefault((row["case"], row["nfe"]), []).append(f"{short(row['rms'], 2)} ({short(row['median'], 2)})")
    return table(["case", "NFE", *(f"`{way}`" for way in ways)], [[c, str(n), *v] for (c, n), v in lines.items()])


@torch.no_grad()
def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 samples, one target and two budgets")
    parser.add_argument("--checkpoint", type=Path, help="also a trained model: a checkpoint file")
    parser.add_argument("--out", type=Path, default=RESULTS / "solvers_budget.json", help="result file")
    options = parser.parse_args()
    count, nfes, targets = (8, NFES[:2], 1) if options.quick else (64, NFES, 3)
    use_one_thread()
    facts = machine_facts()
    print(describe(facts))
    tight = PerSampleODE(method="dop853", rtol=1e-9, atol=1e-9)
    cases = [
        Case(f"{problem.target}, {process}", problem.sde, problem.oracle.score, problem.start, tight)
        for process in PROCESSES
        for problem in problems(process, count, targets=targets)
    ]
    if options.checkpoint:
        cases.append(trained(options.checkpoint, min(count, 12)))
    rows = [row for case in cases for row in measure(case, nfes)]
    print(f"\n{report(rows)}")
    write_results(options.out, {"machine": facts, "rows": rows})


if __name__ == "__main__":
    main()
