"""`Recipe`: a few-step mode as data: weights, noise levels, a step rule and a guidance rule.

Levels and step rules are named. A name means the recipe's own, where it brings one, or else
fewstep's (`SCHEDULERS`, `SAMPLERS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from fewstep.errors import BackendError, FewstepError, told
from fewstep.samplers import SAMPLERS, Sampler
from fewstep.schedulers import SCHEDULERS, Schedule, Scheduler


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How many steps the weights were made for."""

    low: int
    default: int
    high: int


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
    `source` is a hub id, or a folder inside the model's own; `size` is the side in pixels they
    were trained at, 0 the model's.
    """

    attach: Literal["checkpoint", "unet", "adapter"]
    source: str
    file: str = ""
    size: int = 0


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
    overrides: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # by model family
    own_schedulers: Mapping[str, Scheduler] = field(default_factory=dict)  # by name
    own_samplers: Mapping[str, Sampler] = field(default_factory=dict)  # by name

    def on(self, family: str) -> Recipe:
        """This recipe with what a model family changes in it."""
        return replace(self, **self.overrides.get(family, {}))  # type: ignore[arg-type]

    def scheduler(self, name: str) -> Scheduler:
        """Which noise levels a name in `schedulers` means."""
        return self.own_schedulers[name] if name in self.own_schedulers else SCHEDULERS[name]

    def schedule(self, name: str, steps: int, strength: float) -> Schedule:
        """The levels of one call; the steps asked for are the steps run, whoever wrote the scheduler."""
        try:
            schedule = self.scheduler(name)(steps, strength)
            if schedule.steps != steps:
                raise ValueError(f"{schedule.steps} steps came out")
        except FewstepError:
            raise
        except Exception as error:
            raise BackendError(
                f"scheduler={name!r} of mode={self.mode!r} failed at steps={steps}, strength={strength:g} "
                f"({told(error)}): choose other steps, or scheduler={self.schedulers[0]!r}"
            ) from error
        return schedule

    def sampler(self, name: str) -> Sampler:
        """Which step rule a name in `samplers` means."""
        return self.own_samplers[name] if name in self.own_samplers else SAMPLERS[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; of own schedulers and samplers the names."""
        own = {"own_schedulers": list(self.own_schedulers), "own_samplers": list(self.own_samplers)}
        return {**{f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in own}, **own}


def _plain(value: Any) -> Any:
    """Dataclasses and mappings of any kind → dicts."""
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, Mapping) else value
