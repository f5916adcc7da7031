"""What is wrong with a recipe as data. Its own schedulers and samplers are run by `fewstep.testing`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from fewstep.errors import describe_error
from fewstep.noise_process import PREDICTIONS
from fewstep.recipe import Guidance, Recipe, Steps, Weights
from fewstep.samplers import SAMPLERS, Sampler
from fewstep.schedulers import SCHEDULERS

MAX_STEPS, MAX_GUIDANCE = 1000, 100.0  # a `Request` takes no more
GUIDANCE_KINDS = ("none", "embedded", "cfg")
ATTACHMENTS = ("checkpoint", "unet", "adapter")
_FIXED = ("mode", "weights", "overrides", "own_schedulers", "own_samplers")  # the same on every model
_TYPES: dict[str, type] = {
    "mode": str, "title": str, "schedulers": tuple, "samplers": tuple, "steps": Steps, "guidance": Guidance,
    "licence": str, "source": str, "weights": Mapping, "prediction": str, "overrides": Mapping,
    "own_schedulers": Mapping, "own_samplers": Mapping, "as_adapter": str,
}  # fmt: skip


def recipe_faults(recipe: object) -> list[str]:
    """Everything wrong with it, on every model family that it names; [] is sound."""
    if not isinstance(recipe, Recipe):
        return [f"{recipe!r} is not a fewstep.Recipe"]
    try:
        faults = [*_type_faults(recipe)] or [*_value_faults(recipe), *_family_faults(recipe)]
    except Exception as error:  # a type deeper inside is not what it should be
        faults = [f"it cannot be read ({describe_error(error)})"]
    return list(dict.fromkeys(faults))


def _type_faults(recipe: Recipe) -> Iterator[str]:
    for name, kind in _TYPES.items():
        value = getattr(recipe, name)
        if not isinstance(value, kind):
            yield f"{name}={value!r} should be a {kind.__name__}"


def _value_faults(recipe: Recipe) -> Iterator[str]:
    if not recipe.mode:
        yield "mode is empty"
    yield from _name_faults("scheduler", recipe.schedulers, {*SCHEDULERS, *recipe.own_schedulers})
    yield from _name_faults("sampler", recipe.samplers, {*SAMPLERS, *recipe.own_samplers})
    yield from _steps_faults(recipe.steps)
    yield from _guidance_faults(recipe.guidance)
    if recipe.prediction not in ("", *PREDICTIONS):
        yield f"prediction={recipe.prediction!r} should be one of {', '.join(PREDICTIONS)}, or empty"
    if not _is_number(recipe.style_scale) or recipe.style_scale < 0:
        yield f"style_scale={recipe.style_scale!r} should be a number, 0 or more"
    for family, weights in recipe.weights.items():
        yield from [*_weights_faults(family, weights)] or _file_faults(family, weights, recipe.steps)
    for name, scheduler in recipe.own_schedulers.items():
        if not callable(scheduler):
            yield f"own_schedulers[{name!r}] should be a function (steps, strength) -> Schedule"
    for name, sampler in recipe.own_samplers.items():
        yield from _sampler_faults(name, sampler)


def _family_faults(recipe: Recipe) -> Iterator[str]:
    """What is wrong only where a model family changes something."""
    free = [field.name for field in fields(Recipe) if field.name not in _FIXED]
    for family, changes in recipe.overrides.items():
        odd = [name for name in changes if name not in free]
        if odd:
            yield f"overrides[{family!r}] changes {odd[0]!r}; it may change {', '.join(free)}"
            continue
        family_recipe = recipe.on(family)
        yield from (
            f"on {family}: {fault}"
            for fault in [*_type_faults(family_recipe)] or _value_faults(family_recipe)
        )


def _name_faults(kind: str, names: tuple[Any, ...], known_names: set[str]) -> Iterator[str]:
    if not names:
        yield f"{kind}s is empty; the first is the default"
    for name in names:
        if name not in known_names:
            yield (
                f"{kind} {name!r} is unknown: it is neither in own_{kind}s nor one of "
                f"{', '.join(known_names)}"
            )


def _steps_faults(steps: Steps) -> Iterator[str]:
    counts, only = (steps.low, steps.default, steps.high), steps.only
    if not all(type(n) is int for n in counts) or not _is_rising(1, *counts, MAX_STEPS):
        yield f"{steps} should be whole numbers, 1 <= low <= default <= high <= {MAX_STEPS}"
    elif only and (list(only) != sorted({*only, *counts}) or (only[0], only[-1]) != counts[::2]):
        yield f"{steps} should have `only` rise from low to high, with the default in it"


def _guidance_faults(guidance: Guidance) -> Iterator[str]:
    if guidance.kind not in GUIDANCE_KINDS:
        yield f"guidance kind {guidance.kind!r} should be one of {', '.join(GUIDANCE_KINDS)}"
    scales = (guidance.low, guidance.default, guidance.high)
    if guidance.kind == "none" and scales != (1, 1, 1):
        yield f"guidance of kind 'none' has no scale, but {scales} is given"
    elif not all(_is_number(g) for g in scales) or not _is_rising(1, *scales, MAX_GUIDANCE):
        yield f"{guidance} should have 1 <= low <= default <= high <= {MAX_GUIDANCE:g}; 1 is off"


def _weights_faults(family: str, weights: object) -> Iterator[str]:
    if not isinstance(weights, Weights):
        yield f"weights[{family!r}]={weights!r} should be a Weights"
    elif weights.attach not in ATTACHMENTS:
        yield f"weights[{family!r}] attach {weights.attach!r}; should be one of {', '.join(ATTACHMENTS)}"
    elif not isinstance(weights.source, str) or not (weights.source or weights.attach == "checkpoint"):
        yield f"weights[{family!r}] need a source: a hub id, or a folder inside the model's"


def _file_faults(family: str, weights: Weights, steps: Steps) -> Iterator[str]:
    """What is wrong between the weights and the number of steps they are for."""
    if ("{steps}" in weights.file) != bool(steps.only):
        yield f"weights[{family!r}] file={weights.file!r} should hold {{steps}} where steps have `only`"
    if not _is_number(weights.scale) or weights.scale <= 0:
        yield f"weights[{family!r}] scale={weights.scale!r} should be a number above 0"


def _sampler_faults(name: str, sampler: object) -> Iterator[str]:
    if not isinstance(sampler, Sampler) or not callable(sampler.steps):
        yield f"own_samplers[{name!r}]={sampler!r} should be Sampler(steps=a step rule)"
    elif type(sampler.draws) is not int or sampler.draws < 0:
        yield f"own_samplers[{name!r}] has draws={sampler.draws!r}; it should count draws of noise per step"
    elif not _is_number(sampler.eta) or not 0 <= sampler.eta <= 1:
        yield f"own_samplers[{name!r}] has eta={sampler.eta!r}; it should be in [0, 1]"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rising(*values: float) -> bool:
    return list(values) == sorted(values)
