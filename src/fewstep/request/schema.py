"""`Request`: one complete, checked order; `Plan`: what it resolves to; `Job`: with its pictures."""
# MERGED: """`EngineKey`: everything that tells one loaded engine from another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from fewstep.prompts import Embedding, Prompt
from fewstep.schedulers import Schedule

if TYPE_CHECKING:
    from PIL.Image import Image


MAX_PICTURES = 1024  # in one request


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
    control: tuple[Image, ...] = ()  # at the request's size, one for each of the request's `control`
    reference: tuple[Image, ...] = ()  # of any size, one for each of the request's `reference`

    @property
    def request(self) -> Request:
        return self.plan.request


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """What to load and where to run it, in the user's words, completed."""

    model: str
    mode: str
    steps: int = 0  # of a mode whose weights come for one number of steps; 0: they serve all
    accelerator: str = ""  # "" is the mode's own
    vae: str = ""  # "" is the model's own
    embeddings: tuple[str, ...] = ()  # files of textual inversions
    revision: str = ""  # of a hub id; "" is the catalog's, or else the newest
    device: str = "auto"
    precision: str = "auto"
    offload: str = "auto"
