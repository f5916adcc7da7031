"""Options → `Job`: the one door. All is completed and checked; what cannot be done is refused."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fewstep import prompts, values
from fewstep.errors import RequestError
from fewstep.files.noise import SILENT, Noise
from fewstep.images.canvas import Canvas
from fewstep.noise_process import Edm, signal_of
from fewstep.prompts import Prompt
from fewstep.recipe import Recipe
from fewstep.request import inputs, limits
from fewstep.request.options import ALIASES, OPTIONS, PictureOptions, Prompts
from fewstep.request.pictures import NO_PICTURES, PICTURE_OPTIONS, open_pictures
from fewstep.request.schema import MAX_PICTURES, Job, Plan, Request
from fewstep.schedulers import PRESERVING, Schedule, explicit, leading

if TYPE_CHECKING:
    from fewstep.catalog.models import Model


LISTS = ("loras", "control", "reference")  # empty ones are as if they were not given
SEED_LIMIT = 2**64
# Options of a picture that are one number or one name, and fields of a request by the same name.
_SCALARS = {
    "guidance": float, "guidance_rescale": float, "strength": float, "eta": float,
    "width": int, "height": int, "scheduler": str, "sampler": str, "long_prompt": str, "padding": int,
}  # fmt: skip
STEPS_ADVICE = "give a whole number from 1 to 1000"


def resolve_job(
    model: Model, recipe: Recipe, prompt: Prompts, steps: int | None, options: PictureOptions
) -> Job:
    """Return the job: options completed and checked, given pictures opened; nothing is computed.

    Raises `RequestError`.
    """
    _check_option_names(options)
    overrides: dict[str, Any] = {
        name: value
        for name, value in options.items()
        if value is not None and not (name in LISTS and isinstance(value, tuple) and not value)
    }
    overrides |= {
        name: _plain(name, v) for name, v in overrides.items() if type(v) is not _SCALARS.get(name, type(v))
    }
    typed = {"width", "height"} & overrides.keys()
    pictures = open_pictures(overrides, model.size) if PICTURE_OPTIONS & overrides.keys() else NO_PICTURES
    limits.check_images(bool(pictures.images), bool(pictures.masks), overrides)
    prompt_2, count = overrides.pop("prompt_2", None), checked_count(overrides.pop("count", 1))
    texts = tuple(text for text in prompts.parse_prompts(prompt, prompt_2) for _ in range(count))
    negative = prompts.parse_negative_prompt(overrides.pop("negative_prompt", ""))
    defaults = {
        "model": model.name,
        "width": model.size,
        "height": model.size,
        **pictures.sides,
        "strength": 1.0 if not pictures.images or "timesteps" in overrides else 0.6,
        "prompts": tuple(text.name for text in texts),
        "prompts_2": () if prompt_2 is None else tuple(t.second for t in texts if isinstance(t, Prompt)),
        "negative_prompt": negative.name,
        "loras": inputs.parse_loras(overrides.pop("loras"), recipe.style_scale)
        if "loras" in overrides
        else (),
        "control": pictures.control_scales,
        "reference": pictures.reference_scales,
    }
    request = complete_request(recipe, steps, defaults | overrides, model.noise.spacing)
    size = (request.width, request.height)
    limits.check_request(request, recipe, None if size == pictures.free_size or request.tiles else model.size)
    job = Job(
        plan=make_plan(request, recipe, model.noise, model.doubts),
        prompts=texts,
        negative=negative,
        canvas=Canvas(size=size, inner=size, outer=size),
    )
    return job if pictures is NO_PICTURES else pictures.add_to(job, model.size, typed)


def complete_request(
    recipe: Recipe, steps: int | None, overrides: Mapping[str, Any], spacing: str = ""
) -> Request:
    """Fill what is not given from the recipe, and check every type and bound.

    `spacing` is the scheduler that the model's files name.
    """
    follows_files = recipe.own_spacing and spacing in recipe.schedulers
    fields: dict[str, Any] = {
        "mode": recipe.mode,
        "guidance": recipe.guidance.default,
        "scheduler": spacing if follows_files else recipe.schedulers[0],
        "sampler": recipe.samplers[0],
        **overrides,
        "timesteps": _checked_timesteps(overrides["timesteps"]) if "timesteps" in overrides else (),
    }
    step_count = steps if type(steps) is int else values.whole(steps)
    fields["steps"] = _checked_steps(step_count, fields["timesteps"], recipe)
    fields["seeds"] = picture_seeds(fields.pop("seed", None), len(fields["prompts"]))
    fields |= {
        name: _plain(name, v) for name, v in fields.items() if type(v) is not _SCALARS.get(name, type(v))
    }
    has_sampler = fields["sampler"] in recipe.samplers  # one that is not will be refused below
    fields.setdefault("eta", recipe.sampler(fields["sampler"]).eta if has_sampler else 0.0)
    try:
        return Request(**fields)
    except ValidationError as error:
        problem = error.errors()[0]
        raise _refusal(str(problem["loc"][0]), problem["input"]) from None


def _plain(name: str, value: object) -> object:
    """Return one number or name in plain Python; raises `RequestError` for what is of another type."""
    converted = OPTIONS[name].plain(value)
    if type(converted) not in (int, float, str):
        raise _refusal(name, value)
    return converted


def _refusal(name: str, value: object) -> RequestError:
    allowed = STEPS_ADVICE if name == "steps" else OPTIONS[name].advice
    hint = values.whole_advice(name, value) if name in ("steps", "width", "height") else ""
    return RequestError(f"{name}={values.shown(value, 200)}: {allowed}{hint}")


def make_plan(request: Request, recipe: Recipe, noise: Noise = SILENT, doubts: tuple[str, ...] = ()) -> Plan:
    """Return a request's noise levels, and what its numbers mean; `doubts` are of its model."""
    schedule = _levels(request, recipe, noise)
    return Plan(
        request=request,
        schedule=schedule,
        start=_start(request, recipe, schedule),
        guidance=_guidance_meaning(request, recipe),
        warnings=(*doubts, *noise.notes, *_plan_warnings(request, recipe, schedule)),
    )


def _levels(request: Request, recipe: Recipe, noise: Noise) -> Schedule:
    if request.timesteps:
        return explicit(request.timesteps, noise.process)
    if recipe.own_spacing and request.scheduler == noise.spacing == "leading":
        return leading(request.steps, request.strength, noise.process, noise.offset)
    return recipe.schedule(request.scheduler, request.steps, request.strength, noise.process)


def _start(request: Request, recipe: Recipe, schedule: Schedule) -> float:
    """Return the deviation of the first noise: of VP samplers and some schedulers, with the picture's."""
    sigma = schedule.sigmas[0]
    scheduler, process = recipe.scheduler(request.scheduler), schedule.process
    # diffusers' EDM schedulers have init_noise_sigma = sqrt(sigma_max^2 + 1)
    preserving = (
        recipe.sampler(request.sampler).preserving or scheduler in PRESERVING or isinstance(process, Edm)
    )
    return math.hypot(1, sigma) if preserving and signal_of(sigma) == 1 else float(sigma)


def _check_option_names(options: PictureOptions) -> None:
    names = list(PictureOptions.__annotations__)
    for name in options:
        if name not in names:
            matches = [ALIASES[name]] if name in ALIASES else get_close_matches(name, names, n=1)
            hint = f"did you mean {matches[0]}?" if matches else f"choose from {', '.join(names)}"
            raise RequestError(f"{name}= is not an option: {hint}")


def checked_count(count: object) -> int:
    """Return how many pictures are drawn per prompt; raises `RequestError`."""
    number: Any = count if type(count) is int else OPTIONS["count"].plain(count)
    if type(number) is not int or not 1 <= number <= MAX_PICTURES:
        hint = values.whole_advice("count", count)
        raise RequestError(f"count={values.shown(count)}: give a whole number from 1 to {MAX_PICTURES}{hint}")
    return number


def _checked_timesteps(timesteps: object) -> tuple[Any, ...]:
    listed = values.members(timesteps)
    if listed is None:
        raise RequestError(
            f"timesteps={values.shown(timesteps)}: give a list, for example [999, 749, 499, 249]"
        )
    return tuple(map(values.whole, listed))


def _checked_steps(steps: int | None, timesteps: tuple[int, ...], recipe: Recipe) -> int:
    if steps is None:
        return len(timesteps) or recipe.steps.default
    if timesteps and steps != len(timesteps):
        raise RequestError(f"steps={steps} but timesteps has {len(timesteps)} entries: leave steps out")
    return steps


def picture_seeds(seed: Any, pictures: int) -> tuple[int, ...]:
    """Return one seed per picture: drawn, counted up from one seed, or as listed; raises `RequestError`."""
    if seed is None:
        seed = secrets.randbelow(2**32)  # short enough to type
    first_seed = seed if type(seed) is int else values.whole(seed)
    if type(first_seed) is int:
        seeds: tuple[Any, ...] = tuple(range(first_seed, first_seed + pictures))
    else:
        listed = values.members(seed)
        seeds = (seed,) if listed is None else tuple(map(values.whole, listed))
        if listed is not None and len(seeds) != pictures:
            raise RequestError(
                f"seed lists {len(seeds)} seeds for {pictures} pictures: give one seed, or {pictures}"
            )
    for value in seeds:
        if type(value) is not int or not 0 <= value < SEED_LIMIT:
            negative_hint = "; to have one drawn, leave seed out" if type(value) is int and value < 0 else ""
            hint = values.whole_advice("seed", value)
            raise RequestError(
                f"seed={values.shown(value)}: give whole numbers from 0 to 2**64 - 1; picture i uses seed + i"
                f"{negative_hint}{hint}"
            )
    return seeds


def _guidance_meaning(request: Request, recipe: Recipe) -> str:
    match recipe.guidance.kind:
        case "none":
            return "none: distilled into the weights"
        case "embedded":
            return f"embedded: the UNet is told w = {request.guidance - 1:g}"
    if request.guidance <= 1:
        return "off: one UNet evaluation a step"
    return f"classifier-free, scale {request.guidance:g}: two UNet evaluations a step"


def _plan_warnings(request: Request, recipe: Recipe, schedule: Schedule) -> tuple[str, ...]:
    sentences = list(prompts.foreign_syntax((*request.prompts, *request.prompts_2, request.negative_prompt)))
    start = schedule.timesteps[0]
    intended = request.scheduler in recipe.own_schedulers and not request.timesteps  # made for such a start
    if request.strength == 1 and start < 900 and not intended:
        sentences.append(
            f"the first timestep is {start:g}, far from pure noise (999): expect a washed-out picture; "
            "scheduler='trailing' starts at 999"
        )
    return tuple(sentences)
