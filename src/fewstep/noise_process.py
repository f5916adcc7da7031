"""Noise processes: how a picture and noise are mixed at each level, and what a network is told of it.

    x = signal * x0 + noise * eps

A process is pure functions of a level, without torch: the level of a timestep and back, the time that
the network is told, the scale of its input, and how its output becomes x0. Timesteps are those of
`fewstep.schedulers`, 999 (almost pure noise) to 0, whatever the network's own clock is.

Variance-preserving and EDM models are stepped in sigma space, where the signal is 1 and the level is
the deviation of the noise. Flow matching has both: at t = 1 its signal is 0, and no sigma exists.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from operator import mul
from types import MappingProxyType
from typing import Protocol

TRAIN_STEPS = 1000
BETA_START, BETA_END = (
    0.00085,
    0.012,
)  # "scaled_linear": linear in sqrt(beta); SDXL's and SD 1.x's scheduler config
PREDICTIONS = ("epsilon", "v_prediction", "sample")  # what a network may have been trained to predict
TERMINAL = 2.0**-24  # alpha_bar of the last timestep in place of 0, as diffusers has it: sigma is 4096


class Level(float):
    """The deviation of the noise, a number; `signal` is the scale of the picture beside it.

    A plain number is a level whose signal is 1.
    """

    signal: float

    def __new__(cls, noise: float, signal: float = 1.0) -> Level:
        level = super().__new__(cls, noise)
        level.signal = signal
        return level


def signal_of(level: float) -> float:
    """Return the scale of the picture at a level, in [0, 1]."""
    return level.signal if isinstance(level, Level) else 1.0


class NoiseProcess(Protocol):
    """The seam: what schedulers and the denoiser ask of a process."""

    @property
    def prediction(self) -> str:
        """What the network predicts, by diffusers' name."""

    def level(self, timestep: float, /) -> float:
        """Return the level at a timestep in [0, 999]; rises with it."""

    def timestep(self, level: float, /) -> float:
        """Return the timestep of a level, the inverse of `level`, clamped to [0, 999]."""

    def network_time(self, level: float, /) -> float:
        """Return what the network is told of a level."""

    def input_scale(self, level: float, /) -> float:
        """Return what x is multiplied with before the network sees it."""

    def x0_weights(self, level: float, /) -> tuple[float, float]:
        """Return (a, b) with x0 = a * x + b * output."""


def scaled_linear(
    start: float = BETA_START, end: float = BETA_END, steps: int = TRAIN_STEPS
) -> tuple[float, ...]:
    """Return betas that rise linearly in their square root."""
    low, high = math.sqrt(start), math.sqrt(end)
    return tuple((low + (high - low) * t / (steps - 1)) ** 2 for t in range(steps))


def linear(start: float, end: float, steps: int = TRAIN_STEPS) -> tuple[float, ...]:
    """Return betas that rise linearly (Ho et al. 2020, arXiv:2006.11239, sec. 4)."""
    return tuple(start + (end - start) * t / (steps - 1) for t in range(steps))


def squared_cosine(_start: float, _end: float, steps: int = TRAIN_STEPS) -> tuple[float, ...]:
    """Return betas of abar = cos^2((t + .008) / 1.008 * pi / 2), up to .999 (arXiv:2102.09672, eq. 17)."""
    bars = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
    return tuple(min(1 - after / before, 0.999) for before, after in pairwise(bars))


# By diffusers' names.
BETA_SCHEDULES: Mapping[str, Callable[[float, float], tuple[float, ...]]] = MappingProxyType(
    {"scaled_linear": scaled_linear, "linear": linear, "squaredcos_cap_v2": squared_cosine}
)


def sigmas_of_betas(betas: Iterable[float]) -> tuple[float, ...]:
    """Return sigma(t) = sqrt((1 - abar) / abar) with abar = cumprod(1 - beta); rises with t."""
    return tuple(math.sqrt((1 - abar) / abar) for abar in accumulate((1 - b for b in betas), mul))


def zero_terminal(betas: Iterable[float]) -> tuple[float, ...]:
    """Return sigmas of betas rescaled to zero terminal SNR (Lin et al. 2023, arXiv:2305.08891, alg. 1)."""
    roots = [math.sqrt(abar) for abar in accumulate((1 - b for b in betas), mul)]
    first, last = roots[0], roots[-1]
    bars = [((root - last) * first / (first - last)) ** 2 for root in roots[:-1]]
    return tuple(math.sqrt((1 - abar) / abar) for abar in (*bars, TERMINAL))


SDXL_SIGMAS = sigmas_of_betas(scaled_linear())


@dataclass(frozen=True)
class VariancePreserving:
    """DDPM's process (Ho et al. 2020, arXiv:2006.11239) in sigma space: x = x0 + sigma * eps.

    The network sees x / sqrt(1 + sigma^2), of variance 1, and is told the timestep.
    """

    prediction: str = "epsilon"
    sigmas: tuple[float, ...] = SDXL_SIGMAS  # by timestep, rising

    @cached_property
    def _log_sigmas(self) -> tuple[float, ...]:
        return tuple(map(math.log, self.sigmas))

    def level(self, timestep: float, /) -> float:
        """Return sigma; log-linear between whole timesteps."""
        low = int(timestep)
        fraction = timestep - low
        if fraction == 0:
            return self.sigmas[low]
        return math.exp((1 - fraction) * self._log_sigmas[low] + fraction * self._log_sigmas[low + 1])

    def timestep(self, level: float, /) -> float:
        """Return the timestep of a sigma; exact on whole ones."""
        index = bisect_left(self.sigmas, level)
        if index == len(self.sigmas):
            return index - 1
        if index == 0 or self.sigmas[index] == level:
            return index
        low, high = self._log_sigmas[index - 1], self._log_sigmas[index]
        return index - 1 + (math.log(level) - low) / (high - low)

    network_time = timestep

    def input_scale(self, level: float, /) -> float:
        """Return 1 / sqrt(1 + sigma^2)."""
        return 1 / math.hypot(1, level)

    def x0_weights(self, level: float, /) -> tuple[float, float]:
        """Return (a, b) by what is predicted (Karras et al. 2022, arXiv:2206.00364, table 1)."""
        match self.prediction:
            case "epsilon":
                return 1.0, -level
            case "v_prediction":  # Salimans & Ho 2022, arXiv:2202.00512, app. D
                return 1 / (1 + level**2), -level / math.hypot(1, level)
            case "sample":
                return 0.0, 1.0
        raise ValueError(f"prediction={self.prediction!r} is none of {', '.join(PREDICTIONS)}")


@dataclass(frozen=True)
class Edm:
    """EDM's preconditioning (Karras et al. 2022, arXiv:2206.00364, table 1): x = x0 + sigma * eps.

    `v_prediction` differs from `epsilon` by the sign of c_out, as in diffusers' EDM schedulers. Its sigmas
    are CosXL's by default, its sigma_data the paper's; CosXL has 1.
    """

    prediction: str = "v_prediction"
    sigma_min: float = 0.002
    sigma_max: float = 120.0
    sigma_data: float = 0.5

    def level(self, timestep: float, /) -> float:
        """Return sigma, evenly spaced in sigma^(1/7) from sigma_min to sigma_max (ibid., eq. 5)."""
        low, high = self.sigma_min ** (1 / 7), self.sigma_max ** (1 / 7)
        return float((low + (high - low) * timestep / (TRAIN_STEPS - 1)) ** 7)

    def timestep(self, level: float, /) -> float:
        """Return the place of a sigma in that spacing."""
        low, high = self.sigma_min ** (1 / 7), self.sigma_max ** (1 / 7)
        place: float = (level ** (1 / 7) - low) / (high - low)
        return min(max(place, 0.0), 1.0) * (TRAIN_STEPS - 1)

    def network_time(self, level: float, /) -> float:
        """Return c_noise."""
        return math.log(level) / 4

    def input_scale(self, level: float, /) -> float:
        """Return c_in."""
        return 1 / math.hypot(level, self.sigma_data)

    def x0_weights(self, level: float, /) -> tuple[float, float]:
        """Return (c_skip, c_out)."""
        out = level * self.sigma_data / math.hypot(level, self.sigma_data)
        skip = self.sigma_data**2 / (level**2 + self.sigma_data**2)
        return skip, -out if self.prediction == "v_prediction" else out


@dataclass(frozen=True)
class Flow:
    """Flow matching (Lipman et al. 2022, arXiv:2210.02747): x = (1 - t) * x0 + t * eps, output eps - x0.

    `shift` moves levels towards noise (Esser et al. 2024, arXiv:2403.03206, eq. 23).
    """

    shift: float = 1.0
    prediction: str = "flow_prediction"

    def level(self, timestep: float, /) -> float:
        """Return t, shifted, as noise, and 1 - t as signal; 999 is t = 1."""
        t = (timestep + 1) / TRAIN_STEPS
        t = self.shift * t / (1 + (self.shift - 1) * t)
        return Level(t, 1 - t)

    def timestep(self, level: float, /) -> float:
        """Return where an unshifted t would be."""
        t = level / (self.shift - (self.shift - 1) * level)
        return min(max(t * TRAIN_STEPS - 1, 0.0), TRAIN_STEPS - 1.0)

    def network_time(self, level: float, /) -> float:
        """Return 1000 t."""
        return TRAIN_STEPS * float(level)

    def input_scale(self, _level: float, /) -> float:
        """Return 1: x is of about variance 1 at every level."""
        return 1.0

    def x0_weights(self, level: float, /) -> tuple[float, float]:
        """Return (1, -t): x = x0 + t * (eps - x0)."""
        return 1.0, -float(level)


SDXL_NOISE = VariancePreserving()


def sigma_of(timestep: float) -> float:
    """Return SDXL's noise level at a timestep in [0, 999]; log-linear between whole ones."""
    return SDXL_NOISE.level(timestep)


def timestep_of(sigma: float) -> float:
    """Return the timestep of a noise level of SDXL's; exact on whole timesteps, clamped to [0, 999]."""
    return SDXL_NOISE.timestep(sigma)
