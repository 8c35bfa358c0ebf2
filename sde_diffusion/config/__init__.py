"""From a config file to objects: `parse` reads any section, `schema` has the sections, `build` makes a run of them."""

from sde_diffusion.config.parse import Raw, Recipe
from sde_diffusion.config.schema import REGISTRIES, Config, plain_config, read_config

__all__ = ["REGISTRIES", "Config", "Raw", "Recipe", "plain_config", "read_config"]
