"""What diffusers takes where a file or a call is silent: held against the one that is installed."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest

from fewstep.checking.call_arguments import STRENGTHS
from fewstep.checking.case import STEPPERS
from fewstep.files.noise import CONSISTENCY, LEADING, LINEAR, PLAIN, silent_betas, silent_spacing
from fewstep.files.noise import NAMED_BETAS as BETAS


def default(function: Any, name: str) -> object:
    return inspect.signature(function).parameters[name].default


@pytest.mark.parametrize(
    "name", sorted({*CONSISTENCY, *LINEAR, *(stepper.name for stepper in STEPPERS.values())})
)
def test_betas_of_a_silent_file(name: str) -> None:
    made = getattr(diffusers, name).__init__
    assert {key: default(made, key) for key in BETAS} == dict(silent_betas(name))


@pytest.mark.parametrize("task", STRENGTHS)
def test_strength_of_a_silent_call(task: str) -> None:
    pipeline = getattr(diffusers, f"StableDiffusionXL{task}Pipeline")
    assert default(pipeline.__call__, "strength") == STRENGTHS[task]


@pytest.mark.parametrize("name", sorted({*LEADING, *LINEAR, *(s.name for s in STEPPERS.values())}))
def test_spacing_of_a_silent_file(name: str) -> None:
    assert default(getattr(diffusers, name).__init__, "timestep_spacing") == silent_spacing(name)


@pytest.mark.parametrize("name", sorted({*PLAIN, *LEADING, *(s.name for s in STEPPERS.values())}))
def test_who_can_have_zero_terminal_snr(name: str) -> None:
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert ("rescale_betas_zero_snr" in known) == (name not in PLAIN)
