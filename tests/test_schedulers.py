"""The noise levels: pinned, held to their invariants, and compared with diffusers' own."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler, LCMScheduler, TCDScheduler
from diffusers.schedulers import AysSchedules

from fewstep.errors import RequestError
from fewstep.noise_process import SDXL_SIGMAS, sigma_of, timestep_of
from fewstep.schedulers import (
    AYS_SIGMAS,
    SCHEDULERS,
    Schedule,
    ays,
    explicit,
    lcm,
    leading,
    scaled,
    trailing,
    turbo,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STRENGTHS = (0.05, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.9, 1.0)
LEVELS = {  # how many steps fit at or below each of STRENGTHS; the other schedulers have no such limit
    "trailing": (50, 100, 250, 300, 500, 600, 750, 900, 1000),
    "leading": (49, 99, 249, 299, 499, 599, 749, 899, 999),
    "lcm": (2, 5, 12, 15, 25, 30, 37, 45, 50),
    "turbo": (1, 1, 3, 3, 5, 6, 8, 9, 10),
}
STARTS = (49, 99, 249, 299, 499, 599, 749, 899, 999)  # the first timestep at each of STRENGTHS
LCM_STARTS = (39, 99, 239, 299, 499, 599, 739, 899, 999)
UNBOUNDED = sorted(SCHEDULERS.keys() - LEVELS.keys())
ndarray_copy = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


def levels(name: str, strength: float) -> float:
    return LEVELS[name][STRENGTHS.index(strength)] if name in LEVELS else math.inf


def allowed(name: str, steps: int) -> list[float]:
    """Those of STRENGTHS at which so many steps fit."""
    return [strength for strength in STRENGTHS if steps <= levels(name, strength)]


@pytest.mark.parametrize(
    ("name", "timesteps"),
    [
        ("leading", (1,)),
        ("leading", (501, 1)),
        ("leading", (751, 501, 251, 1)),
        ("trailing", (999,)),
        ("trailing", (999, 499)),
        ("trailing", (999, 749, 499, 249)),
        ("trailing", (999, 874, 749, 624, 499, 374, 249, 124)),
        ("lcm", (999,)),
        ("lcm", (999, 499)),
        ("lcm", (999, 679, 339)),
        ("lcm", (999, 759, 499, 259)),
        ("lcm", (999, 839, 679, 499, 339, 179)),
        ("lcm", (999, 879, 759, 639, 499, 379, 259, 139)),
        ("turbo", (999,)),
        ("turbo", (999, 899)),
        ("turbo", (999, 899, 799)),
        ("turbo", (999, 899, 799, 699)),
        ("turbo", (999, 899, 799, 699, 599, 499)),
        ("turbo", (999, 899, 799, 699, 599, 499, 399, 299)),
    ],
)
def test_measured_timesteps(name: str, timesteps: tuple[int, ...]) -> None:
    assert SCHEDULERS[name](len(timesteps), 1.0).timesteps == timesteps


def test_sigma_range() -> None:
    assert sigma_of(999) == pytest.approx(14.6146, abs=5e-5)
    assert sigma_of(0) == pytest.approx(0.0292, abs=5e-5)


def test_train_sigmas_are_those_of_diffusers() -> None:
    cumulative = LCMScheduler().alphas_cumprod.double()
    assert pytest.approx(((1 - cumulative) / cumulative).sqrt().tolist(), rel=5e-5) == SDXL_SIGMAS


def euler(steps: int, **config: Any) -> tuple[list[float], list[float]]:
    """Timesteps and sigmas of diffusers' Euler scheduler."""
    scheduler = EulerDiscreteScheduler(**BETAS, **config)
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist(), scheduler.sigmas.tolist()


@ndarray_copy
@pytest.mark.parametrize("steps", [n for n in range(1, 51) if n != 48])
@pytest.mark.parametrize("name", ["trailing", "leading"])
def test_whole_timesteps_are_those_of_diffusers(name: str, steps: int) -> None:
    timesteps, sigmas = euler(steps, timestep_spacing=name, steps_offset=1)
    ours = SCHEDULERS[name](steps, 1.0)
    assert ours.timesteps == tuple(timesteps)
    assert ours.sigmas == pytest.approx(sigmas, rel=5e-5)


@ndarray_copy
def test_48_trailing_steps_are_exact() -> None:
    """1000 * (1 - 3 / 48) is 937.5; numpy.arange in diffusers falls short of it and rounds down."""
    theirs, _ = euler(48, timestep_spacing="trailing")
    ours = trailing(48).timesteps
    assert [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b] == [
        (937, 936),
        (687, 686),
        (437, 436),
        (187, 186),
    ]


@ndarray_copy
@pytest.mark.parametrize("steps", range(2, 51))
@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_spaced_sigmas_are_those_of_diffusers(name: str, steps: int) -> None:
    timesteps, sigmas = euler(steps, timestep_spacing="linspace", **{f"use_{name}_sigmas": True})
    ours = SCHEDULERS[name](steps, 1.0)
    assert ours.sigmas == pytest.approx(sigmas, rel=5e-5)
    assert ours.timesteps == pytest.approx(timesteps, abs=0.01)


@ndarray_copy
@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_one_spaced_step_starts_from_noise(name: str) -> None:
    """Where diffusers' linspace starts from t = 0, and gives the noise back."""
    assert SCHEDULERS[name](1, 1.0).timesteps == pytest.approx((999,))
    assert euler(1, timestep_spacing="linspace", **{f"use_{name}_sigmas": True})[0] == [0]


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("reference", [LCMScheduler, TCDScheduler])
def test_lcm_timesteps_are_those_of_diffusers(reference: Any, strength: float) -> None:
    """All but four, where 11 * (45 / 33) and the like are 14.99... in diffusers, and exact here."""
    scheduler, different = reference(), []
    for steps in range(1, int(levels("lcm", strength)) + 1):
        scheduler.set_timesteps(steps, strength=strength)
        if lcm(steps, strength).timesteps != tuple(scheduler.timesteps.tolist()):
            different.append(steps)
    assert different == {0.6: [22, 26], 0.9: [33, 39]}.get(strength, [])


def test_ays_table_is_that_of_diffusers() -> None:
    assert ays(10).sigmas == pytest.approx(AysSchedules["StableDiffusionXLSigmas"], abs=5e-4)
    assert ays(10).timesteps == pytest.approx(AysSchedules["StableDiffusionXLTimesteps"], abs=0.5)


@pytest.mark.parametrize("steps", range(1, 51))
def test_ays_other_lengths_are_interpolated_in_log_sigma(steps: int) -> None:
    points = np.interp(np.linspace(0, 10, steps + 1), np.arange(11), np.log(AYS_SIGMAS))
    assert ays(steps).sigmas == pytest.approx([*np.exp(points[:-1]), 0], rel=1e-4)


@pytest.mark.parametrize("steps", [*range(1, 9), 10])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_invariants(name: str, steps: int) -> None:
    for schedule in (SCHEDULERS[name](steps, strength) for strength in allowed(name, steps)):
        sound(schedule, steps, linear_sigma_of if name == "linspace" else sigma_of)


def linear_sigma_of(timestep: float) -> float:
    """Between whole timesteps diffusers' linspace is linear in sigma."""
    return float(np.interp(timestep, np.arange(1000), SDXL_SIGMAS))


def sound(schedule: Schedule, steps: int, level: Callable[[float], float]) -> None:
    assert schedule.steps == len(schedule.timesteps) == steps
    assert len(schedule.sigmas) == steps + 1
    assert schedule.sigmas[-1] == 0
    assert all(a > b for a, b in pairwise(schedule.sigmas))
    assert all(a > b for a, b in pairwise(schedule.timesteps))
    assert all(0 <= t <= 999 for t in schedule.timesteps)
    assert schedule.sigmas[:-1] == pytest.approx([level(t) for t in schedule.timesteps], rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_strength_only_lowers_the_start(name: str, steps: int) -> None:
    schedules = [SCHEDULERS[name](steps, strength) for strength in allowed(name, steps)]
    starts = [s.sigmas[0] for s in schedules]
    assert all(s.steps == steps for s in schedules)
    assert starts == sorted(starts)
    assert schedules[-1] == SCHEDULERS[name](steps, 1.0)


@pytest.mark.parametrize(("strength", "start"), [*zip(STRENGTHS, STARTS, strict=True)])
@pytest.mark.parametrize("name", ["trailing", "turbo", *UNBOUNDED])
def test_strength_picks_the_first_level(name: str, strength: float, start: int) -> None:
    assert SCHEDULERS[name](1, strength).timesteps[0] == pytest.approx(start, abs=1e-6)


@pytest.mark.parametrize(("strength", "start"), [*zip(STRENGTHS, LCM_STARTS, strict=True)])
def test_strength_picks_a_distilled_level_for_lcm(strength: float, start: int) -> None:
    assert lcm(1, strength).timesteps == (start,)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", LEVELS)
def test_every_level_can_be_used_and_no_more(name: str, strength: float) -> None:
    most = LEVELS[name][STRENGTHS.index(strength)]
    assert SCHEDULERS[name](most, strength).steps == most
    with pytest.raises(RequestError) as raised:
        SCHEDULERS[name](most + 1, strength)
    message = str(raised.value)
    assert f"steps={most + 1} at strength={strength:g}" in message
    assert f"the {name} scheduler has {most} levels" in message
    assert f"at most {most} steps or raise strength" in message


@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_one_level_cannot_be_split(name: str) -> None:
    assert SCHEDULERS[name](1, 0.001).timesteps == pytest.approx((0,))
    with pytest.raises(RequestError, match=f"steps=2 at strength=0.001: the {name} scheduler has 1 level"):
        SCHEDULERS[name](2, 0.001)


@pytest.mark.parametrize("timesteps", [[999], [999, 749, 499, 249], [800], [399], [999, 0]])
def test_explicit_runs_what_it_is_given(timesteps: list[int]) -> None:
    schedule = explicit(timesteps)
    assert schedule.timesteps == tuple(timesteps)
    assert schedule.sigmas == (*(SDXL_SIGMAS[t] for t in timesteps), 0)


@pytest.mark.parametrize(
    "timesteps", [[], [1000], [999.5], [-1], [249, 499], [499, 499], [math.nan]], ids=repr
)
def test_explicit_refuses(timesteps: list[float]) -> None:
    with pytest.raises(RequestError) as raised:
        explicit(timesteps)
    assert f"timesteps={timesteps}" in str(raised.value)
    assert "from 999 down to 0" in str(raised.value)
    assert "timesteps=[999, 749, 499, 249]" in str(raised.value)


@pytest.mark.parametrize(
    ("strength", "timesteps"),
    [(1.0, (999, 749, 499, 249)), (0.5, (499, 374, 249, 124)), (0.1, (99, 74, 49, 24))],
)
def test_scaled_keeps_the_shape_of_its_list(strength: float, timesteps: tuple[int, ...]) -> None:
    assert scaled([999, 749, 499, 249])(4, strength).timesteps == timesteps


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_scaled_runs_its_own_number_of_steps(steps: int) -> None:
    with pytest.raises(RequestError) as raised:
        scaled([999, 749, 499, 249])(steps, 1.0)
    assert str(raised.value) == f"steps={steps}, but these weights run exactly 4: [999, 749, 499, 249]"


def test_sigma_and_timestep_are_inverse() -> None:
    assert [timestep_of(sigma_of(t)) for t in range(1000)] == list(range(1000))
    between = [t + part for t in range(999) for part in (0.1, 0.5, 0.9)]
    assert [timestep_of(sigma_of(t)) for t in between] == pytest.approx(between, rel=1e-9)


@pytest.mark.parametrize(("sigma", "timestep"), [(0.01, 0), (1e-9, 0), (14.7, 999), (1e9, 999)])
def test_timesteps_are_clamped(sigma: float, timestep: int) -> None:
    assert timestep_of(sigma) == timestep


@pytest.mark.parametrize(
    ("timesteps", "sigmas"),
    [
        ((999, 499), (14.6, 0.0)),
        ((999,), (14.6, 0.1)),
        ((499, 999), (1.6, 14.6, 0.0)),
        ((9, 9), (1.0, 1.0, 0.0)),
    ],
)
def test_a_schedule_is_sound(timesteps: tuple[float, ...], sigmas: tuple[float, ...]) -> None:
    with pytest.raises(AssertionError):
        Schedule(timesteps, sigmas)


@pytest.mark.parametrize("scheduler", [trailing, leading, lcm, turbo])
def test_strength_is_full_when_not_given(scheduler: Any) -> None:
    assert scheduler(4) == scheduler(4, 1.0)


@pytest.mark.parametrize("module", ["fewstep.schedulers", "fewstep.samplers"])
def test_import_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
