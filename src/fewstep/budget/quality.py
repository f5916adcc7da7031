"""Which way of drawing is the better one: as measured for the bundled model, by a stated rule for others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fewstep.catalog import hub, mode_weights
from fewstep.catalog.assets import ASSETS, modes_for, vae_asset
from fewstep.catalog.models import Model
from fewstep.errors import FewstepError
from fewstep.modes import choose_mode
from fewstep.recipe import Recipe

# Share of pictures whose nearest real one has the name asked for, of 1,500, by `fewstep eval --work run
# --prompts 500 --seeds 3`; base in 1 and 2 steps of 100 prompts: the model card. One in a hundred is noise.
TINY_NAME_1: Mapping[tuple[str, int], float] = MappingProxyType(
    {
        ("base", 1): 0.60, ("base", 2): 0.78, ("base", 4): 0.871, ("base", 50): 0.855,
        ("lcm", 1): 0.823, ("lcm", 4): 0.821, ("lcm-lora", 4): 0.842,
        ("turbo", 1): 0.829, ("turbo", 4): 0.826,
    }
)  # fmt: skip
# With vae="tiny", of 600 pictures of turbo 1 and lcm-lora 4: 12 lose their name, and 10 gain it.
TINY_VAE_LOSS = 0.003
ENOUGH = 0.5  # of a mode's usual steps: below, its pictures are unfinished


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way of drawing."""

    recipe: Recipe
    steps: int
    vae: str

    def __hash__(self) -> int:
        return hash((self.recipe.mode, self.steps, self.vae))

    def __str__(self) -> str:
        decoder = f", vae={self.vae!r}" if self.vae else ""
        return f"mode={self.recipe.mode!r} in {self.steps} step{'s' * (self.steps > 1)}{decoder}"


def quality(candidate: Candidate, model: Model) -> tuple[float, ...]:
    """Return what orders candidates, the best highest."""
    recipe, own_vae = candidate.recipe, not candidate.vae
    measured = TINY_NAME_1.get((recipe.mode, candidate.steps)) if model.family == "tiny" else None
    if measured is not None:
        return (measured - (0.0 if own_vae else TINY_VAE_LOSS), own_vae)
    if model.family == "tiny":
        return (0.0, own_vae)
    finished = candidate.steps >= ENOUGH * recipe.steps.default
    share = min(1.0, candidate.steps / recipe.steps.default)
    return (finished, recipe.mode == "base" if finished else share, candidate.steps, own_vae)


def rule_of(model: Model) -> str:
    """Return how candidates were ordered, for people."""
    if model.family == "tiny":
        return "how many names its pictures show, as `fewstep eval` measured it on this model"
    return (
        "this rule: half of a mode's usual steps or more; then base before distilled modes; then more steps; "
        "then the model's own VAE"
    )


def step_counts(recipe: Recipe, model: Model) -> tuple[int, ...]:
    """Return the numbers of steps to choose from: those measured, or up to what a mode usually takes."""
    if model.family == "tiny":
        return tuple(steps for mode, steps in TINY_NAME_1 if mode == recipe.mode)
    most = recipe.steps.default if recipe.mode == "base" else recipe.steps.high
    return tuple(steps for steps in recipe.counts() if steps <= most)


def local_modes(model: Model) -> list[str]:
    """Return the modes whose weights for a model are on this machine; of a user's model its own and LoRAs."""
    return [mode for mode in dict.fromkeys(("base", *modes_for(model.family))) if _is_here(mode, model)]


def _is_here(mode: str, model: Model) -> bool:
    try:
        described, recipe = choose_mode(model.name, mode)
        weights = mode_weights.choose_weights(described, recipe, "")
    except FewstepError:
        return False
    if model.foreign:
        return mode == model.default_mode or (
            weights is not None and weights.attach == "adapter" and _cached(mode, model)
        )
    return mode == "base" or _cached(mode, model)


def _cached(mode: str, model: Model) -> bool:
    """Return whether any of a mode's files for this family is bundled or in the hub's cache."""
    files = [asset for asset in ASSETS.values() if asset.family == model.family and mode in asset.modes]
    return any(
        not asset.repo or hub.cached_folder(asset.repo, asset.files, asset.revision) is not None
        for asset in files
    )


def tiny_vae_is_here(model: Model) -> bool:
    """Return whether vae="tiny" needs no download."""
    asset = vae_asset("tiny", model.family)
    return asset is not None and (
        not asset.repo or hub.cached_folder(asset.repo, asset.files, asset.revision) is not None
    )
