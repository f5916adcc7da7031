"""What an evaluation asks for: models, modes, step counts, prompts and seeds."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.errors import RequestError
from fewstep.request import File
from fewstep.train.bundled.data import Caption
from fewstep.train.bundled.features import SHIPPED
from fewstep.train.bundled.latents import held_out_pairs

MODES = ("base", "lcm", "turbo", "lcm-lora")
STEPS = (1, 2, 4, 8, 10, 25, 50)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and on what."""

    model: str = "tiny"  # as in `fewstep.generate`
    modes: tuple[str, ...] = ()  # (): all of `MODES` that the model has weights for
    steps: tuple[int, ...] = STEPS  # each mode takes those that it was made for
    guidance: Mapping[str, float] = field(default_factory=dict)  # by mode; others have their default
    prompts: int = 500  # at most
    texts: tuple[str, ...] = ()  # prompts of one's own, in the place of those of the real pictures
    seeds: int = 3  # pictures of each prompt
    seed: int = 0  # of the first picture; picture i of prompt j has seed + seeds * j + i
    style: str = ""  # prompts of this style only; "": of all
    held_out: bool = False  # prompts of pairs that training never saw only
    data: tuple[Path, ...] = ()  # folders of real pictures; (): the work folder's own
    loras: tuple[File | tuple[File, float], ...] = ()  # beside every mode; alone: at its usual weight
    features: Path = SHIPPED  # the feature network
    repeats: int = 15  # calls timed for each row
    device: str = "auto"
    precision: str = "auto"


DEFAULT_SETTINGS = Settings()


@dataclass(frozen=True, kw_only=True)
class EvalPrompt:
    """One prompt, and what is to be found in its pictures."""

    label: str
    style: str
    held: bool  # kept from training: a name in a style that it was never shown in

    @property
    def text(self) -> str:
        return f"{self.label}, {self.style} style" if self.style else self.label


def eval_prompts(captions: Sequence[Caption]) -> list[EvalPrompt]:
    """Every (name, style) pair of one data folder, once."""
    held = held_out_pairs(list(captions))
    pairs = (EvalPrompt(label=c.label, style=c.style, held=h) for c, h in zip(captions, held, strict=True))
    return list(dict.fromkeys(pairs))


def prompts(
    captions: Sequence[Caption], count: int = 500, seed: int = 0, *, held_out_only: bool = False
) -> list[EvalPrompt]:
    """Draw (name, style) pairs without replacement, all where there are not so many.

    Those that were held out of training are among them in their natural share, or alone.
    """
    return sample_prompts(
        [prompt for prompt in eval_prompts(captions) if prompt.held or not held_out_only], count, seed
    )


def choose_prompts(pool: Sequence[EvalPrompt], settings: Settings) -> list[EvalPrompt]:
    """The prompts of an evaluation, drawn from all that can be asked."""
    of_style = [prompt for prompt in pool if settings.style in ("", prompt.style)]
    if not of_style:
        styles = ", ".join(sorted({prompt.style for prompt in pool}))
        raise RequestError(
            f"style={settings.style!r} is not among the real pictures, which are {styles}: choose one of "
            "these, or give the folder of that style as data (--data DIR)"
        )
    candidates = [prompt for prompt in of_style if prompt.held or not settings.held_out]
    if not candidates:
        raise RequestError(
            "no pair of these pictures was held out of training: leave held_out (--held-out) out"
        )
    return sample_prompts(candidates, settings.prompts, settings.seed)


def own_prompts(settings: Settings) -> list[EvalPrompt]:
    """Return prompts of one's own, of which no real pictures are known."""
    return [EvalPrompt(label=text, style="", held=False) for text in settings.texts[: settings.prompts]]


def sample_prompts(pool: Sequence[EvalPrompt], count: int, seed: int) -> list[EvalPrompt]:
    """`count` of them, or all, in random order."""
    return random.Random(seed).sample(pool, min(count, len(pool)))


def check_settings(settings: Settings) -> None:
    """Check that the numbers make sense; raises `RequestError`."""
    for name in ("prompts", "seeds", "repeats"):
        number = getattr(settings, name)
        if number < 1:
            raise RequestError(f"{name}={number}: give a whole number from 1 on")
    if not settings.steps or min(settings.steps) < 1:
        raise RequestError(f"steps={settings.steps}: give whole numbers from 1 on, such as 1,2,4,8")
