"""Options → `Job`: the one door. All is completed and checked; what cannot be done is refused."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fewstep import prompts
from fewstep.errors import RequestError
from fewstep.prompts import Prompt
from fewstep.recipe import Recipe
from fewstep.request import inputs, limits
from fewstep.request.options import ALIASES, OPTIONS, PictureOptions, Prompts
from fewstep.request.schema import MAX_PICTURES, Job, Plan, Request
from fewstep.schedulers import Schedule, explicit, leading

if TYPE_CHECKING:
    from PIL.Image import Image

    from fewstep.catalog.models import Model


SEED_LIMIT = 2**64
STEPS_ADVICE = "give a whole number from 1 to 1000"


def resolve_job(
    about: Model, recipe: Recipe, prompt: Prompts, steps: int | None, options: PictureOptions
) -> Job:
    """Options → job: all is completed and checked and the pictures are opened; nothing is computed."""
    _check_option_names(options)
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    image, mask = (_open_given(given.pop(name, None), name) for name in ("image", "mask"))
    limits.check_images(image, mask, given.get("strength"))
    control, control_images = inputs.parse_guides(given.pop("control", ()), "control")
    reference, reference_images = inputs.parse_guides(given.pop("reference", ()), "reference")
    second, count = given.pop("prompt_2", None), _checked_count(given.pop("count", 1))
    told = tuple(one for one in prompts.parse_prompts(prompt, second) for _ in range(count))
    against = prompts.parse_negative_prompt(given.pop("negative_prompt", ""))
    side = (about.size, about.size)
    defaults = {
        "model": about.name,
        **dict(zip(("width", "height"), side if image is None else image.size, strict=True)),
        "strength": 1.0 if image is None or "timesteps" in given else 0.6,
        "prompts": tuple(one.name for one in told),
        "prompts_2": () if second is None else tuple(one.second for one in told if isinstance(one, Prompt)),
        "negative_prompt": against.name,
        "loras": inputs.parse_loras(given.pop("loras", ()), recipe.style_scale),
        "control": control,
        "reference": reference,
    }
    request = complete_request(recipe, steps, defaults | given)
    limits.check_request(request, recipe, about.size)
    return Job(
        plan=make_plan(request, recipe),
        prompts=told,
        negative=against,
        image=_fit_given(image, request, "image"),
        mask=_fit_given(mask, request, "mask"),
        control=inputs.fit_control_images(control_images, (request.width, request.height)),
        reference=reference_images,
    )


def complete_request(recipe: Recipe, steps: int | None, given: Mapping[str, Any]) -> Request:
    """Fill what is not given from the recipe, and check every type and bound."""
    fields: dict[str, Any] = {
        "mode": recipe.mode,
        "guidance": recipe.guidance.default,
        "scheduler": recipe.schedulers[0],
        "sampler": recipe.samplers[0],
        **given,
        "timesteps": _checked_timesteps(given.get("timesteps", ())),
    }
    fields["steps"] = _checked_steps(steps, fields["timesteps"], recipe)
    fields["seeds"] = _picture_seeds(fields.pop("seed", None), len(fields["prompts"]))
    known = fields["sampler"] in recipe.samplers  # one that is not will be refused below
    fields.setdefault("eta", recipe.sampler(fields["sampler"]).eta if known else 0.0)
    for key in ("guidance", "guidance_rescale", "strength", "eta"):
        if key in fields:
            fields[key] = _as_float(fields[key])
    try:
        return Request(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        allowed = STEPS_ADVICE if name == "steps" else OPTIONS[name].advice
        raise RequestError(f"{name}={first['input']!r:.200}: {allowed}") from None


def make_plan(request: Request, recipe: Recipe) -> Plan:
    """The noise levels of a request, and what its numbers mean."""
    schedule = (
        explicit(request.timesteps)
        if request.timesteps
        else recipe.schedule(request.scheduler, request.steps, request.strength)
    )
    return Plan(
        request=request,
        schedule=schedule,
        start=_start_deviation(schedule.sigmas[0], request, recipe),
        guidance=_guidance_meaning(request, recipe),
        warnings=_warnings(request, recipe, schedule),
    )


def _start_deviation(sigma: float, request: Request, recipe: Recipe) -> float:
    """Standard deviation of the first x: sigma, or sqrt(1 + sigma^2) as VP samplers and `leading` start."""
    from_leading = recipe.scheduler(request.scheduler) is leading
    preserving = recipe.sampler(request.sampler).preserving or from_leading
    return math.hypot(1, sigma) if preserving else sigma


def _open_given(given: Any, name: str) -> Image | None:
    if given is None:
        return None
    from fewstep.images import open_image

    return open_image(given, name)


def _fit_given(image: Image | None, request: Request, name: str) -> Image | None:
    if image is None:
        return None
    from fewstep.images import fit_image

    return fit_image(image, (request.width, request.height), name)


def _check_option_names(options: PictureOptions) -> None:
    known = list(PictureOptions.__annotations__)
    for name in options:
        if name not in known:
            near = [ALIASES[name]] if name in ALIASES else get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
            raise RequestError(f"{name}= is not an option: {hint}")


def _checked_count(count: object) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_PICTURES:
        raise RequestError(f"count={count!r}: give a whole number from 1 to {MAX_PICTURES}")
    return count


def _checked_timesteps(timesteps: object) -> tuple[Any, ...]:
    if isinstance(timesteps, str) or not isinstance(timesteps, Sequence):
        raise RequestError(f"timesteps={timesteps!r}: give a list, for example [999, 749, 499, 249]")
    return tuple(timesteps)


def _checked_steps(steps: int | None, timesteps: tuple[int, ...], recipe: Recipe) -> int:
    if steps is None:
        return len(timesteps) or recipe.steps.default
    if timesteps and steps != len(timesteps):
        raise RequestError(f"steps={steps} but timesteps has {len(timesteps)} entries: leave steps out")
    return steps


def _picture_seeds(seed: Any, pictures: int) -> tuple[int, ...]:
    """One seed per picture: drawn, counted up from one seed, or as listed."""
    if seed is None:
        seed = secrets.randbelow(2**32)  # short enough to type
    if isinstance(seed, int):
        seeds: tuple[int, ...] = (seed,) if isinstance(seed, bool) else tuple(range(seed, seed + pictures))
    else:
        seeds = tuple(seed) if isinstance(seed, Sequence) and not isinstance(seed, str) else (seed,)
        if len(seeds) != pictures and isinstance(seed, Sequence):
            raise RequestError(
                f"seed lists {len(seeds)} seeds for {pictures} pictures: give one seed, or {pictures}"
            )
    for s in seeds:
        if not isinstance(s, int) or isinstance(s, bool) or not 0 <= s < SEED_LIMIT:
            raise RequestError(f"seed={s!r}: give whole numbers from 0 to 2**64 - 1; picture i uses seed + i")
    return seeds


def _as_float(value: object) -> object:
    """Whole numbers are welcome where a float is meant; booleans are not."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    return float(value) if whole else value  # type: ignore[arg-type]


def _guidance_meaning(request: Request, recipe: Recipe) -> str:
    match recipe.guidance.kind:
        case "none":
            return "none: distilled into the weights"
        case "embedded":
            return f"embedded: the UNet is told w = {request.guidance - 1:g}"
    if request.guidance == 1:
        return "off: one UNet evaluation a step"
    return f"classifier-free, scale {request.guidance:g}: two UNet evaluations a step"


def _warnings(request: Request, recipe: Recipe, schedule: Schedule) -> tuple[str, ...]:
    first = schedule.timesteps[0]
    meant = request.scheduler in recipe.own_schedulers and not request.timesteps  # made for such a start
    if request.strength == 1 and first < 900 and not meant:
        return (
            f"the first timestep is {first:g}, far from pure noise (999): expect a washed-out picture; "
            "scheduler='trailing' starts at 999",
        )
    return ()
