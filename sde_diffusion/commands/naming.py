"""The folder of results where --out names none: told apart by all that was asked for, so that none overwrites another.

    sample_em_seed0   sample_em_seed0_steps500_label3_guidance2_ema0.05   likelihood_test_seed0_probes4_limit256

The name tells what differs from the run's own config, by the last word of its key, and nothing that does not.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sde_diffusion.commands.session import Session
from sde_diffusion.config.parse import plain
from sde_diffusion.config.schema import REGISTRIES

SILENT = ("batch", "count", "solver", "split")  # a matter of speed, more of the same, or said at the beginning
WORDS = {"scale": "guidance", "confidence": "conf"}
LONGEST = 150  # characters of the differences


def results_folder(session: Session, head: str, key: str, section: object, **more: object) -> Path:
    """Where results go by default.

    Args:
        session: What they are results of.
        head: The beginning of the name.
        key: The section of the config that they depend on: `sampling` or `likelihood`.
        section: That section as the user asked for it.
        more: Settings from outside the config, None and False for those that were not given; they take the place of
            what the config says of the same key.
    """
    asked = dict(_told(session.own[key], section))
    asked |= {name: value for name, value in more.items() if value not in (None, False)}
    if session.ema is not True:
        asked["ema"] = session.ema or "none"
    if session.guide_digest is not None:
        asked.pop("checkpoint", None)
        asked[f"by-{session.guide_digest[:8]}"] = True
    tail = "".join(f"_{_written(name, value)}" for name, value in asked.items())
    if len(tail) > LONGEST:
        tail = f"{tail[:LONGEST]}_{hashlib.sha256(tail.encode()).hexdigest()[:8]}"
    return session.folder / (head + tail)


def _told(own: Mapping[str, Any], value: Any) -> Iterator[tuple[str, Any]]:
    """Names and plain values in which a section differs from the run's `own`, or from the defaults of another row."""
    for field in dataclasses.fields(value):
        now, before = getattr(value, field.name), own.get(field.name)
        if not dataclasses.is_dataclass(now):
            if plain(now, REGISTRIES) != before and field.name not in SILENT:
                yield WORDS.get(field.name, field.name), plain(now, REGISTRIES)
            continue
        name = plain(now, REGISTRIES).get("name")
        if not isinstance(before, Mapping) or before.get("name") != name:
            if field.name not in SILENT:
                yield str(name), True
            row: Any = type(now)
            before = plain(row(), REGISTRIES)
        yield from _told(before, now)


def _written(name: str, value: Any) -> str:
    """`label3`, `no_denoise`, `interval0.2-5`, `mode-forward`."""
    if isinstance(value, bool) or value is None:
        return name if value else f"no_{name}"
    if isinstance(value, list):
        return name + "-".join(_text(item) for item in value)
    return f"{name}-{_text(value)}" if _text(value)[:1].isalpha() else f"{name}{_text(value)}"


def _text(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isalnum() or c in ".@-" else "_" for c in text)
