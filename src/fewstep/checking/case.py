"""`Case`: a pipeline, the recipe it is held against, how it is called; `Report`: what `check` found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import PurePath
from typing import Any, Literal

from fewstep import modes
from fewstep.checking.pipeline import Pipeline
from fewstep.errors import CorruptModelError, RequestError
from fewstep.files.config import trained_size
from fewstep.files.noise import SILENT, Noise, noise_of_scheduler
from fewstep.loading.from_pipe import FAMILIES, usual_mode
from fewstep.recipe import Recipe, Weights

Severity = Literal["wrong", "doubtful"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that keeps a pipeline from the pictures its mode can make.

    `severity`: "wrong" spoils the picture or stops the call; "doubtful" costs quality or time, or
    could not be seen for certain.
    """

    what: str  # what it is now, what the mode needs, what happens otherwise
    mend: str  # one line to type, with diffusers, torch and transformers imported; "" where none mends it
    severity: Severity = "wrong"

    def __str__(self) -> str:
        return f"{self.severity}: {self.what}" + (f"\n    {self.mend}" if self.mend else "")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything found in one pipeline, for one mode."""

    source: str  # a folder, or where the pipeline was loaded from
    mode: str
    noise: str  # the noise process that its scheduler says
    call: str  # the line that calls a sound pipeline as the mode wants it
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Return whether nothing is wrong; what is doubtful does not count."""
        return all(finding.severity != "wrong" for finding in self.findings)

    def __str__(self) -> str:
        wrong = sum(finding.severity == "wrong" for finding in self.findings)
        doubtful = len(self.findings) - wrong
        head = f"{self.source} for mode={self.mode!r}: {wrong} wrong, {doubtful} doubtful"
        process = f"noise process: {self.noise}"
        return "\n".join([head, process, *map(str, self.findings), f"call: {self.call}"])

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON."""
        return {**asdict(self), "findings": [asdict(finding) for finding in self.findings], "ok": self.ok}


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """diffusers' class for one of our samplers."""

    name: str
    levels: tuple[str, ...]  # which of our schedulers it is when configured so
    explicit: bool = False  # does it take timesteps= in the call?


SPACED = ("trailing", "leading")
SHAPED = (*SPACED, "karras", "exponential")
# By sampler. `explicit` is read off the signatures of `set_timesteps` (diffusers 0.42.1).
STEPPERS: Mapping[str, Stepper] = {
    "euler": Stepper(name="EulerDiscreteScheduler", levels=SHAPED, explicit=True),
    "euler_ancestral": Stepper(name="EulerAncestralDiscreteScheduler", levels=SPACED),
    "lcm": Stepper(name="LCMScheduler", levels=("lcm",), explicit=True),
    "tcd": Stepper(name="TCDScheduler", levels=("lcm",), explicit=True),
    "ddim": Stepper(name="DDIMScheduler", levels=SPACED),
    "dpmpp_2m": Stepper(name="DPMSolverMultistepScheduler", levels=SHAPED, explicit=True),
    "dpmpp_sde": Stepper(name="DPMSolverSDEScheduler", levels=SHAPED),
}
# By scheduler: the arguments that make a class run its levels.
LEVELS: Mapping[str, Mapping[str, object]] = {
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "lcm": {"original_inference_steps": 50},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
}
UNDISTILLED = 50  # steps: a mode that goes beyond has a model that every solver gets to the same picture
_COUNT = re.compile(r"(\d+)[ _-]?steps?", re.IGNORECASE)  # as in "sdxl_lightning_4step_lora"


@dataclass(frozen=True, kw_only=True)
class PlannedCall:
    """The call, in diffusers' words, as far as it was told; None is not told."""

    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    strength: float | None = None
    timesteps: Sequence[int] | None = None
    eta: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "width", "height"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise RequestError(f"{name}={value!r}: give a whole number from 1, or leave it out")
        for name in ("guidance", "strength", "eta"):
            value = getattr(self, name)
            is_number = type(value) in (int, float) and isfinite(value) and value >= 0
            if value is not None and not is_number:
                raise RequestError(f"{name}={value!r}: give a number from 0, or leave it out")

    @property
    def says_anything(self) -> bool:
        """Return whether anything is said of the call."""
        return any(getattr(self, field.name) not in (None, "") for field in fields(self))


@dataclass(frozen=True, kw_only=True)
class Case:
    """What every check looks at."""

    pipeline: Pipeline
    recipe: Recipe
    family: str
    planned: PlannedCall
    doubt: str = ""  # of the mode, where it was not told

    @property
    def mode(self) -> str:
        return self.recipe.mode

    @property
    def noise(self) -> Noise:
        """Return the noise process that the scheduler says; `SILENT` where that makes no sense."""
        try:
            return noise_of_scheduler(self.pipeline.parts.get("scheduler", {}), self.pipeline.source)
        except CorruptModelError:
            return SILENT

    @property
    def weights(self) -> Weights | None:
        """Return the mode's own; for a smaller UNet that it has none for, SDXL's, which show their kind."""
        by_family = self.recipe.weights
        return by_family.get(self.family) or (None if self.bundled else by_family.get("sdxl"))

    @property
    def bundled(self) -> bool:
        """Return whether it is fewstep's small model; its VAE, tokenizers and prediction are its own."""
        return self.family == "tiny"

    @property
    def distilled(self) -> bool:
        return self.recipe.steps.high <= UNDISTILLED

    @property
    def steppers(self) -> list[Stepper]:
        """Return classes that step by the mode's rules, its first first; none for a plug-in's own rules."""
        return [STEPPERS[name] for name in self.recipe.samplers if name in STEPPERS]

    @property
    def stepper(self) -> Stepper | None:
        """Return the pipeline's own class where it fits, else the mode's first."""
        matching = [stepper for stepper in self.steppers if stepper.name == self.pipeline.scheduler]
        return next(iter([*matching, *self.steppers]), None)

    @property
    def scheduler_name(self) -> str:
        """Return the mode's first scheduler that this class can be configured to; "" is none."""
        levels = self.stepper.levels if self.stepper else ()
        own_schedulers = self.recipe.own_schedulers
        return next(
            (name for name in self.recipe.schedulers if name in levels and name not in own_schedulers), ""
        )

    @property
    def trained_side(self) -> int:
        """Return the side that the weights were trained at, in pixels."""
        side, weights = trained_size(self.pipeline.parts["unet"], self.pipeline.source), self.weights
        return min(side, weights.size) if weights and weights.size else side

    def steps_fit(self, steps: int) -> bool:
        return self.recipe.steps.low <= steps <= self.recipe.steps.high

    def rescheduled(self, **config: object) -> str:
        """Return the line that gives the pipeline the right class, configured so."""
        name = self.stepper.name if self.distilled and self.stepper else self.pipeline.scheduler
        arguments = "".join(f", {key}={value!r}" for key, value in config.items())
        return f"pipe.scheduler = diffusers.{name}.from_config(pipe.scheduler.config{arguments})"


Check = Callable[[Case], Iterator[Finding]]


def case_of(pipeline: Pipeline, mode: str | None, planned: PlannedCall) -> Case:
    """Return the case of a mode (None: what the pipeline shows), for the steps that its weights are for."""
    embedded = bool(pipeline.parts.get("unet", {}).get("time_cond_proj_dim"))
    scheduler = str(pipeline.parts.get("scheduler", {}).get("_class_name"))
    name, doubt = usual_mode(pipeline.source, scheduler, embedded) if mode is None else (mode, "")
    family = FAMILIES.get(pipeline.source, "sdxl")
    recipe = modes.find_recipe(name).on(family)
    step_counts = recipe.steps.only
    candidates = [*_steps_in_names(pipeline), planned.steps]
    recipe = recipe.for_steps(next((count for count in candidates if count in step_counts), None))
    return Case(pipeline=pipeline, recipe=recipe, family=family, planned=planned, doubt=doubt)


def _steps_in_names(pipeline: Pipeline) -> Iterator[int]:
    """Yield the numbers of steps that the names of its weights say."""
    names = [adapter.name for adapter in pipeline.adapters if adapter.active]
    unet = str(pipeline.parts.get("unet", {}).get("_name_or_path", ""))
    for name in (*names, PurePath(unet).name, PurePath(pipeline.source).name):
        yield from map(int, _COUNT.findall(name))
