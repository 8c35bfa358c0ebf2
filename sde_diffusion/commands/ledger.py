"""`likelihood --ledger`: every bound of the same examples in one table."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sde_diffusion.commands.common import Options
from sde_diffusion.commands.fitting import fitting
from sde_diffusion.commands.growing import GrowingArrays, Rows, spans
from sde_diffusion.commands.job import results, write_results
from sde_diffusion.commands.likelihood_report import aligned, finite
from sde_diffusion.commands.session import Session
from sde_diffusion.config.parse import Raw
from sde_diffusion.likelihood import Examples
from sde_diffusion.likelihood.audit.ledger import Entry, LedgerRow, check_values, ledger_entries, ledger_row

FILES = ("ledger.json",)
EXPLANATION = """\
flow: the density of the probability flow by its ODE. SDE bound, chain: variational bounds of the reverse SDE and of its
discretisations. Each is an upper bound of its model's code length; they differ by the noise, decoder or steps named."""


def write_ledger(session: Session, examples: Examples, folder: Path, facts: Raw, options: Options) -> None:
    """Compute every row that these data have, print the table and write `ledger.json`; a killed run goes on.

    Raises:
        InputError: Values that are no such data, a folder that cannot be written, or a solve that fails.
    """
    config, count = session.trained.config.likelihood, len(examples.dataset)
    stop = count if config.limit is None else min(count, config.start + config.limit)
    entries = _entries(session, examples, config.start, 1)
    with results(session, folder, facts, FILES, options) as lacking:
        if not lacking:
            return
        stores = [
            GrowingArrays(folder / "ledger" / f"{slug(entry.name)}.npz", facts | {"row": entry.name}, session.ranks)
            for entry in entries
        ]
        with tqdm(total=len(entries) * (stop - config.start), unit="example", disable=None) as bar:
            for number, store in enumerate(stores):
                bar.set_description(entries[number].name)
                _fill(session, examples, entries, number, store, stop, bar)
        for store in stores:
            store.finish()
        if session.ranks.main:
            rows = [_row(session, entry, store) for entry, store in zip(entries, stores, strict=True)]
            report = {"confidence": config.confidence, "examples": stop - config.start}
            lines = [
                table(rows, f"{100 * config.confidence:g} %"),
                f"{report['examples']} examples, {facts['split']} of {session.trained.spec.name}, {rows[0].units}; the "
                f"interval is over examples",
                EXPLANATION,
            ]
            write_results(folder, FILES, facts | report | {"rows": [_plain(row) for row in rows]}, lines)


def _entries(session: Session, examples: Examples, first: int, count: int) -> list[Entry]:
    """The rows for `count` examples from `first` on; for any where they are not told their own labels."""
    trained = session.trained
    options = trained.config.likelihood
    return ledger_entries(
        examples.score_fn(trained.model.bind, first, count),
        trained.model.sde,
        trained.spec,
        divergence=options.divergence,
        ode=options.ode,
        options=options.ledger,
        learned=trained.learned_noise,
        seed=examples.seed,
    )


def _fill(
    session: Session,
    examples: Examples,
    entries: list[Entry],
    number: int,
    store: GrowingArrays,
    stop: int,
    bar: "tqdm[Any]",
) -> None:
    """Score what `store` lacks of the row `number`, batch by batch."""
    options = session.trained.config.likelihood

    def compute(first: int, count: int) -> Rows:
        index = torch.arange(first, first + count)
        values = examples.dataset.fetch(index)[0].to(session.device)
        own = examples.label is None
        entry = (_entries(session, examples, first, count) if own else entries)[number]
        check_values(session.trained.spec, values)
        clock = time.perf_counter()
        bits, nfe = entry.score(values, first)
        seconds = (time.perf_counter() - clock) / count
        constant = np.ones(count)
        return {
            "bits": bits.cpu().numpy(),
            "index": index.numpy(),
            "nfe": nfe * constant,
            "seconds_each": seconds * constant,
        }

    store.fill(spans(options.start, stop, options.batch), fitting(session, compute), bar)


def _row(session: Session, entry: Entry, store: GrowingArrays) -> LedgerRow:
    columns, trained = store.arrays, session.trained
    return ledger_row(
        entry,
        trained.spec,
        torch.from_numpy(columns["bits"]),
        nfe=float(columns["nfe"].mean()),
        seconds=float(columns["seconds_each"].sum()),
        confidence=trained.config.likelihood.confidence,
    )


def _plain(row: LedgerRow) -> dict[str, Any]:
    return dataclasses.asdict(row) | {"half_width": finite(row.half_width)}


def slug(name: str) -> str:
    """A row's name as a file's."""
    return "".join(c if c.isalnum() else "_" for c in name).replace("__", "_")


def table(rows: list[LedgerRow], level: str) -> str:
    """Name, mean ± half-width, cost, and what it bounds."""
    cells = [("row", "bits/dim", f"± {level}", "NFE/example", "seconds", "what it bounds")]
    for row in rows:
        half_width = "" if math.isnan(row.half_width) else f"{row.half_width:.4f}"
        cells.append((row.name, f"{row.mean:.4f}", half_width, f"{row.nfe:.0f}", f"{row.seconds:.1f}", row.bounds))
    return aligned(cells, numbers=range(1, 5))
