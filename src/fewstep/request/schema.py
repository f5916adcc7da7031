"""`EngineKey`: which engine; `Request`: a checked order; `Plan`: what it resolves to; `Job`: its pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, Unpack, cast

from pydantic import BaseModel, ConfigDict, Field

from fewstep.images.canvas import Canvas
from fewstep.prompts import Embedding, Prompt
from fewstep.request.options import OPTIONS, EngineOptions, with_defaults
from fewstep.schedulers import Schedule

if TYPE_CHECKING:
    from PIL.Image import Image


MAX_PICTURES = 1024  # in one request


def bounded(name: str, default: Any = ...) -> Any:
    """Return a field with the bounds that an option has in the table."""
    option = OPTIONS[name]
    if option.above:
        return Field(default, gt=option.low, le=option.high)
    return Field(default, ge=option.low, le=option.high)


class Request(BaseModel):
    """One complete order. The same for Python calls, the command line and files."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )

    prompts: tuple[str, ...] = Field(min_length=1, max_length=MAX_PICTURES)  # one per picture
    prompts_2: tuple[str, ...] = ()  # the second text encoder's, where they are others
    mode: str
    model: str
    steps: int = Field(ge=1, le=1000)
    negative_prompt: str = ""
    long_prompt: Literal["chunk", "refuse", "cut"] = "chunk"
    guidance: float = bounded("guidance")
    guidance_rescale: float = bounded("guidance_rescale", 0.0)
    seeds: tuple[int, ...]  # one per picture
    width: int = bounded("width")
    height: int = bounded("height")
    strength: float = bounded("strength", 1.0)
    only_masked: bool = False
    padding: int = bounded("padding", 32)
    tiles: bool = False
    scheduler: str
    sampler: str
    eta: float = bounded("eta")
    timesteps: tuple[int, ...] = ()  # instead of the scheduler's, where given
    reproducible: bool = False  # whether pictures are drawn one by one
    loras: tuple[tuple[str, float], ...] = ()  # file, weight
    control: tuple[tuple[str, float], ...] = ()  # model, scale
    reference: tuple[tuple[str, float], ...] = ()  # adapter, scale


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a request resolves to; making one needs no weights."""

    request: Request
    schedule: Schedule
    start: float  # standard deviation of the first noise
    guidance: str  # what the number means in this mode
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON."""
        return {
            **self.request.model_dump(mode="json"),
            "schedule": self.schedule.to_dict(),
            "guidance_meaning": self.guidance,
            "warnings": list(self.warnings),
        }

    def only(self, pictures: Sequence[int]) -> Plan:
        """Return the plan of some of its pictures, by their places in it."""
        request = self.request
        lists = {"prompts": request.prompts, "prompts_2": request.prompts_2, "seeds": request.seeds}
        selected = {name: tuple(items[i] for i in pictures) for name, items in lists.items() if items}
        return replace(self, request=request.model_copy(update=selected))


@dataclass(frozen=True, kw_only=True)
class Job:
    """A plan, and what goes into it that is not plain data."""

    plan: Plan
    prompts: tuple[Prompt | Embedding, ...]  # one per picture
    negative: Prompt | Embedding
    canvas: Canvas  # what is drawn for a picture of the request's size
    images: tuple[Image, ...] = ()  # RGB, at the request's size: for each picture the one it starts from
    masks: tuple[Image, ...] = ()  # L, at the request's size: for each picture
    parents: tuple[Any, ...] = ()  # for each picture the `Result`, of one, that its image is of, or None
    control: tuple[Image, ...] = ()  # at the request's size, one for each of the request's `control`
    reference: tuple[Image, ...] = ()  # of any size, one for each of the request's `reference`
    places: tuple[int, ...] = ()  # of its pictures in the call, where lists of options make several jobs
    rows: tuple[int, ...] = ()  # of its pictures in the batch that they were drawn in
    batch: int = 0  # pictures of that batch; 0 is not drawn yet
    commercial: bool = False  # whether licences had to allow that

    request = cast(Request, property(attrgetter("plan.request")))

    def only(self, pictures: Sequence[int]) -> Job:
        """Return the job of some of its pictures, by their places in it."""
        lists = {
            "prompts": self.prompts,
            "images": self.images,
            "masks": self.masks,
            "parents": self.parents,
            "places": self.places,
            "rows": self.rows,
        }
        selected: dict[str, Any] = {
            name: tuple(items[i] for i in pictures) for name, items in lists.items() if items
        }
        return replace(self, plan=self.plan.only(pictures), **selected)

    def given_pictures(self, index: int = 0) -> dict[str, tuple[Image, ...]]:
        """Return what picture `index` was made from, by option, each as it was used."""
        by_option = {
            "image": self.images and (self.images[index],),
            "mask": self.masks and (self.masks[index],),
            "control": self.control,
            "reference": self.reference,
        }
        return {name: pictures for name, pictures in by_option.items() if pictures}

    def source_hashes(self, index: int = 0) -> dict[str, list[str]]:
        """Return what picture `index` was made from, by option, each picture as its SHA-256."""
        return {
            name: [fingerprint(picture) for picture in pictures]
            for name, pictures in self.given_pictures(index).items()
        }


def fingerprint(picture: Image) -> str:
    """Return the SHA-256 of mode, size and pixels: of the picture, not of its file."""
    digest = hashlib.sha256(f"{picture.mode} {picture.width}x{picture.height} ".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """What to load and where to run it, every default filled in: equal keys, equal engines."""

    mode: str
    steps: int = 0  # of a mode whose weights come for one number of steps; 0: they serve all
    options: EngineOptions = field(default_factory=lambda: with_defaults({}), hash=False)

    @classmethod
    def of(cls, mode: str, steps: int = 0, **options: Unpack[EngineOptions]) -> Self:
        """Return the key of these options; those left out have their defaults."""
        return cls(mode=mode, steps=steps, options=with_defaults(options))

    def file(self, name: Literal["model", "accelerator", "vae"]) -> str:
        """Return an option that names a file, folder or hub id, as text."""
        return str(self.options[name])

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Return the files of textual inversions."""
        return tuple(map(str, self.options["embeddings"]))
