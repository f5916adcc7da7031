"""The noise process that a file says is run: parity with diffusers for it, or a sentence that names it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

import fewstep
from fewstep import CorruptModelError, RequestError
from tests.conftest import SCHEDULER, SIDE
from tests.loading import test_single_file

folder, single = test_single_file.folder, test_single_file.single  # fixtures
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers"),
    pytest.mark.usefixtures("kept_tokenizers"),
]
TOLERANCE = 2e-4  # of the largest latent; measured: at most 1.3e-4 where the first sigma is 4096, else 4e-6
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V = {"prediction_type": "v_prediction"}
ZERO = {**BETAS, **V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
COSXL = {**V, "sigma_max": 120.0, "sigma_data": 1.0, "sigma_schedule": "exponential"}
STEPS = 4


class SdxlFlow(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """What diffusers' SDXL pipeline asks of a scheduler beside what flow matching has."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, _timestep: object = None) -> Tensor:
        return sample


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a folder's scheduler is, and what fewstep runs for it."""

    scheduler: str
    config: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
    spacing: str
    tolerance: float = TOLERANCE


FOLDERS = {
    "v": Case(scheduler="EulerDiscreteScheduler", config={**SCHEDULER, **V}, spacing="leading"),
    "v, zero terminal SNR": Case(
        scheduler="EulerDiscreteScheduler", config=ZERO, spacing="trailing"
    ),
    "v, zero terminal SNR, DDIM": Case(
        scheduler="DDIMScheduler", ours={"sampler": "ddim"}, spacing="trailing", tolerance=5e-4,  # from 4096
        config={**ZERO, "clip_sample": False},
    ),
    "ancestral": Case(
        scheduler="EulerAncestralDiscreteScheduler", ours={"sampler": "euler_ancestral"},
        spacing="trailing", config=ZERO,
    ),
    "betas of its own": Case(
        scheduler="EulerDiscreteScheduler", spacing="leading",
        config={"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02,
                "timestep_spacing": "leading", "steps_offset": 0},
    ),
    "cosine betas": Case(
        scheduler="EulerDiscreteScheduler", spacing="trailing", tolerance=1e-3,  # betas in float32
        config={"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing", **V},
    ),
    "silent": Case(scheduler="EulerDiscreteScheduler", config=BETAS, spacing="linspace"),
    "EDM": Case(scheduler="EDMEulerScheduler", spacing="karras"),
    "EDM, v, exponential": Case(
        scheduler="EDMDPMSolverMultistepScheduler", ours={"sampler": "dpmpp_2m"}, spacing="exponential",
        config=COSXL,
    ),
    "flow": Case(
        scheduler="FlowMatchEulerDiscreteScheduler", config={"shift": 3.0}, spacing="linspace"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path) -> Any:
    return load_pipeline(sdxl_folder)


def load_pipeline(folder: Path) -> Any:
    loaded = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def rescheduled(root: Path, to: Path, name: str, config: Mapping[str, Any]) -> Path:
    """The same folder with another scheduler."""
    shutil.copytree(root, to, copy_function=os.link)
    index = json.loads((to / "model_index.json").read_text())
    for path, content in (
        ("model_index.json", {**index, "scheduler": ["diffusers", name]}),
        ("scheduler/scheduler_config.json", {"_class_name": name, **config}),
    ):
        (to / path).unlink()
        (to / path).write_text(json.dumps(content))
    return to


def steps_at(side: int) -> int:
    """Fewer of large pictures: of small ones more are looked at."""
    return STEPS if side < 512 else 2


def theirs(pipe: Any, name: str, config: Mapping[str, Any], side: int, scheduler: Any = None) -> Tensor:
    kind = SdxlFlow if name.startswith("FlowMatch") else getattr(diffusers, name)
    pipe.scheduler = scheduler or kind(**config)
    latents: Tensor = pipe(
        "a red fox", num_inference_steps=steps_at(side), guidance_scale=3.0, width=side, height=side,
        generator=torch.Generator().manual_seed(5), output_type="latent",
    ).images  # fmt: skip
    return latents


def ours(model: Path, side: int, **how: Any) -> Tensor:
    with fewstep.load(model, "base", device="cpu", precision="fp32") as engine:
        *_, last = engine.stream(
            "a red fox", steps_at(side), seed=5, guidance=3, width=side, height=side, **how
        )
    return last.latents


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_run_as_diffusers_runs_it(
    name: str, pipe: Any, sdxl_folder: Path, tmp_path: Path
) -> None:
    case = FOLDERS[name]
    model = rescheduled(sdxl_folder, tmp_path / "model", case.scheduler, case.config)
    plan = fewstep.plan("a red fox", STEPS, "base", model=model, **case.ours)
    expected = theirs(pipe, case.scheduler, case.config, SIDE)
    first = getattr(pipe.scheduler, "sigmas", [4096.0])[0]  # DDIM has none
    assert plan.request.scheduler == case.spacing
    assert float(plan.schedule.sigmas[0]) == pytest.approx(float(first), rel=1e-3)
    assert distance(ours(model, SIDE, **case.ours), expected) < case.tolerance


ONE = torch.tensor(1.0)
MEAN_AND_STD = {"edm_mean": torch.arange(4.0).view(1, 4, 1, 1), "edm_std": torch.full((1, 4, 1, 1), 5.0)}
SIGMAS = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
MARKS: dict[str, tuple[Mapping[str, Tensor], Mapping[str, str], str, Mapping[str, Any]]] = {
    "v_pred": ({"v_pred": torch.zeros(0)}, {}, "EulerDiscreteScheduler", {**SCHEDULER, **V}),
    "v_pred, ztsnr": ({"v_pred": ONE, "ztsnr": ONE.clone()}, {}, "EulerDiscreteScheduler", ZERO),
    "modelspec v": ({}, {"modelspec.prediction_type": "v"}, "EulerDiscreteScheduler", {**SCHEDULER, **V}),
    "modelspec flow": ({}, {"modelspec.prediction_type": "flow"}, "FlowMatchEulerDiscreteScheduler", {}),
    "CosXL": (SIGMAS, {}, "EDMEulerScheduler", COSXL),
    "Playground": (MEAN_AND_STD, {}, "EDMEulerScheduler", {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def large(folder: Path) -> Any:
    return load_pipeline(folder)


@pytest.mark.parametrize("name", MARKS)
def test_a_file_is_run_as_its_mark_says(name: str, large: Any, single: Path, tmp_path: Path) -> None:
    tensors, metadata, scheduler, config = MARKS[name]
    path = tmp_path / "mine.safetensors"
    save_file({**load_file(single), **tensors}, path, dict(metadata))
    got = distance(ours(path, 512), theirs(large, scheduler, config, 512))
    assert got < TOLERANCE


def test_zero_terminal_snr_starts_at_4096(sdxl_folder: Path, tmp_path: Path) -> None:
    model = rescheduled(sdxl_folder, tmp_path / "model", "EulerDiscreteScheduler", ZERO)
    plan = fewstep.plan("a fox", STEPS, "base", model=model)
    assert (round(plan.schedule.sigmas[0]), round(plan.start)) == (4096, 4096)
    assert fewstep.inspect(model).noise == (
        "variance-preserving, v_prediction, zero terminal SNR (EulerDiscreteScheduler's configuration)"
    )


REFUSED: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "a shift of its own for each size": (
        "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True},
        "flow matching with use_dynamic_shifting, which fewstep does not run: give it a FlowMatchEuler",
    ),
    "flow sigmas elsewhere": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3},
        "the class DPMSolverMultistepScheduler, which fewstep does not run: .* with shift=3 alone",
    ),
    "another rho": ("EDMEulerScheduler", {"rho": 5}, "has rho=5, and fewstep spaces sigmas with 7"),
    "another length": ("DDIMScheduler", {"num_train_timesteps": 500}, "num_train_timesteps=500, and fewstep"),
    "betas that nobody has": ("DDIMScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid', and"),
    "no number": ("EDMEulerScheduler", {"sigma_max": "wide"}, "sigma_max='wide': it should be a number"),
    "an EDM of samples": ("EDMEulerScheduler", {"prediction_type": "sample"}, "prediction_type='sample'"),
    "no betas": ("DDIMScheduler", {"trained_betas": [0.1, 2.0]}, "betas are not 1000 numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_by_name(name: str, sdxl_folder: Path, tmp_path: Path) -> None:
    scheduler, config, sentence = REFUSED[name]
    model = rescheduled(sdxl_folder, tmp_path / "model", scheduler, config)
    for door in (fewstep.plan, fewstep.generate):
        with pytest.raises(CorruptModelError, match=sentence):
            door("a fox", 2, "base", model=model)


# --- what is said


def warnings(model: Path, mode: str = "base", **how: Any) -> str:
    return "; ".join(fewstep.plan("a fox", model=model, mode=mode, **how).warnings)


def test_a_contradiction_is_said(sdxl_folder: Path, tmp_path: Path) -> None:
    model = rescheduled(sdxl_folder, tmp_path / "model", "EulerDiscreteScheduler", ZERO)
    assert "prediction='epsilon' is run because you say so" in warnings(model, prediction="epsilon")
    assert warnings(model, prediction="v_prediction") == warnings(model) == ""
    flow = rescheduled(sdxl_folder, tmp_path / "flow", "FlowMatchEulerDiscreteScheduler", {})
    with pytest.raises(RequestError, match=r"prediction='epsilon' cannot act on .* flow matching, shift 1"):
        fewstep.plan("a fox", model=flow, prediction="epsilon")


def test_few_steps_over_another_process_are_said_or_refused(
    sdxl_folder: Path, lora_file: Path, tmp_path: Path
) -> None:
    v = rescheduled(sdxl_folder, tmp_path / "v", "EulerDiscreteScheduler", ZERO)
    edm = rescheduled(sdxl_folder, tmp_path / "edm", "EDMEulerScheduler", {})
    assert "was distilled on the variance-preserving process" in warnings(
        v, "lcm-lora", accelerator=lora_file
    )
    assert "accelerator= must have been distilled on such" in warnings(edm, "lcm-lora", accelerator=lora_file)
    with pytest.raises(
        RequestError, match=r"mode='lcm-lora' does not fit .* sigma_data 0.5; use mode='base'"
    ):
        fewstep.plan("a fox", model=edm, mode="lcm-lora")
    plan = fewstep.plan(
        "a fox", 2, "turbo", model=v
    )  # the model is itself the turbo one, and says what it is
    assert (round(plan.schedule.sigmas[0]), plan.warnings) == (4096, ())


@pytest.mark.parametrize(
    ("marks", "metadata", "sentence"),
    [
        (["v_pred"], "epsilon", "its tensor v_pred says v_prediction and its metadata"),
        ([], "rectified", "none that fewstep knows: give prediction="),
    ],
)
def test_what_a_file_says_twice_is_said(
    marks: list[str],
    metadata: str,
    sentence: str,
    single: Path,
    tmp_path: Path,
) -> None:
    path, extra = tmp_path / "mine.safetensors", dict.fromkeys(marks, torch.zeros(0))
    save_file({**load_file(single), **extra}, path, {"modelspec.prediction_type": metadata})
    assert sentence in warnings(path)
    assert any(sentence in note for note in fewstep.inspect(path).notes)
