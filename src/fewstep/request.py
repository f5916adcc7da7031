"""What is asked (`Options`), completed and checked (`Request`), and what it means (`Plan`).

Defaults are filled once, here; below this door there is no None. Nothing the user gave is
changed: what cannot be done is a `RequestError` that says what can.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep import limits
from fewstep.errors import RequestError
from fewstep.recipe import Recipe
from fewstep.samplers import SAMPLERS
from fewstep.schedulers import SCHEDULERS, Schedule, explicit

if TYPE_CHECKING:
    from PIL.Image import Image

SEED_LIMIT = 2**64
PICTURES = 1024  # in one request


class Options(TypedDict, total=False):
    """What may be asked of a loaded engine beside prompt and steps; `fewstep.generate` says what each is."""

    negative_prompt: str
    guidance: float | None
    guidance_rescale: float
    seed: int | Sequence[int] | None
    count: int
    width: int | None
    height: int | None
    image: str | Path | Image | None
    mask: str | Path | Image | None
    strength: float | None
    scheduler: str | None
    sampler: str | None
    eta: float | None
    timesteps: Sequence[int] | None


class Request(BaseModel):
    """One complete order. The same for Python calls, the command line and files."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    prompts: tuple[str, ...] = Field(min_length=1, max_length=PICTURES)  # one per picture
    mode: str
    model: str
    steps: int = Field(ge=1, le=1000)
    negative_prompt: str = ""
    guidance: float = Field(ge=0, le=100)
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    seeds: tuple[int, ...]  # one per picture
    width: int = Field(ge=8, le=8192)
    height: int = Field(ge=8, le=8192)
    strength: float = Field(default=1.0, gt=0, le=1)
    scheduler: str
    sampler: str
    eta: float = Field(ge=0, le=1)
    timesteps: tuple[int, ...] = ()  # instead of the scheduler's, where given


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a request resolves to; making one needs no weights."""

    request: Request
    schedule: Schedule
    start: float  # standard deviation of the first noise
    guidance: str  # what the number means in this mode
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            **self.request.model_dump(mode="json"),
            "schedule": asdict(self.schedule),
            "guidance_meaning": self.guidance,
            "warnings": list(self.warnings),
        }


def resolve(
    model: str, size: int, recipe: Recipe, prompt: str | Sequence[str], steps: int | None, options: Options
) -> tuple[Plan, Image | None, Image | None]:
    """Options → plan, with `image` and `mask` opened. `size` is the model's own side in pixels."""
    _known(options)
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    image, mask = (_opened(given.pop(name, None), name) for name in ("image", "mask"))
    limits.check_pictures(image, mask, given.get("strength"))
    defaults = {
        "model": model,
        **dict(zip(("width", "height"), (size, size) if image is None else image.size, strict=True)),
        "strength": 1.0 if image is None or "timesteps" in given else 0.6,
    }
    request = complete(recipe, prompt, steps, defaults | given)
    limits.check(request, recipe, size)
    return plan(request, recipe), image, mask


def complete(
    recipe: Recipe, prompt: str | Sequence[str], steps: int | None, given: Mapping[str, Any]
) -> Request:
    """Fill what is not given from the recipe, and check every type and bound."""
    fields: dict[str, Any] = {
        "mode": recipe.mode,
        "guidance": recipe.guidance.default,
        "scheduler": recipe.schedulers[0],
        "sampler": recipe.samplers[0],
        **given,
        "prompts": _prompts(prompt, given.get("count", 1)),
        "timesteps": _timesteps(given.get("timesteps", ())),
    }
    fields.pop("count", None)
    fields["steps"] = _steps(steps, fields["timesteps"], recipe)
    fields["seeds"] = _seeds(fields.pop("seed", None), len(fields["prompts"]))
    rule = SAMPLERS.get(str(fields["sampler"]))
    fields.setdefault("eta", 0.0 if rule is None else rule.eta)
    for key in ("guidance", "guidance_rescale", "strength", "eta"):
        fields[key] = _number(fields.get(key, 0.0))
    try:
        return Request(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name, said = ".".join(map(str, first["loc"])), first["msg"]
        raise RequestError(f"{name}={first['input']!r}: {said[0].lower()}{said[1:]}") from None


def plan(request: Request, recipe: Recipe) -> Plan:
    """The noise levels of a request, and what its numbers mean."""
    scheduler = SCHEDULERS[request.scheduler]
    schedule = (
        explicit(request.timesteps) if request.timesteps else scheduler(request.steps, request.strength)
    )
    return Plan(
        request=request,
        schedule=schedule,
        start=start_scale(schedule.sigmas[0], request.scheduler, request.sampler),
        guidance=_meaning(request, recipe),
        warnings=_warnings(request, schedule),
    )


def start_scale(sigma: float, scheduler: str, sampler: str) -> float:
    """Standard deviation of the first x: sigma, or sqrt(1 + sigma^2) as VP samplers and "leading" start."""
    preserving = SAMPLERS[sampler].preserving or scheduler == "leading"
    return math.hypot(1, sigma) if preserving else sigma


def _opened(given: Any, name: str) -> Image | None:
    if given is None:
        return None
    from fewstep.picture import opened

    return opened(given, name)


def _known(options: Options) -> None:
    for name in options:
        if name not in Options.__annotations__:
            near = get_close_matches(name, Options.__annotations__, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(Options.__annotations__)}"
            raise RequestError(f"{name}= is not an option: {hint}")


def _prompts(prompt: str | Sequence[str], count: object) -> tuple[str, ...]:
    """One prompt per picture: each given prompt `count` times."""
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= PICTURES:
        raise RequestError(f"count={count!r}: give a whole number from 1 to {PICTURES}")
    listed = [prompt] if isinstance(prompt, str) else prompt
    prompts = tuple(listed) if isinstance(listed, Sequence) else ()
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise RequestError(f"prompt={prompt!r}: give a string or a non-empty list of strings")
    return tuple(p for p in prompts for _ in range(count))


def _timesteps(timesteps: object) -> tuple[Any, ...]:
    if isinstance(timesteps, str) or not isinstance(timesteps, Sequence):
        raise RequestError(f"timesteps={timesteps!r}: give a list, for example [999, 749, 499, 249]")
    return tuple(timesteps)


def _steps(steps: int | None, timesteps: tuple[int, ...], recipe: Recipe) -> int:
    if steps is None:
        return len(timesteps) or recipe.steps.default
    if timesteps and steps != len(timesteps):
        raise RequestError(f"steps={steps} but timesteps has {len(timesteps)} entries: leave steps out")
    return steps


def _seeds(seed: Any, pictures: int) -> tuple[int, ...]:
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


def _number(value: object) -> object:
    """Whole numbers are welcome where a float is meant; booleans are not."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _meaning(request: Request, recipe: Recipe) -> str:
    match recipe.guidance.kind:
        case "none":
            return "none: distilled into the weights"
        case "embedded":
            return f"embedded: the UNet is told w = {request.guidance - 1:g}"
    if request.guidance == 1:
        return "off: one UNet evaluation a step"
    return f"classifier-free, scale {request.guidance:g}: two UNet evaluations a step"


def _warnings(request: Request, schedule: Schedule) -> tuple[str, ...]:
    first = schedule.timesteps[0]
    if request.strength == 1 and first < 900:
        return (
            f"the first timestep is {first:g}, far from pure noise (999): expect a washed-out picture; "
            "scheduler='trailing' starts at 999",
        )
    return ()
