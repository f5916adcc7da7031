"""Samplers: HOW to step between noise levels.

A sampler is a generator over the one contract `denoise(x, sigma) -> x0`:

    for x, x0 in sampler(denoise, x, schedule, noise, eta): ...

It yields the latents after each step and the picture predicted in it; the last x is the
answer. It knows nothing of UNets, prompts or devices, and never reads a device value:
levels are Python numbers, and `noise[i]` (same shape as x) was drawn before the loop.

All need arithmetic only, not torch. Levels are numbers, sigma in x = x0 + sigma * noise; where a
level has another signal than 1 (`fewstep.noise_process.Level`), x = signal * x0 + sigma * noise.
Sources are given as paper and equation; each agrees with its diffusers scheduler under the same
noise (tests/test_samplers.py, tests/test_noise_process.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from fewstep.errors import RequestError
from fewstep.noise_process import signal_of
from fewstep.schedulers import Schedule

if TYPE_CHECKING:  # arithmetic only: tensors pass through, torch itself is not needed
    from torch import Tensor

    Steps = Iterator[tuple[Tensor, Tensor]]  # (x, x0) after each step


class Denoise(Protocol):
    """The contract: latents (B, 4, h, w) at noise level sigma → the picture in them, x0.

    `sigma` is one level for the batch or, in training, one per picture.
    """

    def __call__(self, x: Tensor, sigma: float | Sequence[float], /) -> Tensor: ...


class StepRule(Protocol):
    """A sampler. `eta` is its share of fresh noise, where it has such a choice."""

    def __call__(
        self, denoise: Denoise, x: Tensor, schedule: Schedule, noise: Sequence[Tensor], eta: float, /
    ) -> Steps: ...


def euler_ancestral(
    denoise: Denoise, x: Tensor, schedule: Schedule, noise: Sequence[Tensor], eta: float
) -> Steps:
    """Euler's step to a lower level, then fresh noise up to the next (arXiv:2206.00364, alg. 1).

    `eta` is the share of fresh noise: 0 is Euler's method on the flow ODE, 1 is DDPM's share
    (arXiv:2010.02502, eq. 16). DDIM's step (ibid., eq. 12) is this one in sigma space.
    """
    for i, (sigma, target) in enumerate(pairwise(schedule.sigmas)):
        x0 = denoise(x, sigma)
        x = _step_to_level(x, x0, sigma, target, *_split_noise(sigma, target, eta), noise[i : i + 1])
        yield x, x0


def lcm(denoise: Denoise, x: Tensor, schedule: Schedule, noise: Sequence[Tensor], eta: float) -> Steps:
    """Multistep consistency sampling (Luo et al. 2023, arXiv:2310.04378, alg. 3).

    c_skip is about 0 and c_out about 1 at every level in use, so f(x, t) is x0.
    """
    for i, (sigma, target) in enumerate(pairwise(schedule.sigmas)):
        x0 = denoise(x, sigma)
        x = _step_to_level(x, x0, sigma, target, 0.0, target, noise[i : i + 1])
        yield x, x0


def tcd(denoise: Denoise, x: Tensor, schedule: Schedule, noise: Sequence[Tensor], eta: float) -> Steps:
    """Strategic stochastic sampling (Zheng et al. 2024, arXiv:2402.19159, alg. 4); eta is its gamma.

    Each step lands at timestep (1 - eta) * t and is noised up to t. As in the authors'
    scheduler the last step lands at t = 0, sigma 0.029, in variance-preserving scale.
    """
    _require_sigma_space(schedule, "tcd")
    for i, sigma in enumerate(schedule.sigmas[:-1]):
        x0 = denoise(x, sigma)
        timestep = (*schedule.timesteps, 0)[i + 1]
        target, down = (
            schedule.process.level(timestep),
            schedule.process.level(math.floor((1 - eta) * timestep)),
        )
        up = math.sqrt(max(0.0, target**2 - down**2))
        x = _step_to_level(x, x0, sigma, target, down, up, noise[i : i + 1])
        x = x / math.hypot(1, target) if i + 1 == schedule.steps else x
        yield x, x0


def dpmpp_2m(denoise: Denoise, x: Tensor, schedule: Schedule, noise: Sequence[Tensor], eta: float) -> Steps:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, alg. 2); first and last step are first order."""
    slope: Tensor | float = 0.0  # change of x0 per unit of log(noise / signal), from the step before
    before: tuple[Tensor, float] | None = None
    for sigma, target in pairwise(schedule.sigmas):
        x0 = denoise(x, sigma)
        if before is not None:
            slope = (x0 - before[0]) / math.log(_noise_ratio(before[1], sigma))
        extrapolated = (
            x0 + 0.5 * math.log(_noise_ratio(sigma, target)) * slope if target and before is not None else x0
        )
        x = _step_to_level(x, extrapolated, sigma, target, target, 0.0, ())
        before = (x0, sigma) if signal_of(sigma) else None
        yield x, x0


def dpmpp_sde(denoise: Denoise, x: Tensor, schedule: Schedule, noise: Sequence[Tensor], eta: float) -> Steps:
    """DPM-Solver++(2S) with fresh noise (ibid., alg. 1, in k-diffusion's stochastic form).

    Each step but the last calls the denoiser twice and takes two draws of noise: for the
    middle (in log sigma) and for the end.
    """
    _require_sigma_space(schedule, "dpmpp_sde")
    for i, (sigma, target) in enumerate(pairwise(schedule.sigmas)):
        x0 = denoise(x, sigma)
        if target:
            middle = math.sqrt(sigma * target)
            draw = noise[2 * i : 2 * i + 1]
            x0 = denoise(
                _step_to_level(x, x0, sigma, middle, *_split_noise(sigma, middle, eta), draw), middle
            )
        draw = noise[2 * i + 1 : 2 * i + 2]
        x = _step_to_level(x, x0, sigma, target, *_split_noise(sigma, target, eta), draw)
        yield x, x0


def _split_noise(sigma: float, target: float, eta: float) -> tuple[float, float]:
    """Return (down, up), down^2 + up^2 = target^2: how far to step, how much fresh noise to add."""
    up = min(target, eta * target * math.sqrt(max(0.0, 1 - _noise_ratio(target, sigma) ** 2)))
    return math.sqrt(target**2 - up**2), up


def _noise_ratio(level: float, other: float) -> float:
    """Return how many times the noise beside the picture is that of another level."""
    return (level * signal_of(other)) / (other * signal_of(level))


def _step_to_level(  # noqa: PLR0913  seven numbers and tensors make one formula
    x: Tensor, x0: Tensor, sigma: float, target: float, down: float, up: float, noise: Sequence[Tensor]
) -> Tensor:
    """Step along the line to x0 to deviation `down` at `target`'s signal; then add fresh noise, `up`."""
    signal, target_signal = signal_of(sigma), signal_of(target)
    picture = x0 if target_signal == 1 else target_signal * x0
    moved = picture + down / sigma * (x - (x0 if signal == 1 else signal * x0)) if down else picture
    return moved + up * noise[0] if up else moved


def _require_sigma_space(schedule: Schedule, sampler: str) -> None:
    """Check that every level's signal is 1; `RequestError` where the model is one of flow matching."""
    if not schedule.in_sigma_space:
        raise RequestError(
            f"sampler={sampler!r} is defined for variance-preserving and EDM models, and this one is of flow "
            "matching: choose sampler='euler'"
        )


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A step rule and what must be known to start it."""

    steps: StepRule
    draws: int = 0  # of noise, per step
    eta: float = 0.0  # the default
    tunable: bool = False  # whether eta may be chosen
    preserving: bool = False  # starts from variance 1 + sigma^2 (VP papers), not sigma^2 (VE)


SAMPLERS: MappingProxyType[str, Sampler] = MappingProxyType(
    {
        "euler": Sampler(steps=euler_ancestral),
        "euler_ancestral": Sampler(steps=euler_ancestral, draws=1, eta=1.0, tunable=True),
        "lcm": Sampler(steps=lcm, draws=1, preserving=True),
        "tcd": Sampler(steps=tcd, draws=1, eta=0.3, tunable=True, preserving=True),
        "ddim": Sampler(steps=euler_ancestral, draws=1, tunable=True, preserving=True),
        "dpmpp_2m": Sampler(steps=dpmpp_2m, preserving=True),
        "dpmpp_sde": Sampler(steps=dpmpp_sde, draws=2, eta=1.0, tunable=True),
    }
)
