"""sde_diffusion_cli/commands.json, from the commands: `python -m tools.command_table` writes it."""

import json

from sde_diffusion.commands import cli
from sde_diffusion_cli.declared import TABLE, describe


def text() -> str:
    """The file as it should be."""
    return json.dumps(describe(cli), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TABLE.write_text(text(), encoding="utf-8")
