"""`Recipe`: a few-step mode as data: weights, noise levels, a step rule and a guidance rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal


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

    def on(self, family: str) -> Recipe:
        """This recipe with what a model family changes in it."""
        return replace(self, **self.overrides.get(family, {}))  # type: ignore[arg-type]
