"""Every sampler against its diffusers scheduler: same fake UNet, same noise, every step compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from torch import Tensor

from fewstep.denoiser import Conditioning, Denoiser
from fewstep.noise_process import VariancePreserving
from fewstep.samplers import SAMPLERS
from fewstep.schedulers import SCHEDULERS, Schedule, explicit

TOLERANCE = 1e-4  # of the largest value, at every step
STEPS = (1, 2, 3, 4, 8)
ndarray_copy = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")
SHAPE = (2, 4, 8, 8)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ALL = ("epsilon", "v_prediction", "sample")
SOME = ("epsilon", "v_prediction")  # diffusers' ancestral and SDE schedulers know no "sample"
MIX = ((0.9, -0.4, 0.2, 0.1), (0.3, 0.8, -0.5, 0.2), (-0.2, 0.4, 1.0, -0.3), (0.1, -0.2, 0.3, 0.7))


def network(x: Tensor, timestep: Tensor) -> Tensor:
    """A UNet in one line: (B, 4, h, w), (B,) → (B, 4, h, w)."""
    t = timestep.float().view(-1, 1, 1, 1) / 1000
    mixed = torch.einsum("oc,bchw->bohw", torch.tensor(MIX, device=x.device), x)
    return torch.tanh(mixed + t) + 0.3 * torch.sin(5 * t)


def unet(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
    """`network` behind the seam of `fewstep.denoiser.Network`."""
    return network(x, timestep)


def denoiser(prediction: str, device: str = "cpu") -> Denoiser:
    batch = SHAPE[0]
    tokens, pooled, sizes = (torch.zeros(batch, *rest, device=device) for rest in ((77, 8), (8,), (6,)))
    return Denoiser(
        unet,
        Conditioning(tokens, {"text_embeds": pooled, "time_ids": sizes}),
        process=VariancePreserving(prediction),
    )


def draws() -> Iterator[Tensor]:
    """The same unending noise each time: the start, then what the steps take."""
    generator = torch.Generator().manual_seed(7)
    while True:
        yield torch.randn(SHAPE, generator=generator)


def start_scale(name: str, schedule: Schedule) -> float:
    sigma = schedule.sigmas[0]
    return math.hypot(1, sigma) if SAMPLERS[name].preserving else sigma


def ours(name: str, schedule: Schedule, prediction: str, eta: float) -> list[Tensor]:
    """x after each step, from pure noise."""
    sampler, source = SAMPLERS[name], draws()
    x = next(source) * start_scale(name, schedule)
    noise = [next(source) for _ in range(sampler.draws * schedule.steps)]
    return [x for x, _ in sampler.steps(denoiser(prediction), x, schedule, noise, eta)]


def theirs(scheduler: Any, **options: Any) -> list[Tensor]:
    """diffusers' sample after each step, from pure noise."""
    generator = torch.Generator().manual_seed(7)
    sample = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    if isinstance(scheduler, DPMSolverSDEScheduler):
        scheduler.noise_sampler = lambda *_: torch.randn(SHAPE, generator=generator)
    else:
        options["generator"] = generator
    samples = []
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(sample, t), t.expand(len(sample)))
        sample = scheduler.step(output, t, sample, return_dict=False, **options)[0]
        samples.append(sample)
    if isinstance(scheduler, DPMSolverSDEScheduler):  # two calls to a step, but one for the last
        return [*samples[1::2], samples[-1]]
    return samples


def error(name: str, schedule: Schedule, x: list[Tensor], samples: list[Tensor]) -> float:
    """The largest difference at any step, as a share of the largest value of diffusers there."""
    assert len(x) == len(samples) == schedule.steps
    scales = [math.hypot(1, s) if SAMPLERS[name].preserving else 1.0 for s in schedule.sigmas[1:]]
    return max(
        float((a - b * scale).abs().max() / (b * scale).abs().max())
        for a, b, scale in zip(x, samples, scales, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The diffusers scheduler that a sampler answers to."""

    build: Callable[..., Any]  # takes prediction_type
    levels: str  # the fewstep scheduler with the same timesteps
    predictions: tuple[str, ...] = ALL
    etas: tuple[float, ...] = ()  # those to try, where diffusers' step takes one


def built(scheduler: Callable[..., Any], **config: Any) -> Callable[..., Any]:
    return lambda prediction_type: scheduler(**BETAS, **config, prediction_type=prediction_type)


DDIM = {"steps_offset": 1, "set_alpha_to_one": True, "clip_sample": False}
REFERENCES = {
    "euler": Reference(build=built(EulerDiscreteScheduler, timestep_spacing="trailing"), levels="trailing"),
    "euler_ancestral": Reference(
        build=built(EulerAncestralDiscreteScheduler, timestep_spacing="trailing"),
        levels="trailing",
        predictions=SOME,
    ),
    "lcm": Reference(build=built(LCMScheduler), levels="lcm"),
    "tcd": Reference(build=built(TCDScheduler), levels="lcm", etas=(0.3, 0.0, 1.0)),
    "ddim": Reference(
        build=built(DDIMScheduler, timestep_spacing="leading", **DDIM), levels="leading", etas=(0.0, 1.0)
    ),
    "dpmpp_2m": Reference(
        build=built(DPMSolverMultistepScheduler, timestep_spacing="trailing"), levels="trailing"
    ),
    "dpmpp_sde": Reference(
        build=built(DPMSolverSDEScheduler, timestep_spacing="trailing"), levels="trailing", predictions=SOME
    ),
}
CASES = [
    pytest.param(
        name, prediction, eta, id="-".join([name, prediction, *([] if eta is None else [f"{eta:g}"])])
    )
    for name, reference in REFERENCES.items()
    for prediction in reference.predictions
    for eta in reference.etas or (None,)
]


def test_every_sampler_has_a_reference() -> None:
    assert REFERENCES.keys() == SAMPLERS.keys()


@ndarray_copy
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("name", "prediction", "eta"), CASES)
def test_parity(name: str, prediction: str, eta: float | None, steps: int) -> None:
    reference = REFERENCES[name]
    schedule = SCHEDULERS[reference.levels](steps, 1.0)
    scheduler = reference.build(prediction)
    scheduler.set_timesteps(steps)
    samples = theirs(scheduler, **({} if eta is None else {"eta": eta}))
    x = ours(name, schedule, prediction, SAMPLERS[name].eta if eta is None else eta)
    assert error(name, schedule, x, samples) < TOLERANCE


@ndarray_copy
@pytest.mark.parametrize("steps", [2, 3, 4, 8])
@pytest.mark.parametrize("levels", ["karras", "exponential"])
@pytest.mark.parametrize("name", ["euler", "dpmpp_sde"])
def test_parity_between_whole_timesteps(name: str, levels: str, steps: int) -> None:
    kinds = {"euler": EulerDiscreteScheduler, "dpmpp_sde": DPMSolverSDEScheduler}
    scheduler = kinds[name](**BETAS, timestep_spacing="linspace", **{f"use_{levels}_sigmas": True})
    scheduler.set_timesteps(steps)
    schedule = SCHEDULERS[levels](steps, 1.0)
    x = ours(name, schedule, "epsilon", SAMPLERS[name].eta)
    assert error(name, schedule, x, theirs(scheduler)) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "timesteps"),
    [
        ("lcm", [800]),
        ("lcm", [399]),
        ("lcm", [999, 749, 499, 249]),
        ("lcm", [999, 499, 19]),
        ("tcd", [999, 749, 499, 249]),
        ("tcd", [999, 499, 0]),
    ],
    ids=repr,
)
def test_parity_on_explicit_timesteps(name: str, timesteps: list[int]) -> None:
    """Hyper-SD's, DMD2's and PCM's lists, and the lowest levels of each sampler."""
    scheduler = REFERENCES[name].build("epsilon")
    scheduler.set_timesteps(timesteps=timesteps)
    schedule = explicit(timesteps)
    x = ours(name, schedule, "epsilon", SAMPLERS[name].eta)
    assert error(name, schedule, x, theirs(scheduler)) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_parity_of_ddim_on_trailing_levels(steps: int) -> None:
    """As Hyper-SD runs it; diffusers' steps of 1000 // n meet the levels where n divides 1000."""
    scheduler = DDIMScheduler(**BETAS, timestep_spacing="trailing", **DDIM)
    scheduler.set_timesteps(steps)
    schedule = SCHEDULERS["trailing"](steps, 1.0)
    assert error("ddim", schedule, ours("ddim", schedule, "epsilon", 0.0), theirs(scheduler)) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("euler", 14.615),
        ("euler_ancestral", 14.615),
        ("dpmpp_sde", 14.615),
        ("lcm", 14.649),
        ("tcd", 14.649),
        ("dpmpp_2m", 14.649),
        ("ddim", 14.649),
    ],
)
def test_start_scale(name: str, scale: float) -> None:
    assert start_scale(name, explicit([999])) == pytest.approx(scale, abs=5e-4)


@ndarray_copy
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ddim"])
@pytest.mark.parametrize("steps", STEPS)
def test_start_scale_is_that_of_diffusers(name: str, steps: int) -> None:
    reference = REFERENCES[name]
    scheduler = reference.build("epsilon")
    scheduler.set_timesteps(steps)
    schedule = SCHEDULERS[reference.levels](steps, 1.0)
    units = math.hypot(1, schedule.sigmas[0]) if SAMPLERS[name].preserving else 1.0
    assert float(scheduler.init_noise_sigma) * units == pytest.approx(start_scale(name, schedule), rel=1e-5)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_yields_each_step_as_it_happens(name: str, steps: int) -> None:
    sampler, calls = SAMPLERS[name], []

    def denoise(x: Tensor, sigma: object) -> Tensor:
        calls.append(sigma)
        return x * 0.5

    noise = [torch.zeros(SHAPE)] * (sampler.draws * steps)
    running = sampler.steps(
        denoise, torch.ones(SHAPE), SCHEDULERS["trailing"](steps, 1.0), noise, sampler.eta
    )
    assert not calls
    next(running)
    assert len(calls) <= 2
    assert len(list(running)) == steps - 1


@pytest.mark.parametrize("prediction", ALL)
@pytest.mark.parametrize(
    ("name", "eta"),
    [(n, eta) for n, s in SAMPLERS.items() for eta in ((0.0, 0.3, 1.0) if s.tunable else (s.eta,))],
)
def test_no_device_value_is_read(name: str, prediction: str, eta: float) -> None:
    """Tensors on `meta` have no values: reading one raises."""
    sampler, x = SAMPLERS[name], torch.empty(SHAPE, device="meta")
    denoise, schedule = denoiser(prediction, "meta"), SCHEDULERS["trailing"](4, 1.0)
    for latents, x0 in sampler.steps(denoise, x, schedule, [x] * (sampler.draws * 4), eta):
        assert latents.shape == x0.shape == SHAPE
        assert latents.device.type == x0.device.type == "meta"


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_start_is_left_as_it_was(name: str) -> None:
    sampler, x = SAMPLERS[name], torch.ones(SHAPE)
    noise = [torch.ones(SHAPE) for _ in range(sampler.draws * 4)]
    list(sampler.steps(denoiser("epsilon"), x, SCHEDULERS["trailing"](4, 1.0), noise, sampler.eta))
    assert all(torch.equal(t, torch.ones(SHAPE)) for t in (x, *noise))


@pytest.mark.parametrize("name", ["euler_ancestral", "tcd", "ddim", "dpmpp_sde"])
def test_eta_zero_takes_no_noise(name: str) -> None:
    schedule = SCHEDULERS["lcm"](4, 1.0)
    x = next(draws()) * start_scale(name, schedule)
    noise = [torch.full(SHAPE, math.nan)] * (SAMPLERS[name].draws * 4)
    *_, (last, _) = SAMPLERS[name].steps(denoiser("epsilon"), x, schedule, noise, 0.0)
    assert last.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_takes_no_noise(name: str) -> None:
    sampler, schedule = SAMPLERS[name], explicit([999])
    x = next(draws()) * start_scale(name, schedule)
    noise = [torch.full(SHAPE, math.nan)] * sampler.draws
    ((last, _),) = sampler.steps(denoiser("epsilon"), x, schedule, noise, sampler.eta)
    assert last.isfinite().all()
