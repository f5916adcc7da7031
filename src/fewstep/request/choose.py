"""Which engine serves a call, and what it is to draw: names → model, recipe and weights, before torch is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Unpack, cast

from fewstep import inspection, modes
from fewstep.catalog import addons, licences, mode_weights, vaes
from fewstep.catalog.models import Model
from fewstep.errors import RequestError
from fewstep.recipe import Recipe
from fewstep.request import inputs, limits
from fewstep.request.options import (
    ENGINE_DEFAULTS,
    EngineOptions,
    File,
    GenerateOptions,
    PictureOptions,
    Prompts,
)
from fewstep.request.resolve import resolve_job
from fewstep.request.schema import EngineKey, Job, Request


def _choose_mode(model: File, mode: str | None, steps: int | None) -> tuple[Model, Recipe]:
    """The model, and the recipe of the mode, which a file or folder of the user's may itself tell."""
    about, recipe = modes.choose_mode(model, mode, steps)
    if mode is not None or not about.foreign or recipe.mode != "base":
        return about, recipe
    found = inspection.inspect(about.source) if about.local else None
    if found is not None and found.mode:
        return (about, recipe) if found.mode == recipe.mode else modes.choose_mode(model, found.mode, steps)
    told = inspection.name_doubt(Path(about.name).stem if about.local else about.name)
    if found is not None and found.modes:
        told = found.notes[-1]
    if told:
        raise RequestError(f"model={about.name!r}: {told}")
    return about, recipe


def _count_steps(steps: int | None, options: PictureOptions) -> int | None:
    """The number of steps, as far as it is said; a list of timesteps says it too."""
    levels = options.get("timesteps")
    return len(levels) if steps is None and isinstance(levels, list | tuple) and levels else steps


class EngineChoice(NamedTuple):
    """Which engine serves a call."""

    key: EngineKey
    about: Model
    recipe: Recipe


def resolve_generate(
    prompt: Prompts, steps: int | None, mode: str | None, **how: Unpack[GenerateOptions]
) -> tuple[EngineChoice, Job]:
    """Which engine, and what for: everything is checked here, before torch is imported."""
    place = cast(
        EngineOptions, {name: value for name, value in how.items() if name in EngineOptions.__annotations__}
    )
    options = cast(PictureOptions, {name: value for name, value in how.items() if name not in place})
    wanted = resolve_engine(mode, _count_steps(steps, options), place)
    commercial = place.get("commercial", False)
    return wanted, resolve_call(wanted.about, wanted.recipe, prompt, steps, options, commercial)


def resolve_engine(mode: str | None, steps: int | None, place: EngineOptions) -> EngineChoice:
    """Completed, and checked as far as names and configuration files tell."""
    place = {**ENGINE_DEFAULTS, **place}
    limits.check_engine_names(place["device"], place["precision"], place["offload"])
    about, recipe = _choose_mode(place["model"], mode, steps)
    own = mode_weights.choose_weights(about, recipe, place["accelerator"])
    if place["revision"] != "":
        mode_weights.check_revision(place["revision"], about, own)
        about = replace(about, revision=place["revision"])
    vaes.check_vae(place["vae"], about)
    words = inputs.parse_files(place["embeddings"], "embeddings")
    addons.check_embeddings(words, about)
    if place["commercial"]:
        licences.check_commercial(mode_weights.licences_of_mode(about, recipe, own, words, str(place["vae"])))
    key = EngineKey(
        model=str(place["model"]),
        mode=recipe.mode,
        steps=recipe.steps.high if recipe.steps.low == recipe.steps.high else 0,
        accelerator=str(place["accelerator"]),
        vae=str(place["vae"]),
        embeddings=words,
        revision=about.revision,
        device=place["device"],
        precision=place["precision"],
        offload=place["offload"],
    )
    return EngineChoice(key, about, recipe)


def resolve_call(
    about: Model,
    recipe: Recipe,
    prompt: Prompts,
    steps: int | None,
    options: PictureOptions,
    commercial: bool,
) -> Job:
    """Everything checked that needs no weights, the pictures given read; nothing is computed yet."""
    job = resolve_job(about, recipe, prompt, steps, options)
    addons.check_loras(job.request.loras, about)
    addons.check_guides(*_guide_sources(job.request))
    if commercial:
        licences.check_commercial(licences_of_call(job.request))
    return job


def licences_of_call(asked: Request) -> dict[str, str]:
    """What a call puts beside an engine's weights → its licence."""
    loras = mode_weights.licences_of_files([source for source, _ in asked.loras])
    return loras | addons.licences_of_guides(*_guide_sources(asked))


def _guide_sources(asked: Request) -> tuple[list[str], list[str]]:
    """ControlNets and IP-Adapters."""
    return [source for source, _ in asked.control], [source for source, _ in asked.reference]
