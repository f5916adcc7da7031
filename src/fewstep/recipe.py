"""`Recipe`: a few-step mode as data: weights, noise levels, a step rule and a guidance rule.

Levels and step rules are named. A name means the recipe's own, where it brings one, or else
fewstep's (`SCHEDULERS`, `SAMPLERS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from fewstep import values
from fewstep.errors import BackendError, FewstepError, RequestError, describe_error
from fewstep.noise_process import SDXL_NOISE, NoiseProcess
from fewstep.samplers import SAMPLERS, Sampler
from fewstep.schedulers import SCHEDULERS, Schedule, Scheduler, explicit

MAX_LISTED_STEPS = 16  # steps: as far as `Recipe.timesteps` counts


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How many steps the weights were made for.

    `only`: each of these counts has weights of its own, and no other has any. `also`: what a
    recipe narrowed to one count (`Recipe.for_steps`) was narrowed from.
    """

    low: int
    default: int
    high: int
    only: tuple[int, ...] = ()
    also: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly the prompt is followed, and by which means.

    `none`: distilled in; there is nothing to choose. `embedded`: an input of the UNet
    (LCM's w = guidance - 1). `cfg`: classifier-free guidance, two evaluations a step; 1 is
    off. Only `cfg` above 1 gives a negative prompt something to act on.
    """

    kind: Literal["none", "embedded", "cfg"]
    low: float = 1.0
    default: float = 1.0
    high: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where a mode's own weights are, for one model family, and what they replace.

    `checkpoint`: the whole model. `unet`: its UNet. `adapter`: a LoRA beside its UNet.
    `source` is a hub id, or a folder inside the model's own; of a checkpoint it may be "": there is
    no usual one, and the user's model is taken to be one. `file` is the one in it, where "{steps}"
    stands for the number of steps; `size` is the side in pixels they were trained at, 0 the model's;
    `scale` is an adapter's weight.
    """

    attach: Literal["checkpoint", "unet", "adapter"]
    source: str
    file: str = ""
    names: tuple[str, ...] = ()
    size: int = 0
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that makes a mode. The first of `schedulers` and `samplers` is the default."""

    mode: str
    title: str
    schedulers: tuple[str, ...]
    samplers: tuple[str, ...]
    steps: Steps
    guidance: Guidance
    licence: str
    source: str  # paper or model card
    weights: Mapping[str, Weights] = field(default_factory=dict)  # by model family
    prediction: str = ""  # "" is the model's own
    as_adapter: str = ""  # the mode that gives the like to a model that keeps its own UNet
    own_spacing: bool = False  # whether the default scheduler is the one that the model's files name
    style_scale: float = 1.0  # weight of a style LoRA given without one
    overrides: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # by model family
    own_schedulers: Mapping[str, Scheduler] = field(default_factory=dict)  # by name
    own_samplers: Mapping[str, Sampler] = field(default_factory=dict)  # by name

    def on(self, family: str) -> Recipe:
        """Return this recipe with what a model family changes in it."""
        return replace(self, **self.overrides.get(family, {}))  # type: ignore[arg-type]

    def for_steps(self, steps: int | None) -> Recipe:
        """Return this recipe for one number of steps (None: default), where each has weights of its own."""
        if not self.steps.only:
            return self
        count = self.steps.default if steps is None else values.whole(steps)
        if type(count) is not int or count not in self.steps.only:
            *rest, last = map(str, self.steps.only)
            legal = f"{', '.join(rest)} or {last}" if rest else last
            raise RequestError(
                f"steps={values.shown(count)}: mode {self.mode!r} has weights for {legal} steps; "
                f"type steps={self.steps.default}"
            )
        files = {
            family: replace(weights, file=weights.file.replace("{steps}", str(count)))
            for family, weights in self.weights.items()
        }
        narrowed = Steps(low=count, default=count, high=count, also=self.steps.only)
        return replace(self, steps=narrowed, weights=files)

    def counts(self) -> tuple[int, ...]:
        """Return every legal number of steps."""
        return self.steps.only or tuple(range(self.steps.low, self.steps.high + 1))

    def scheduler(self, name: str) -> Scheduler:
        """Return which noise levels a name in `schedulers` means."""
        return self.own_schedulers[name] if name in self.own_schedulers else SCHEDULERS[name]

    def schedule(
        self, name: str, steps: int, strength: float, process: NoiseProcess = SDXL_NOISE
    ) -> Schedule:
        """Return the levels of one call; the steps asked for are those run, whoever wrote the scheduler.

        A scheduler of the recipe's own knows SDXL's levels only: on another process its timesteps count.
        """
        try:
            if name in self.own_schedulers:
                schedule = self.own_schedulers[name](steps, strength)
            else:
                schedule = SCHEDULERS[name](steps, strength, process)
            if schedule.process != process:
                schedule = explicit(schedule.timesteps, process)
            if schedule.steps != steps:
                raise ValueError(f"{schedule.steps} steps came out")
        except FewstepError:
            raise
        except Exception as error:
            raise BackendError(
                f"scheduler={name!r} of mode={self.mode!r} failed at steps={steps}, strength={strength:g} "
                f"({describe_error(error)}): choose other steps, or scheduler={self.schedulers[0]!r}"
            ) from error
        return schedule

    def timesteps(self) -> dict[int, tuple[float, ...]]:
        """Return the default levels at each legal number of steps up to 16, those it refuses left out."""
        listed = {}
        for steps in self.counts():
            if steps <= MAX_LISTED_STEPS:
                try:
                    listed[steps] = self.schedule(self.schedulers[0], steps, 1.0).timesteps
                except RequestError:
                    continue
        return listed

    def sampler(self, name: str) -> Sampler:
        """Return which step rule a name in `samplers` means."""
        return self.own_samplers[name] if name in self.own_samplers else SAMPLERS[name]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON; of own schedulers and samplers the names."""
        own_names = {"own_schedulers": list(self.own_schedulers), "own_samplers": list(self.own_samplers)}
        return {
            **{
                f.name: _as_plain_data(getattr(self, f.name)) for f in fields(self) if f.name not in own_names
            },
            **own_names,
        }


def _as_plain_data(value: Any) -> Any:
    """Return dataclasses and mappings of any kind as dicts."""
    if is_dataclass(value):
        return {f.name: _as_plain_data(getattr(value, f.name)) for f in fields(value)}
    return (
        {name: _as_plain_data(item) for name, item in value.items()} if isinstance(value, Mapping) else value
    )
