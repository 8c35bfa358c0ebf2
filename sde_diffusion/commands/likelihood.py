"""`likelihood`: bits/dim of data under a trained model."""

from pathlib import Path
from typing import Any

import click

from sde_diffusion.commands.asked import Asked, Said, flags, request
from sde_diffusion.commands.common import Options, checkpoint_options, result_options, show_config
from sde_diffusion.commands.examples import file_facts, open_examples
from sde_diffusion.commands.guiding import OWN, LabelsType, check_label, given_label, likelihood_label, numbered
from sde_diffusion.commands.job import run_job
from sde_diffusion.commands.ledger import write_ledger
from sde_diffusion.commands.likelihood_plain import examples_of, plain_job
from sde_diffusion.commands.likelihood_tolerance import score_to_tolerance
from sde_diffusion.commands.naming import results_folder
from sde_diffusion.commands.session import find
from sde_diffusion.config.build import Trained, plain_config
from sde_diffusion.errors import require
from sde_diffusion.likelihood import (
    DEQUANTISATIONS,
    Dequantisation,
)
from sde_diffusion.registry import name_of

EPILOG = """\b
Examples:
  sde-diffusion likelihood                                  # test split, newest run, one probe vector per example
  sde-diffusion likelihood --limit 256 --probes 4
  sde-diffusion likelihood runs/digits_vp --exact --split train --limit 100
  sde-diffusion likelihood --ledger --limit 32
  sde-diffusion likelihood --label own --limit 256          # p(x | y) of a conditional model, beside p(x) without it
  sde-diffusion likelihood --file mine.npy --rtol 1e-6 --atol 1e-6
  sde-diffusion likelihood --tol 0.02 --conf 0.95           # as many examples, probes and repeats as that takes

\b
The noise within the bins of an example depends on the seed and the example's number alone. With --tol the examples
come in random order, the tolerance of the ODE is chosen unless you give it, and the mean is that of the whole split, or
of the part that --start and --limit leave, scored or not. A killed run goes on where it stopped. Without --out the
name of the folder says what was asked for: likelihood_test_seed0_probes4_limit256.

\b
The ledger has one more row, the bound by weighted draws, with --set likelihood.ledger.importance_draws=8. It takes 8
solves of each example.
"""

TRACE = "likelihood.divergence.name"
PROBING = ("probes", "distribution", "mode")  # options that the exact trace does not have
KEYS = {  # options, and the config keys that they are short for
    **{key: f"likelihood.divergence.{key}" for key in (*PROBING, "chunk")},
    **{key: f"likelihood.ode.{key}" for key in ("rtol", "atol")},
    "dequantisation": "likelihood.dequantisation.name",
    "coupling": "likelihood.dequantisation.coupling",
    **{
        key: f"likelihood.{key}"
        for key in ("split", "start", "limit", "draws", "replicates", "tol", "confidence", "max_solves", "batch")
    },
    "seed": "seed",
}
REPEATS = {  # options that say how often a score is repeated, which a ledger's rows do in their own way
    "draws": "--draws",
    "replicates": "--replicates",
    "dequantisation": "--dequantisation and --coupling",
}


@click.command(epilog=EPILOG, short_help="Score data in bits/dim.")
@checkpoint_options
@click.option("--split", help="The data to score: train, validation or test (default).")
@click.option(
    "--file", "data_file", type=click.Path(path_type=Path), help="Score the examples in this .npy or .npz file instead."
)
@click.option("--start", type=int, help="Number of the first example to score. Default: 0.")
@click.option("--limit", type=int, help="How many examples to score. Default: all.")
@click.option(
    "--probes",
    type=int,
    help="Random probe vectors for each solve of an example (Hutchinson's estimator). Default: 1.",
)
@click.option("--distribution", help="Distribution of the probe vectors: rademacher (default) or gaussian.")
@click.option(
    "--exact", is_flag=True, help="Compute the trace exactly. It costs one derivative for each dimension of the data."
)
@click.option(
    "--chunk", type=int, help="Probe vectors in one pass through the network. More need more memory and fewer passes."
)
@click.option(
    "--mode", help="How the derivatives along the probe vectors are computed: auto (default), reverse or forward."
)
@click.option(
    "--dequantisation",
    help=f"The noise added within the bins of discrete data: {', '.join(DEQUANTISATIONS)}. Default: uniform.",
)
@click.option("--coupling", help="How the draws of --draws are coupled: independent, antithetic or stratified.")
@click.option("--draws", type=int, help="Draws of the noise in each replicate of an example. Default: 1.")
@click.option(
    "--replicates",
    type=int,
    help="Independent repeats of each score, each with its own noise and probe vectors. Default: 1.",
)
@click.option(
    "--tol",
    type=float,
    help="Score as many examples as the mean needs to have this half-width [bits/dim], and print what it is made of.",
)
@click.option("--conf", "confidence", type=float, help="Confidence level of the interval. Default: 0.95.")
@click.option("--max-solves", type=int, help="With --tol: the largest number of solves of one example.")
@click.option("--rtol", type=float, help="Relative tolerance of the ODE solver.")
@click.option("--atol", type=float, help="Absolute tolerance of the ODE solver.")
@click.option(
    "--batch", type=int, help="How many examples to score at once. It changes speed and memory, not the results."
)
@click.option(
    "--label",
    type=LabelsType(OWN),
    help="The class y given to a conditional model, for p(x | y). `own` gives each its own. Default: -1, none.",
)
@click.option(
    "--reference/--no-reference",
    default=True,
    show_default=True,
    help="Also score a Gaussian fitted to the training data, for comparison.",
)
@click.option(
    "--ledger",
    is_flag=True,
    help="Instead of one score: a table of every bound on −log p of the same examples, with the cost of each.",
)
@result_options
def likelihood(
    options: Options, data_file: Path | None, exact: bool, reference: bool, ledger: bool, **given: Any
) -> None:
    """Score data under CHECKPOINT, a file or a run's folder; under the newest run without one."""
    _refuse_contradictions(exact, data_file, given)
    found = find(options.checkpoint, options.device)
    said = _flags(given | {"seed": options.seed, "label": numbered(given["label"], found.spec)}, exact)
    asked = request(options.config_file, options.assignments, said).over(found.own)
    _refuse_what_is_chosen(asked, ledger)
    session = found.load(asked.config(), ema=options.ema)
    config = session.trained.config.likelihood
    check_label(session)
    click.echo(f"{'# ' if options.dry_run else ''}{session.describe()}{given_label(config.label)}")
    if options.dry_run:
        whole = plain_config(session.trained.config)
        show_config({"seed": whole["seed"], "likelihood": whole["likelihood"]})
        return
    dataset = open_examples(session.trained, config.split, data_file)
    require(
        config.start < len(dataset),
        f"`likelihood.start` must be < {len(dataset)}, the size of the data, got {config.start}",
    )
    _tell_misfit(session.trained, None if ledger else config.dequantisation)
    what = data_file.stem if data_file else config.split
    seed = session.trained.config.seed
    word = OWN if config.label is None else None
    head = f"likelihood_{what}_seed{seed}"
    folder = options.out or results_folder(session, head, "likelihood", config, label=word)
    facts = session.facts() | file_facts(data_file) | {"split": what, "seed": seed}
    if ledger:
        write_ledger(session, examples_of(session, dataset), folder, facts, options)
    elif config.tol is None:
        run_job(session, folder, plain_job(session, dataset, reference, folder, facts), options)
    else:
        given_ode = asked.says("likelihood.ode.rtol") or asked.says("likelihood.ode.atol")
        score_to_tolerance(session, dataset, folder, facts, options, given_ode=given_ode is not None)


def _refuse_contradictions(exact: bool, data_file: Path | None, given: dict[str, Any]) -> None:
    require(
        not exact or all(given[key] is None for key in PROBING),
        "--exact needs no random directions; drop --probes, --distribution and --mode",
    )
    require(not (data_file and given["split"]), "--file and --split exclude each other; drop one")


def _flags(given: dict[str, Any], exact: bool) -> list[Said]:
    """What the options say. Those of random directions imply them, unless --set names another way."""
    implied = [] if exact or all(given[key] is None for key in PROBING) else [Said(TRACE, "hutchinson", "--probes")]
    named = [Said(TRACE, "exact", "--exact")] if exact else implied
    return [*named, *flags(given, KEYS), *likelihood_label(given["label"])]


def _refuse_what_is_chosen(asked: Asked, ledger: bool) -> None:
    """Refuse options for what a tolerance or the ledger's rows choose themselves."""
    tol = asked.value("likelihood.tol")
    require(not ledger or tol is None, "--ledger and --tol exclude each other; drop one")
    for key, option in {"probes": "likelihood.divergence.probes", "replicates": "likelihood.replicates"}.items():
        given = asked.says(option)
        require(tol is None or given is None, f"--tol chooses the {key} itself; drop {given} or --tol")
    most = asked.says("likelihood.max_solves")
    require(tol is not None or most is None, f"{most} goes with --tol; give it as well")
    for key, short in REPEATS.items() if ledger else ():
        require(
            asked.says(f"likelihood.{key}") is None,
            f"--ledger takes no {short} (likelihood.{key}): its rows have their own noise and draws; drop it, or set "
            "likelihood.ledger.importance_draws or likelihood.ledger.draws",
        )


def _tell_misfit(trained: Trained, scored: Dequantisation | None) -> None:
    """Say if another noise than that of `likelihood.dequantisation` fits the model.

    Raises:
        InputError: The noise is one that the checkpoint or its data cannot have.
    """
    noise = trained.config.training.dequantise
    _ = trained.dequantisation
    if scored is None or trained.spec.levels is None or isinstance(scored, DEQUANTISATIONS[noise.scored_by]):
        return
    name = name_of(DEQUANTISATIONS, scored)
    click.echo(
        f"the model was trained on {noise.trained_on}: likelihood.dequantisation={noise.scored_by} fits it, {name} "
        "noise costs bits"
    )
