"""Schedulers: WHICH noise levels a picture passes through. Pure Python, no torch.

A scheduler is a function `(steps, strength) -> Schedule`. `strength` in (0, 1] picks the
level of the first step and never changes how many steps there are; at 1 the first
level is (almost) pure noise. HOW to move between the levels is a sampler's business
(`fewstep.samplers`).

Levels are given twice: as a timestep t of the 1000 that a model was trained on, and as the
standard deviation sigma of the noise beside a picture of scale one,
`x = x0 + sigma * noise`. With SDXL's betas, sigma(999) = 14.615 and sigma(0) = 0.029. Which sigma
a timestep has is the noise process's to say (`fewstep.noise_process`); fewstep's own schedulers take one
as `process`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from fewstep.errors import RequestError
from fewstep.noise_process import SDXL_NOISE, TRAIN_STEPS, NoiseProcess, signal_of


@dataclass(frozen=True)
class Schedule:
    """Noise levels, falling: n `timesteps` in [0, 999], n + 1 `sigmas`, the last one 0.

    A sigma is a `Level` where the picture's scale beside it is not 1.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    process: NoiseProcess = SDXL_NOISE  # whose levels these are

    def __post_init__(self) -> None:
        assert len(self.sigmas) == len(self.timesteps) + 1
        assert self.sigmas[-1] == 0
        assert all(a > b for a, b in pairwise(self.sigmas))

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @property
    def in_sigma_space(self) -> bool:
        """Whether the picture has scale 1 at every level."""
        return all(signal_of(sigma) == 1 for sigma in self.sigmas)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return {"timesteps": list(self.timesteps), "sigmas": list(map(float, self.sigmas))}


Scheduler = Callable[..., Schedule]  # of steps and strength; fewstep's own of a process too


def trailing(steps: int, strength: float = 1.0, process: NoiseProcess = SDXL_NOISE) -> Schedule:
    """Evenly spaced, counted back from the noisiest (Lin et al. 2023, arXiv:2305.08891, table 2)."""
    top = _top_timestep(strength)
    if steps > top:
        raise _too_many("trailing", steps, strength, top)
    return explicit([round(top * (1 - i / steps)) - 1 for i in range(steps)], process)


def leading(
    steps: int, strength: float = 1.0, process: NoiseProcess = SDXL_NOISE, offset: int = 1
) -> Schedule:
    """Evenly spaced, counted up from t = `offset`: SDXL base's own default (steps_offset 1).

    Its first level is far from pure noise when steps are few; one step is t = 1.
    """
    top = _top_timestep(strength)
    if steps >= top:
        raise _too_many("leading", steps, strength, top - 1)
    return explicit([i * (top // steps) + offset for i in reversed(range(steps))], process)


def linspace(steps: int, strength: float = 1.0, process: NoiseProcess = SDXL_NOISE) -> Schedule:
    """Evenly spaced with both ends in it: what most of diffusers' schedulers do where they are not told.

    Timesteps have fractions, and sigma is linear between whole ones, as in its EulerDiscreteScheduler; of
    flow matching the lowest level is as its FlowMatchEulerDiscreteScheduler has it, shifted twice.
    """
    top, low = _top_timestep(strength) - 1, process.level(0)
    if steps > top + 1:
        raise _too_many("linspace", steps, strength, top + 1)
    if signal_of(low) != 1:
        bottom = TRAIN_STEPS * low - 1
        return explicit([top + (bottom - top) * f for f in _evenly_to_one(steps)], process)
    places = [top * (1 - f) for f in _evenly_to_one(steps)]
    levels = [_level_between(process, place) for place in places]
    return Schedule(tuple(places), (*levels, 0.0), process)


def lcm(steps: int, strength: float = 1.0, process: NoiseProcess = SDXL_NOISE) -> Schedule:
    """Spread over the 50 levels 19, 39, ... 999 that LCM distils (arXiv:2310.04378, sec. 4.3)."""
    origin = int(50 * strength)
    if steps > origin:
        raise _too_many("lcm", steps, strength, origin)
    return explicit([20 * (origin - i * origin // steps) - 1 for i in range(steps)], process)


def turbo(steps: int, strength: float = 1.0, process: NoiseProcess = SDXL_NOISE) -> Schedule:
    """The grid of SDXL Turbo's official demo: 999, 899, 799, ... one level per step."""
    top = _top_timestep(strength)
    if steps > -(-top // 100):
        raise _too_many("turbo", steps, strength, -(-top // 100))
    return explicit([top - 1 - 100 * i for i in range(steps)], process)


def karras(steps: int, strength: float = 1.0, process: NoiseProcess = SDXL_NOISE) -> Schedule:
    """Evenly spaced in sigma^(1/7) over the trained range (arXiv:2206.00364, eq. 5)."""
    high, low = (s ** (1 / 7) for s in _sigma_range("karras", steps, strength, process))
    return _from_sigmas([(high + (low - high) * f) ** 7 for f in _evenly_to_one(steps)], process)


def exponential(steps: int, strength: float = 1.0, process: NoiseProcess = SDXL_NOISE) -> Schedule:
    """Evenly spaced in log sigma over the trained range."""
    high, low = map(math.log, _sigma_range("exponential", steps, strength, process))
    return _from_sigmas([math.exp(high + (low - high) * f) for f in _evenly_to_one(steps)], process)


# "Align your steps" (Sabour et al. 2024, arXiv:2404.14507): SDXL's 10-step table, as sigmas
# of its 11 points; published with the paper's quick-start guide.
AYS_SIGMAS = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


def ays(steps: int, strength: float = 1.0, process: NoiseProcess = SDXL_NOISE) -> Schedule:
    """The AYS table; other lengths are interpolated in log sigma, as its authors advise."""
    table = [math.log(s) for s in AYS_SIGMAS]
    start = math.log(min(process.level(_top_timestep(strength) - 1), AYS_SIGMAS[0]))
    after = next(i for i, s in enumerate(table) if s < start)
    first = after - 1 + (table[after - 1] - start) / (table[after - 1] - table[after])
    places = [first + (len(table) - 1 - first) * i / steps for i in range(steps)]
    return _from_sigmas([_interpolate_log(table, p) for p in places], process)


def explicit(timesteps: Sequence[float], process: NoiseProcess = SDXL_NOISE) -> Schedule:
    """Exactly these timesteps, in [0, 999] and strictly falling."""
    levels = tuple(timesteps)
    in_range = all(0 <= t <= TRAIN_STEPS - 1 for t in levels)
    if not levels or not in_range or any(a <= b for a, b in pairwise(levels)):
        raise RequestError(
            f"timesteps={list(levels)} cannot be run: give whole numbers from 999 down to 0, "
            "each below the one before, for example timesteps=[999, 749, 499, 249]"
        )
    return Schedule(levels, (*map(process.level, levels), 0.0), process)


def scaled(timesteps: Sequence[int]) -> Scheduler:
    """A scheduler that knows one list of timesteps and scales it to the strength."""

    def fixed(steps: int, strength: float = 1.0, process: NoiseProcess = SDXL_NOISE) -> Schedule:
        if steps != len(timesteps):
            raise RequestError(
                f"steps={steps}, but these weights run exactly {len(timesteps)}: {list(timesteps)}"
            )
        return explicit([round((t + 1) * strength) - 1 for t in timesteps], process)

    return fixed


# Diffusers with leading levels, and the official Turbo demo (generative-models' scripts/demo/turbo.py), start
# from variance 1 + sigma^2, as the VP papers do.
PRESERVING = frozenset({leading, turbo})

SCHEDULERS: MappingProxyType[str, Scheduler] = MappingProxyType(
    {f.__name__: f for f in (trailing, leading, linspace, lcm, turbo, karras, exponential, ays)}
)


def _top_timestep(strength: float) -> int:
    """How many of the 1000 training steps lie at or below the starting level."""
    return max(1, round(TRAIN_STEPS * strength))


def _sigma_range(name: str, steps: int, strength: float, process: NoiseProcess) -> tuple[float, float]:
    """The highest and the lowest sigma; more than one step needs them apart."""
    top = _top_timestep(strength)
    if steps > 1 and top == 1:
        raise _too_many(name, steps, strength, top)
    return process.level(top - 1), process.level(0)


def _evenly_to_one(steps: int) -> list[float]:
    """0 to 1 in `steps` points; one point is 0."""
    return [i / max(1, steps - 1) for i in range(steps)]


def _from_sigmas(sigmas: Sequence[float], process: NoiseProcess) -> Schedule:
    """Return the schedule of these levels, whose picture has scale 1."""
    if signal_of(process.level(0)) != 1:
        raise RequestError(
            "the karras, exponential and ays schedulers space sigmas, "
            "which a flow-matching model does not have: "
            "choose scheduler='trailing'"
        )
    return Schedule(tuple(map(process.timestep, sigmas)), (*sigmas, 0.0), process)


def _level_between(process: NoiseProcess, timestep: float) -> float:
    """The level at a timestep, linear between whole ones."""
    low, part = int(timestep), timestep - int(timestep)
    level = process.level(low)
    return level + part * (process.level(low + 1) - level) if part else level


def _interpolate_log(table: Sequence[float], place: float) -> float:
    """exp of `table` at a fractional index."""
    low = min(int(place), len(table) - 2)
    return math.exp(table[low] + (table[low + 1] - table[low]) * (place - low))


def _too_many(name: str, steps: int, strength: float, most: int) -> RequestError:
    return RequestError(
        f"steps={steps} at strength={strength:g}: the {name} scheduler has {most} levels at or "
        f"below that strength; ask for at most {most} steps or raise strength"
    )
