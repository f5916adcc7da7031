"""What is asked (`Options`), completed and checked (`Request`), and what it means (`Plan`, `Job`).

Defaults are filled once, here; below this door there is no None. Nothing the user gave is
changed: what cannot be done is a `RequestError` that says what can.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep import limits, prompts
from fewstep.errors import RequestError
from fewstep.prompts import Embedding, Prompt
from fewstep.recipe import Recipe
from fewstep.schedulers import Schedule, explicit, leading

if TYPE_CHECKING:
    from PIL.Image import Image

    from fewstep.models.catalog import Model

Prompts: TypeAlias = str | Embedding | Sequence[str | Embedding]

SEED_LIMIT = 2**64
PICTURES = 1024  # in one request


class Options(TypedDict, total=False):
    """What may be asked of a loaded engine beside prompt and steps; `fewstep.generate` says what each is."""

    prompt_2: str | Sequence[str] | None
    negative_prompt: str | Embedding
    long_prompt: str
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

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )

    prompts: tuple[str, ...] = Field(min_length=1, max_length=PICTURES)  # one per picture
    prompts_2: tuple[str, ...] = ()  # the second text encoder's, where they are others
    mode: str
    model: str
    steps: int = Field(ge=1, le=1000)
    negative_prompt: str = ""
    long_prompt: Literal["chunk", "refuse", "cut"] = "chunk"
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

    def only(self, pictures: Sequence[int]) -> Plan:
        """The plan of some of its pictures, by their places in it."""
        asked = self.request
        lists = {"prompts": asked.prompts, "prompts_2": asked.prompts_2, "seeds": asked.seeds}
        some = {name: tuple(each[i] for i in pictures) for name, each in lists.items() if each}
        return replace(self, request=asked.model_copy(update=some))


@dataclass(frozen=True, kw_only=True)
class Job:
    """A plan, and what goes into it that is not plain data."""

    plan: Plan
    prompts: tuple[Prompt | Embedding, ...]  # one per picture
    negative: Prompt | Embedding
    image: Image | None  # at the request's size, as is the mask
    mask: Image | None

    @property
    def request(self) -> Request:
        return self.plan.request


def resolve(about: Model, recipe: Recipe, prompt: Prompts, steps: int | None, options: Options) -> Job:
    """Options → job: all is completed and checked and the pictures are opened; nothing is computed."""
    _known(options)
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    image, mask = (_opened(given.pop(name, None), name) for name in ("image", "mask"))
    limits.check_pictures(image, mask, given.get("strength"))
    second, count = given.pop("prompt_2", None), _count(given.pop("count", 1))
    told = tuple(one for one in prompts.told(prompt, second) for _ in range(count))
    against = prompts.told_against(given.pop("negative_prompt", ""))
    side = (about.size, about.size)
    defaults = {
        "model": about.name,
        **dict(zip(("width", "height"), side if image is None else image.size, strict=True)),
        "strength": 1.0 if image is None or "timesteps" in given else 0.6,
        "prompts": tuple(one.name for one in told),
        "prompts_2": () if second is None else tuple(one.second for one in told if isinstance(one, Prompt)),
        "negative_prompt": against.name,
    }
    request = complete(recipe, steps, defaults | given)
    limits.check(request, recipe, about.size)
    return Job(
        plan=plan(request, recipe),
        prompts=told,
        negative=against,
        image=_fitted(image, request, "image"),
        mask=_fitted(mask, request, "mask"),
    )


def complete(recipe: Recipe, steps: int | None, given: Mapping[str, Any]) -> Request:
    """Fill what is not given from the recipe, and check every type and bound."""
    fields: dict[str, Any] = {
        "mode": recipe.mode,
        "guidance": recipe.guidance.default,
        "scheduler": recipe.schedulers[0],
        "sampler": recipe.samplers[0],
        **given,
        "timesteps": _timesteps(given.get("timesteps", ())),
    }
    fields["steps"] = _steps(steps, fields["timesteps"], recipe)
    fields["seeds"] = _seeds(fields.pop("seed", None), len(fields["prompts"]))
    known = fields["sampler"] in recipe.samplers  # one that is not will be refused below
    fields.setdefault("eta", recipe.sampler(fields["sampler"]).eta if known else 0.0)
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
    schedule = (
        explicit(request.timesteps)
        if request.timesteps
        else recipe.schedule(request.scheduler, request.steps, request.strength)
    )
    return Plan(
        request=request,
        schedule=schedule,
        start=_start(schedule.sigmas[0], request, recipe),
        guidance=_meaning(request, recipe),
        warnings=_warnings(request, schedule),
    )


def _start(sigma: float, request: Request, recipe: Recipe) -> float:
    """Standard deviation of the first x: sigma, or sqrt(1 + sigma^2) as VP samplers and `leading` start."""
    from_leading = recipe.scheduler(request.scheduler) is leading
    preserving = recipe.sampler(request.sampler).preserving or from_leading
    return math.hypot(1, sigma) if preserving else sigma


def _opened(given: Any, name: str) -> Image | None:
    if given is None:
        return None
    from fewstep.picture import opened

    return opened(given, name)


def _fitted(image: Image | None, request: Request, name: str) -> Image | None:
    if image is None:
        return None
    from fewstep.picture import fitted

    return fitted(image, (request.width, request.height), name)


def _known(options: Options) -> None:
    for name in options:
        if name not in Options.__annotations__:
            near = get_close_matches(name, Options.__annotations__, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(Options.__annotations__)}"
            raise RequestError(f"{name}= is not an option: {hint}")


def _count(count: object) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= PICTURES:
        raise RequestError(f"count={count!r}: give a whole number from 1 to {PICTURES}")
    return count


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
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    return float(value) if whole else value  # type: ignore[arg-type]


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
