"""Noise processes: literal figures, there and back, and whole trajectories of diffusers' schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from fewstep import RequestError, schedulers
from fewstep.denoiser import Conditioning, Denoiser
from fewstep.noise_process import (
    SDXL_NOISE,
    SDXL_SIGMAS,
    Edm,
    Flow,
    Level,
    NoiseProcess,
    VariancePreserving,
    scaled_linear,
    signal_of,
    zero_terminal,
)
from fewstep.samplers import SAMPLERS
from fewstep.schedulers import Schedule, explicit

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

ZERO_TERMINAL = zero_terminal(scaled_linear())
PROCESSES: dict[str, NoiseProcess] = {
    "epsilon": SDXL_NOISE,
    "v": VariancePreserving("v_prediction"),
    "sample": VariancePreserving("sample"),
    "zero terminal": VariancePreserving("v_prediction", ZERO_TERMINAL),
    "edm": Edm(),
    "edm epsilon": Edm("epsilon"),
    "flow": Flow(),
    "shifted flow": Flow(shift=3.0),
}


def told() -> Conditioning:
    return Conditioning(tokens=torch.zeros(1, 1, 1), added={})


def answer(x: Tensor, time: Tensor) -> Tensor:
    """What a network of no meaning says of latents and a time."""
    return (0.3 * x.flip(-1) + 0.1 * torch.sin(time / 100)).tanh()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepped(process: NoiseProcess, schedule: Schedule, x: Tensor, sampler: str = "euler") -> Tensor:
    denoise = Denoiser(lambda x, time, *_: answer(x, time.view(-1, 1, 1, 1)), told(), process=process)
    rule = SAMPLERS[sampler]
    noise = [draw(*x.shape, seed=i + 1) for i in range(rule.draws * schedule.steps)]
    *_, (_, x0) = rule.steps(denoise, x, schedule, noise, rule.eta)
    return x0


def theirs(scheduler: Any, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(answer(seen, t), t, x, return_dict=False)[0]
    return x


# --- literal figures


def test_the_figures_of_sdxl_are_those_of_its_scheduler() -> None:
    """As the release before had them, to the last bit."""
    assert [SDXL_NOISE.level(t) for t in (0, 499, 999)] == [
        0.029167158151720367, 1.612886194303876, 14.614641229333646
    ]  # fmt: skip
    assert (SDXL_NOISE.level(499.5), SDXL_NOISE.timestep(1.0)) == (1.6155802601603273, 353.89041059493974)
    assert [SDXL_NOISE.timestep(s) for s in (SDXL_SIGMAS[0], SDXL_SIGMAS[999], 1e-3, 99.0)] == [
        0,
        999,
        0,
        999,
    ]
    assert (SDXL_NOISE.input_scale(1.0), SDXL_NOISE.x0_weights(2.0)) == (1 / math.hypot(1, 1.0), (1.0, -2.0))


def test_v_and_sample() -> None:
    assert VariancePreserving("v_prediction").x0_weights(2.0) == (1 / 5, -2.0 / math.hypot(1, 2.0))
    assert VariancePreserving("sample").x0_weights(2.0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="prediction='x' is none of epsilon, v_prediction, sample"):
        VariancePreserving("x").x0_weights(1.0)


# --- there and back


@pytest.mark.parametrize("name", PROCESSES)
def test_levels_rise_and_lead_back(name: str) -> None:
    process = PROCESSES[name]
    levels = [process.level(t) for t in range(1000)]
    assert all(low < high for low, high in pairwise(levels))
    for t in (0, 1, 250, 499.25, 998, 999):
        assert process.timestep(process.level(t)) == pytest.approx(t, abs=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("timestep", [0, 17, 500, 999])
def test_the_picture_is_found_in_a_perfect_answer(name: str, timestep: int) -> None:
    """With picture and noise known, the answer that training asks for gives the picture back."""
    process = PROCESSES[name]
    x0, eps = draw(1, 4, 8, 8).double(), draw(1, 4, 8, 8, seed=1).double()
    level = process.level(timestep)
    x = signal_of(level) * x0 + float(level) * eps
    match process:
        case Edm(sigma_data=data):  # c_out * F = x0 - c_skip * x
            skip, out = process.x0_weights(level)
            assert (skip, abs(out)) == pytest.approx(
                (data**2 / (level**2 + data**2), level * data / math.hypot(level, data))
            )
            perfect = (x0 - skip * x) / out
        case Flow():
            perfect = eps - x0
        case _:
            alpha = 1 / math.hypot(1, level)
            perfect = {"epsilon": eps, "v_prediction": alpha * eps - alpha * level * x0, "sample": x0}[
                process.prediction
            ]
    a, b = process.x0_weights(level)
    assert torch.allclose(a * x + b * perfect, x0, atol=1e-9 * max(1.0, float(level)))


# --- trajectories of diffusers


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_zero_terminal_snr_as_diffusers(steps: int) -> None:
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        timestep_spacing="trailing", rescale_betas_zero_snr=True,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    process = PROCESSES["zero terminal"]
    schedule = schedulers.trailing(steps, process=process)
    assert schedule.timesteps == tuple(scheduler.timesteps.tolist())
    assert schedule.sigmas == pytest.approx(scheduler.sigmas.tolist(), rel=2e-4)
    assert schedule.sigmas[0] == pytest.approx(4096, rel=1e-6)
    x = draw(1, 4, 8, 8) * schedule.sigmas[0]
    assert torch.allclose(stepped(process, schedule, x), theirs(scheduler, x), atol=2e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_as_diffusers(prediction: str) -> None:
    scheduler = EDMEulerScheduler(
        sigma_min=0.002, sigma_max=120.0, sigma_data=0.5, prediction_type=prediction, sigma_schedule="karras"
    )
    scheduler.set_timesteps(6)
    process = Edm(prediction)
    schedule = schedulers.karras(6, process=process)
    assert schedule.sigmas == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)
    x = draw(1, 4, 8, 8) * schedule.sigmas[0]
    assert torch.allclose(stepped(process, schedule, x), theirs(scheduler, x), atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_flow_matching_as_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    process = Flow(shift)
    schedule = schedulers.trailing(steps, process=process)
    if 1000 % steps == 0:
        assert [float(level) for level in schedule.sigmas] == pytest.approx(
            scheduler.sigmas.tolist(), abs=1e-6
        )
    else:  # whole timesteps lie between
        schedule = explicit([1000 * (1 - i / steps) - 1 for i in range(steps)], process)
    x = draw(1, 4, 8, 8)
    assert torch.allclose(stepped(process, schedule, x), theirs(scheduler, x), atol=1e-5)


def test_a_flow_starts_at_pure_noise() -> None:
    """t = 1: no picture is in it, and nothing is divided by zero."""
    first = schedulers.trailing(1, process=Flow()).sigmas[0]
    assert (float(first), signal_of(first)) == (1.0, 0.0)
    for sampler in ("euler", "lcm", "ddim", "euler_ancestral", "dpmpp_2m"):
        for steps in (1, 3):
            picture = stepped(Flow(), schedulers.trailing(steps, process=Flow()), draw(1, 4, 8, 8), sampler)
            assert torch.isfinite(picture).all()


def test_a_number_is_a_level_of_signal_1() -> None:
    assert (signal_of(0.5), signal_of(Level(0.5, 0.25)), Level(0.5) + 1) == (1.0, 0.25, 1.5)


# --- what a flow has none of


@pytest.mark.parametrize("spacing", [schedulers.karras, schedulers.exponential, schedulers.ays])
def test_sigmas_of_a_flow_are_refused(spacing: Callable[..., Schedule]) -> None:
    with pytest.raises(RequestError, match="choose scheduler='trailing'"):
        spacing(4, process=Flow())


@pytest.mark.parametrize("sampler", ["tcd", "dpmpp_sde"])
def test_step_rules_of_sigma_space_are_refused(sampler: str) -> None:
    with pytest.raises(RequestError, match=sampler):
        stepped(Flow(), schedulers.trailing(4, process=Flow()), draw(1, 4, 8, 8), sampler)
