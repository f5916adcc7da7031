"""The rules of a mode, and whether a recipe keeps them: its data, its noise levels, its step rules.

Levels are tried at every legal number of steps. Step rules run with NumPy arrays as latents: a
sampler needs arithmetic only, so that what holds for an array holds for a tensor. The
denoiser knows one picture and always finds it; then all that the latents hold beside that
picture is noise, and its deviation after each step must be the level of that step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np

from fewstep.errors import RequestError, describe_error
from fewstep.modes.validate import recipe_faults
from fewstep.noise_process import TRAIN_STEPS, timestep_of
from fewstep.recipe import Recipe
from fewstep.samplers import Sampler
from fewstep.schedulers import Schedule

Array = np.ndarray[Any, np.dtype[np.float64]]

STRENGTHS = (1.0, 0.6, 0.3, 0.05)
ETAS = (0.0, 0.5, 1.0)
PICTURE = 0.5  # the one that the denoiser knows
PIXELS = 1024  # a deviation measured on so many is right within 10 %
FAIR = (0.8, 1.25)  # of measured to promised deviation
LEFT = 0.05  # deviation that may be left at the end; TCD ends at sigma(0) = 0.029


def check_backend(recipe: Recipe) -> None:
    """Hold a mode to the rules; `AssertionError` lists those it breaks."""
    faults = problems(recipe)
    if faults:
        raise AssertionError(
            "\n- ".join([f"mode {getattr(recipe, 'mode', recipe)!r} breaks rules:", *faults])
        )


def problems(recipe: Recipe) -> list[str]:
    """The rules that a mode breaks, a sentence each, on every model family that it names.

    Of each scheduler and sampler the first call that breaks any is told.
    """
    faults = recipe_faults(recipe)
    if not faults:
        for family_recipe in map(recipe.on, ("", *recipe.overrides)):
            for name in family_recipe.schedulers:
                faults += _scheduler_faults(name, family_recipe)
            for name in family_recipe.samplers:
                faults += _sampler_faults(name, family_recipe)
    return list(dict.fromkeys(faults))


def _scheduler_faults(name: str, recipe: Recipe) -> list[str]:
    for strength in STRENGTHS:
        for steps in range(recipe.steps.low, recipe.steps.high + 1):
            is_default = name == recipe.schedulers[0] and steps == recipe.steps.default and strength == 1
            faults = [*_level_faults(recipe.scheduler(name), steps, strength, must=is_default)]
            if faults:
                return [
                    f"scheduler {name!r} at steps={steps}, strength={strength:g}: {fault}" for fault in faults
                ]
    return []


def _level_faults(scheduler: Callable[..., Any], steps: int, strength: float, *, must: bool) -> Iterator[str]:
    """What is wrong with the levels of one call, which may be refused unless it `must` not."""
    try:
        levels, levels_again = scheduler(steps, strength), scheduler(steps, strength)
    except RequestError as error:
        if must:
            yield f"it should run at the mode's defaults, but refuses: {error}"
        if len(str(error).splitlines()) != 1:
            yield "its RequestError should say in one line what can be done"
        return
    except Exception as error:
        yield f"it should give a Schedule or raise RequestError, not {describe_error(error)}"
        return
    if not isinstance(levels, Schedule):
        yield f"it should give a Schedule, not {type(levels).__name__}"
        return
    if levels != levels_again:
        yield "equal calls should give equal levels"
    timesteps, sigmas = levels.timesteps, levels.sigmas
    if (len(timesteps), len(sigmas)) != (steps, steps + 1):
        yield f"it should give {steps} timesteps and {steps + 1} sigmas: {levels}"
    elif sigmas[-1] != 0 or not (_is_falling(timesteps) and _is_falling(sigmas)):
        yield f"timesteps and sigmas should fall, the last sigma to 0: {levels}"
    elif not 0 <= timesteps[-1] <= timesteps[0] < TRAIN_STEPS:
        yield f"timesteps should be in [0, {TRAIN_STEPS - 1}]: {timesteps}"
    elif any(abs(timestep_of(s) - t) > 1 for t, s in zip(timesteps, sigmas[:-1], strict=True)):
        yield f"sigmas should be those of the timesteps, as fewstep.schedulers.explicit makes them: {levels}"
    elif timesteps[0] > TRAIN_STEPS * strength:
        yield f"the first timestep should be at most {TRAIN_STEPS * strength:g} there, not {timesteps[0]:g}"


def _sampler_faults(name: str, recipe: Recipe) -> list[str]:
    sampler = recipe.sampler(name)
    for schedule in _sound_schedules(recipe):
        for eta in ETAS if sampler.tunable else (sampler.eta,):
            faults = [*_run_faults(sampler, schedule, eta)]
            if faults:
                return [
                    f"sampler {name!r} at steps={schedule.steps}, eta={eta:g}: {fault}" for fault in faults
                ]
    return []


def _sound_schedules(recipe: Recipe) -> Iterator[Schedule]:
    """Levels for step rules to run on: those of the recipe that are sound."""
    for scheduler in map(recipe.scheduler, recipe.schedulers):
        for steps in sorted({recipe.steps.low, recipe.steps.default, recipe.steps.high}):
            if not any(_level_faults(scheduler, steps, 1.0, must=True)):
                yield scheduler(steps, 1.0)


def _run_faults(sampler: Sampler, schedule: Schedule, eta: float) -> Iterator[str]:
    """What is wrong with one run of a step rule."""
    start, *noise = np.random.default_rng(0).standard_normal((1 + sampler.draws * schedule.steps, PIXELS))
    x = PICTURE + schedule.sigmas[0] * start
    copies = [array.copy() for array in (x, *noise)]
    try:
        path, path_again = (_run_step_rule(sampler, x, schedule, noise, eta) for _ in range(2))
    except IndexError:
        yield f"it reads past its levels, or takes more noise than its draws={sampler.draws} a step"
        return
    except Exception as error:
        yield f"it should need arithmetic only, but raises {describe_error(error)}"
        return
    if not np.array_equal(copies, [x, *noise]):
        yield "it should leave the latents and the noise that it is given as they are"
    if not np.array_equal(path, path_again):
        yield "equal runs should give equal latents"
    if len(path) != schedule.steps:
        many = len(path) if len(path) < schedule.steps else "more"
        yield f"it should yield once a step, {schedule.steps} times, not {many}"
    else:
        yield from _path_faults(path, schedule)


def _run_step_rule(
    sampler: Sampler, x: Array, schedule: Schedule, noise: Sequence[Array], eta: float
) -> list[tuple[Array, Array]]:
    """(x, x0) after each step, one too many where there are more."""

    def denoise(x: Array, sigma: float) -> Array:
        if not 0 < float(sigma) < math.inf:
            raise ValueError(f"denoise(x, {sigma!r}), where sigma should be above 0")
        return np.full_like(x, PICTURE)

    rule: Any = sampler.steps  # of tensors, as typed; it cannot tell
    stepping = rule(denoise, x, schedule, noise, eta)
    if not isinstance(stepping, Iterator):
        raise TypeError(f"{type(stepping).__name__} came back, where a generator should yield (x, x0)")
    return [(x.copy(), x0.copy()) for x, x0 in islice(stepping, schedule.steps + 1)]


def _path_faults(path: Sequence[tuple[Array, Array]], schedule: Schedule) -> Iterator[str]:
    """Latents should hold as much noise as their level says, and in the end the picture."""
    for index, ((x, _), sigma) in enumerate(zip(path[:-1], schedule.sigmas[1:-1], strict=True), start=1):
        ratio = _noise_left(x) / sigma
        if not FAIR[0] < ratio < FAIR[1]:
            yield f"after step {index} the noise is {ratio:.2g} times its level, sigma={sigma:.3g}"
            return
    x, x0 = path[-1]
    if not (_noise_left(x) < LEFT and _noise_left(x0) < LEFT):
        left = max(map(_noise_left, (x, x0)))
        yield f"the last x and x0 should be the picture, but noise of {left:.2g} is left"


def _noise_left(x: Array) -> float:
    """Root mean square of what is not the picture."""
    return float(np.sqrt(np.mean((x - PICTURE) ** 2)))


def _is_falling(values: Sequence[float]) -> bool:
    return all(a > b for a, b in pairwise(values))
