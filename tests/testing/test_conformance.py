"""`fewstep.testing.problems`: the modes of fewstep keep the rules, and each broken rule is found."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from fewstep import Guidance, Recipe, RequestError, Steps, modes
from fewstep.samplers import SAMPLERS, Sampler
from fewstep.schedulers import SCHEDULERS, Schedule, explicit
from fewstep.testing import check_backend, problems

Path = Iterator[tuple[Any, Any]]
trailing, lcm = SCHEDULERS["trailing"], SAMPLERS["lcm"].steps
calls = itertools.count()

SOUND = Recipe(
    mode="sound",
    title="keeps all rules",
    schedulers=("own",),
    samplers=("own",),
    own_schedulers={"own": trailing},
    own_samplers={"own": SAMPLERS["euler_ancestral"]},
    steps=Steps(low=1, default=4, high=8),
    guidance=Guidance(kind="none"),
    licence="MIT",
    source="this file",
)


@pytest.mark.parametrize("mode", modes.mode_names())
def test_built_in_modes_keep_the_rules(mode: str) -> None:
    assert problems(modes.find_recipe(mode)) == []


def test_the_sound_one_is_sound() -> None:
    assert problems(SOUND) == []
    check_backend(SOUND)


# --- data

DATA: dict[str, tuple[Any, str]] = {
    "no recipe": ({"mode": "x"}, "is not a fewstep.Recipe"),
    "sampler": (replace(SOUND, samplers=("heunn",)), "sampler 'heunn' is unknown"),
    "steps": (replace(SOUND, steps=Steps(low=4, default=1, high=8)), "low <= default <= high"),
    "guidance": (replace(SOUND, guidance=Guidance(kind="none", default=7.0)), "has no scale"),
    "on tiny": (replace(SOUND, overrides={"tiny": {"samplers": ("lcn",)}}), "on tiny: sampler 'lcn'"),
}


# --- schedulers, and what is said of them


def made(timesteps: Sequence[float], sigmas: Sequence[float]) -> Schedule:
    """Levels that `Schedule` itself would refuse."""
    schedule = object.__new__(Schedule)
    object.__setattr__(schedule, "timesteps", tuple(timesteps))
    object.__setattr__(schedule, "sigmas", tuple(sigmas))
    return schedule


def divides(steps: int, strength: float) -> Schedule:
    raise ZeroDivisionError


def refuses(steps: int, strength: float) -> Schedule:
    raise RequestError("not today")


def babbles(steps: int, strength: float) -> Schedule:
    raise RequestError("not\ntoday")


def lists(steps: int, strength: float) -> Any:
    return [999, 499]


def one_more(steps: int, strength: float) -> Schedule:
    return trailing(steps + 1, strength)


def ignores_strength(steps: int, strength: float) -> Schedule:
    return trailing(steps, 1.0)


def rises(steps: int, strength: float) -> Schedule:
    sound = explicit(range(steps)[::-1])
    return made(sound.timesteps[::-1], (*sound.sigmas[-2::-1], 0.0))


def ends_noisy(steps: int, strength: float) -> Schedule:
    sound = trailing(steps, strength)
    return made(sound.timesteps, (*sound.sigmas[:-1], 0.01))


def off_the_scale(steps: int, strength: float) -> Schedule:
    sound = trailing(steps, strength)
    return made([t + 900 for t in sound.timesteps], sound.sigmas)


def other_sigmas(steps: int, strength: float) -> Schedule:
    sound = trailing(steps, strength)
    return made(sound.timesteps, [sigma / 2 for sigma in sound.sigmas])


def not_numbers(steps: int, strength: float) -> Schedule:
    sound = trailing(steps, strength)
    return made(sound.timesteps, [*[math.nan] * steps, 0.0])


def never_the_same(steps: int, strength: float) -> Schedule:
    return explicit([int(400 * strength) - i - next(calls) % 2 for i in range(steps)])


def takes_no_strength(steps: int) -> Schedule:
    return trailing(steps, 1.0)


LEVELS: list[tuple[Any, str]] = [
    (divides, "not ZeroDivisionError"),
    (refuses, "should run at the mode's defaults, but refuses: not today"),
    (babbles, "in one line"),
    (lists, "a Schedule, not list"),
    (one_more, "should give 1 timesteps and 2 sigmas"),
    (ignores_strength, "at most 600 there, not 999"),
    (rises, "should fall"),
    (ends_noisy, "the last sigma to 0"),
    (off_the_scale, "in [0, 999]"),
    (other_sigmas, "those of the timesteps"),
    (not_numbers, "should fall"),
    (never_the_same, "equal calls should give equal levels"),
    (takes_no_strength, "not TypeError"),
]


# --- samplers, and what is said of them


def stops_early(denoise: Any, x: Any, schedule: Schedule, noise: Any, eta: float) -> Path:
    yield next(lcm(denoise, x, schedule, noise, eta))


def runs_on(denoise: Any, x: Any, schedule: Schedule, noise: Any, eta: float) -> Path:
    yield from [*lcm(denoise, x, schedule, noise, eta)] * 2


def is_no_generator(denoise: Any, x: Any, schedule: Schedule, noise: Any, eta: float) -> Any:
    return [*lcm(denoise, x, schedule, noise, eta)]


def takes_no_eta(denoise: Any, x: Any, schedule: Schedule, noise: Any) -> Path:
    return lcm(denoise, x, schedule, noise, 0.0)


def takes_too_much(denoise: Any, x: Any, schedule: Schedule, noise: Any, eta: float) -> Path:
    for i, target in enumerate(schedule.sigmas[1:]):
        x0 = denoise(x, schedule.sigmas[i])
        x = x0 + target * (noise[2 * i] + noise[2 * i + 1]) / math.sqrt(2)
        yield x, x0


def noises(share: float, least: float = 0.0) -> Any:
    """A step rule whose latents hold `share` of the noise that they should."""

    def steps(denoise: Any, x: Any, schedule: Schedule, noise: Any, eta: float) -> Path:
        for i, target in enumerate(schedule.sigmas[1:]):
            x0 = denoise(x, schedule.sigmas[i])
            x = x0 + max(share * target, least) * noise[i]
            yield x, x0

    return steps


def stays(denoise: Any, x: Any, schedule: Schedule, noise: Any, eta: float) -> Path:
    for sigma in schedule.sigmas[:-1]:
        yield x, denoise(x, sigma)


def steps_too_far(denoise: Any, x: Any, schedule: Schedule, noise: Any, eta: float) -> Path:
    for sigma, target in itertools.pairwise(schedule.sigmas):
        x0 = denoise(x, sigma)
        x = x0 + (target / sigma) ** 2 * (x - x0)  # Euler's ratio, squared
        yield x, x0


def writes_in_noise(denoise: Any, x: Any, schedule: Schedule, noise: Any, eta: float) -> Path:
    for i, target in enumerate(schedule.sigmas[1:]):
        x0 = denoise(x, schedule.sigmas[i])
        noise[i] *= target
        x = x0 + noise[i]
        yield x, x0


def writes_in_latents(denoise: Any, x: Any, schedule: Schedule, noise: Any, eta: float) -> Path:
    x += 0 * noise[0] + 1
    yield from lcm(denoise, x, schedule, noise, eta)


def flips(denoise: Any, x: Any, schedule: Schedule, noise: Any, eta: float) -> Path:
    sign = (-1) ** next(calls)
    yield from lcm(denoise, x, schedule, [sign * each for each in noise], eta)


def needs_torch(denoise: Any, x: Any, schedule: Schedule, noise: Any, eta: float) -> Path:
    yield x.clamp(-1, 1), x


def asks_at_the_next_level(denoise: Any, x: Any, schedule: Schedule, noise: Any, eta: float) -> Path:
    for sigma in schedule.sigmas[1:]:
        x = denoise(x, sigma)
        yield x, x


RULES: list[tuple[Any, str]] = [
    (stops_early, "4 times, not 1"),
    (runs_on, "1 times, not more"),
    (is_no_generator, "generator should yield"),
    (takes_no_eta, "TypeError"),
    (takes_too_much, "more noise than its draws=1"),
    (noises(1.0, least=0.1), "noise of 0.1 is left"),
    (noises(0.5), "times its level"),
    (noises(2.0), "times its level"),
    (stays, "should be the picture, but noise of 14 is left"),
    (steps_too_far, "times its level"),
    (writes_in_noise, "leave the latents and the noise"),
    (writes_in_latents, "leave the latents and the noise"),
    (flips, "equal runs should give equal latents"),
    (needs_torch, "arithmetic only"),
    (asks_at_the_next_level, "sigma should be above 0"),
]


def test_a_step_rule_of_ones_own_is_sound() -> None:
    assert problems(stepping(noises(1.0))) == []


def levels(scheduler: Any) -> Recipe:
    return replace(SOUND, own_schedulers={"own": scheduler})


def stepping(steps: Any) -> Recipe:
    return replace(SOUND, own_samplers={"own": Sampler(steps=steps, draws=1)})


WRONG = {
    **DATA,
    **{scheduler.__name__: (levels(scheduler), says) for scheduler, says in LEVELS},
    **{f"{steps.__name__}-{says}": (stepping(steps), says) for steps, says in RULES},
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_broken_rule_is_found(fault: str) -> None:
    recipe, says = WRONG[fault]
    found = problems(recipe)
    assert any(says in one for one in found), found
    assert all("\n" not in one for one in found)
    with pytest.raises(AssertionError) as caught:
        check_backend(recipe)
    assert all(f"\n- {one}" in str(caught.value) for one in found)


def test_all_faults_of_a_mode_are_told() -> None:
    both = replace(levels(divides), samplers=("own", "lcm"), own_samplers=stepping(stays).own_samplers)
    assert len(problems(replace(both, schedulers=("own", "trailing")))) == 2


def test_a_fault_on_one_family_is_found() -> None:
    late = replace(SOUND, own_samplers={**SOUND.own_samplers, "late": Sampler(steps=stays, draws=1)})
    assert problems(late) == []
    (found,) = problems(replace(late, overrides={"tiny": {"samplers": ("late",)}}))
    assert found.startswith("sampler 'late'")


def test_levels_may_be_for_some_steps_only() -> None:
    def even(steps: int, strength: float) -> Schedule:
        if steps % 2:
            raise RequestError(f"steps={steps}: give an even number")
        return trailing(steps, strength)

    assert problems(levels(even)) == []
