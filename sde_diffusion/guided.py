"""A trained model with the guidance that a caller asks for."""

from dataclasses import replace

from sde_diffusion.config.build import Trained
from sde_diffusion.errors import is_number, require
from sde_diffusion.guidance import GUIDANCES, Bind, Guidance
from sde_diffusion.registry import resolve


def guided(trained: Trained, guidance: float | Guidance | str | None, guide: Bind | None = None) -> Trained:
    """`trained` with another guidance than its config's, or another guide.

    Args:
        guidance: A scale, a name, an object, or None for the config's.
        guide: What guides by label, of a guidance that needs it.

    Raises:
        InputError: An unknown guidance, or one that needs classes where the model knows none.
    """
    trained = trained if guide is None else replace(trained, guide=guide)
    if guidance is None:
        return trained
    if is_number(guidance):
        guidance = replace(trained.config.sampling.guidance, scale=float(guidance))
    guidance = resolve(GUIDANCES, guidance, Guidance, "guidance")  # type: ignore[type-abstract]
    require(
        not guidance.active(conditional=trained.conditional) or trained.conditional or bool(guidance.guide),
        "`guidance` needs a model that knows classes, and this one has none; train with model.conditional=true",
    )
    sampling = replace(trained.config.sampling, guidance=guidance)
    return replace(trained, config=replace(trained.config, sampling=sampling))
