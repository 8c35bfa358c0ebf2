"""`likelihood --ledger`: every bound of the same examples in one table."""

import dataclasses
import math
import time
import unicodedata
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tqdm import tqdm

from sde_diffusion.commands.common import Loaded, make_folder, write_json
from sde_diffusion.commands.fitting import fitting
from sde_diffusion.commands.growing import GrowingArrays, Rows, spans
from sde_diffusion.commands.likelihood_report import finite
from sde_diffusion.likelihood import Examples
from sde_diffusion.likelihood.ledger import Entry, LedgerRow, check_values, ledger_entries, ledger_row

EXPLANATION = """\
flow: the density of the probability flow by its ODE. SDE bound, chain: variational bounds of the reverse SDE and of its
discretisations. Each is an upper bound of its model's code length; they differ by the noise, decoder or steps named."""


def write_ledger(loaded: Loaded, examples: Examples, folder: Path, extra: dict[str, Any]) -> None:
    """Compute every row that these data have, print the table and write `ledger.json`; a killed run goes on.

    Raises:
        InputError: Values that are no such data, a folder that cannot be written, or a solve that fails.
    """
    trained = loaded.trained
    options, spec, dataset = trained.config.likelihood, trained.spec, examples.dataset
    entries = _entries(loaded, examples, options.start, 1)
    facts = loaded.facts() | extra
    fixed = {key: value for key, value in facts.items() if key != "checkpoint"}
    stop = len(dataset) if options.limit is None else min(len(dataset), options.start + options.limit)
    make_folder(folder)
    stores = [
        GrowingArrays(folder / "ledger" / f"{slug(e.name)}.npz", fixed | {"row": e.name}, loaded.ranks) for e in entries
    ]
    with tqdm(total=len(entries) * (stop - options.start), unit="img", disable=None) as bar:
        for number, store in enumerate(stores):
            bar.set_description(entries[number].name)
            _fill(loaded, examples, entries, number, store, stop, bar)
    for store in stores:
        store.finish()
    if not loaded.ranks.main:
        return
    rows = [_row(loaded, entry, store) for entry, store in zip(entries, stores, strict=True)]
    told = {"confidence": options.confidence, "examples": stop - options.start, "rows": [_plain(row) for row in rows]}
    write_json(folder / "ledger.json", facts | told)
    what = f"{told['examples']} examples, {extra['split']} of {spec.name}, {rows[0].units}"
    click.echo(table(rows, f"{100 * options.confidence:g} %"))
    click.echo(f"{what}; the interval is over examples\n{EXPLANATION}\nwrote {folder / 'ledger.json'}")


def _entries(loaded: Loaded, examples: Examples, first: int, count: int) -> list[Entry]:
    """The rows for `count` examples from `first` on; for any where they are not told their own labels."""
    trained = loaded.trained
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
    loaded: Loaded,
    examples: Examples,
    entries: list[Entry],
    number: int,
    store: GrowingArrays,
    stop: int,
    bar: "tqdm[Any]",
) -> None:
    """Score what `store` lacks of the row `number`, batch by batch."""
    options = loaded.trained.config.likelihood

    def compute(first: int, count: int) -> Rows:
        index = torch.arange(first, first + count)
        values = examples.dataset.fetch(index)[0].to(loaded.device)
        own = examples.label is None
        entry = (_entries(loaded, examples, first, count) if own else entries)[number]
        check_values(loaded.trained.spec, values)
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

    store.fill(spans(options.start, stop, options.batch), fitting(loaded, compute), bar)


def _row(loaded: Loaded, entry: Entry, store: GrowingArrays) -> LedgerRow:
    columns, trained = store.arrays, loaded.trained
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
    """Aligned columns: name, mean ± half-width, cost, and what it bounds."""
    cells = [("row", "bits/dim", f"± {level}", "NFE/example", "seconds", "what it bounds")]
    for row in rows:
        half_width = "" if math.isnan(row.half_width) else f"{row.half_width:.4f}"
        cells.append((row.name, f"{row.mean:.4f}", half_width, f"{row.nfe:.0f}", f"{row.seconds:.1f}", row.bounds))
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *numbers, bounds in cells:
        padded = [" " * (width - _width(text)) + text for text, width in zip(numbers, widths[1:-1], strict=True)]
        lines.append("  ".join([name + " " * (widths[0] - _width(name)), *padded, bounds]))
    return "\n".join(lines)


def _width(text: str) -> int:
    """Columns that a terminal gives a text: combining marks have none."""
    return sum(not unicodedata.combining(c) for c in text)
