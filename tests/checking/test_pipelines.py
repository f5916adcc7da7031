"""Wrong pipelines, as people make them: each fault is found, and its line mends it."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from fewstep import modes
from fewstep.checking import check
from tests.checking.conftest import Make, Type, found

Spoil = Callable[[Any], Any]
BASE = "stabilityai/stable-diffusion-xl-base-1.0"
EULER = diffusers.EulerDiscreteScheduler
WIDTHS = (128, 256, 512, 512)  # of SDXL's VAE
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning:peft"),
]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What somebody did to a pipeline that was right."""

    mode: str
    spoil: Spoil
    what: str  # in the finding
    severity: str = "wrong"
    stored: bool = True  # can it be seen in the files?


def scheduler(kind: Any, **config: Any) -> Spoil:
    """Another scheduler, made from the old one's configuration as usual."""

    def spoil(pipe: Any) -> None:
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **config)

    return spoil


def configured(part: str, **config: Any) -> Spoil:
    return lambda pipe: getattr(pipe, part).register_to_config(**config)


def bare(pipe: Any) -> None:
    """A scheduler made without the model's configuration: other betas, other levels."""
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing", steps_offset=1)


def plain_unet(pipe: Any) -> None:
    unet = pipe.unet.config
    pipe.unet = diffusers.UNet2DConditionModel.from_config(unet, time_cond_proj_dim=None)


def lcm_unet(pipe: Any) -> None:
    pipe.unet = diffusers.UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=32)


def fp16_vae(pipe: Any) -> None:
    pipe.vae.register_to_config(force_upcast=False, block_out_channels=WIDTHS)
    pipe.to(torch.float16)


def another_accelerator(pipe: Any) -> None:
    pipe.load_lora_weights(pipe.lora, adapter_name="sdxl_lightning_4step")
    pipe.set_adapters(["lcm", "sdxl_lightning_4step"])


def accelerated(pipe: Any) -> None:
    pipe.load_lora_weights(pipe.lora, adapter_name="lcm-lora")


def padded(pipe: Any) -> None:
    pipe.tokenizer_2.pad_token = "<|endoftext|>"


def without(name: str) -> Spoil:
    return lambda pipe: setattr(pipe, name, None)


FAULTS = {
    # recipes.md, "What users trip over" 1: the scheduler
    "turbo on SDXL's own scheduler": Fault(
        mode="turbo", spoil=scheduler(EULER, timestep_spacing="leading"), what="starts at timestep 1, not 999"
    ),
    "turbo on DDIM": Fault(
        mode="turbo", spoil=scheduler(diffusers.DDIMScheduler), what="the scheduler is DDIMScheduler"
    ),
    "turbo without spacing": Fault(
        mode="turbo", what="'linspace'",
        spoil=scheduler(diffusers.EulerAncestralDiscreteScheduler, timestep_spacing="linspace"),
    ),
    "turbo on Karras' levels": Fault(
        mode="turbo", spoil=scheduler(EULER, use_karras_sigmas=True), what="levels are 'karras'"
    ),
    "a bare scheduler": Fault(mode="turbo", spoil=bare, what="noise is not SDXL's (beta_schedule='linear'"),
    "lcm on Euler": Fault(
        mode="lcm", spoil=scheduler(EULER), what="mode 'lcm' steps by LCMScheduler"
    ),
    "lcm on other origins": Fault(
        mode="lcm", spoil=configured("scheduler", original_inference_steps=100),
        what="original_inference_steps=100, and needs 50",
    ),
    "base on LCM's scheduler": Fault(
        mode="base", spoil=scheduler(diffusers.LCMScheduler), what="made for other weights"
    ),
    "base without offset": Fault(
        mode="base", spoil=configured("scheduler", steps_offset=0), what="steps_offset=0", severity="doubtful"
    ),
    "base on clipping DDIM": Fault(
        mode="base", spoil=scheduler(diffusers.DDIMScheduler, clip_sample=True), what="clip_sample=True"
    ),
    "a rest of noise": Fault(
        mode="turbo", spoil=scheduler(EULER, final_sigmas_type="sigma_min"), what="sigma 0.029",
        severity="doubtful",
    ),
    "zero terminal SNR": Fault(
        mode="base", spoil=configured("scheduler", rescale_betas_zero_snr=True), what="rescale_betas_zero_snr"
    ),
    "turbo as v-prediction": Fault(
        mode="turbo", spoil=configured("scheduler", prediction_type="v_prediction"), what="needs 'epsilon'"
    ),
    "a v-prediction model as epsilon": Fault(
        mode="base", spoil=configured("unet", _name_or_path="me/anime-xl-vpred"), what="needs 'v_prediction'",
        severity="doubtful", stored=False,
    ),
    # 4: the guidance, and the UNet that takes it
    "lcm on SDXL's UNet": Fault(mode="lcm", spoil=plain_unet, what="the UNet has no guidance embedding"),
    "turbo on an LCM UNet": Fault(mode="turbo", spoil=lcm_unet, what="the UNet has a guidance embedding"),
    "base's UNet as turbo's": Fault(
        mode="turbo", spoil=configured("unet", _name_or_path=f"~/.cache/{BASE.replace('/', '--')}/snapshots"),
        what="SDXL base's own by its name", stored=False,
    ),
    "an inpainting UNet": Fault(
        mode="base", spoil=configured("unet", in_channels=9), what="the UNet takes 9 channels"
    ),
    # 6: the VAE
    "SDXL's VAE in fp16": Fault(
        mode="base", spoil=fp16_vae, what="force_upcast=False", severity="doubtful"
    ),
    "SD 1.5's VAE": Fault(mode="base", spoil=configured("vae", scaling_factor=0.18215), what="SD 1.5's VAE"),
    "a VAE scaled as taesdxl": Fault(
        mode="base", spoil=configured("vae", scaling_factor=1.0, block_out_channels=WIDTHS),
        what="scaling_factor=1.0, and for SDXL's latents needs 0.13025",
    ),
    "Flux's VAE": Fault(
        mode="base", spoil=configured("vae", latent_channels=16), what="16 latent channels"
    ),
    "a VAE in fp32 beside bf16": Fault(
        mode="base", what="vae is float32 beside a UNet of bfloat16", stored=False,
        spoil=lambda pipe: pipe.to(torch.bfloat16).vae.to(torch.float32),
    ),
    # 8: adapters
    "lcm-lora without the LoRA": Fault(
        mode="lcm-lora", spoil=lambda pipe: pipe.unload_lora_weights(), what="no LoRA is loaded", stored=False
    ),
    "the LoRA switched off": Fault(
        mode="lcm-lora", spoil=lambda pipe: pipe.disable_lora(), what="switched off", stored=False
    ),
    "the LoRA at half its weight": Fault(
        mode="lcm-lora", spoil=lambda pipe: pipe.set_adapters(["lcm"], [0.5]), what="with weight 0.5",
        severity="doubtful", stored=False,
    ),
    "two accelerators": Fault(
        mode="lcm-lora", spoil=another_accelerator, what="'sdxl_lightning_4step' is a few-step accelerator",
        stored=False,
    ),
    "an accelerator on turbo": Fault(
        mode="turbo", spoil=accelerated, what="'lcm-lora' is a few-step accelerator", stored=False
    ),
    # the rest
    "no text encoder": Fault(mode="base", spoil=without("text_encoder"), what="text_encoder is missing"),
    "no tokenizer": Fault(mode="turbo", spoil=without("tokenizer_2"), what="tokenizer_2 is missing"),
    "other padding": Fault(
        mode="base", spoil=padded, what="fills prompts up with '<|endoftext|>'", severity="doubtful"
    ),
    "a watermark": Fault(
        mode="turbo", spoil=lambda pipe: setattr(pipe, "watermark", object()), what="watermark",
        severity="doubtful", stored=False,
    ),
}  # fmt: skip


def spoiled(fault: Fault, make: Make, lora_file: Path) -> Any:
    pipe = make(fault.mode)
    pipe.lora = lora_file
    fault.spoil(pipe)
    return pipe


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_mended(name: str, make: Make, type_in: Type, lora_file: Path) -> None:
    fault = FAULTS[name]
    pipe = spoiled(fault, make, lora_file)
    report = check(pipe, fault.mode)
    finding = found(fault.what, report)
    assert finding.severity == fault.severity
    assert report.ok == all(each.severity == "doubtful" for each in report.findings)
    pipe = type_in(finding.mend, pipe)
    again = check(pipe, fault.mode)
    assert not any(fault.what in each.what for each in again.findings)
    for each in again.findings:  # whatever else was wrong
        pipe = type_in(each.mend, pipe)
    assert check(pipe, fault.mode).findings == ()


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name].stored])
def test_the_same_from_files(name: str, make: Make, type_in: Type, lora_file: Path, tmp_path: Path) -> None:
    fault = FAULTS[name]
    pipe = spoiled(fault, make, lora_file)
    if fault.mode == "lcm-lora":
        pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "wrong")
    finding = found(fault.what, check(tmp_path / "wrong", fault.mode))
    assert finding.severity == fault.severity
    type_in(finding.mend, pipe).save_pretrained(tmp_path / "right")
    again = check(str(tmp_path / "right"), fault.mode)
    assert not any(fault.what in each.what for each in again.findings)


@pytest.mark.parametrize("mode", ["base", "turbo", "lcm", "lcm-lora"])
def test_the_right_ones_pass(mode: str, make: Make, tmp_path: Path) -> None:
    pipe = make(mode)
    assert check(pipe, mode, steps=20 if mode == "base" else 4, width=96, height=64).findings == ()
    assert check(pipe, mode).ok
    if mode != "lcm-lora":  # a folder holds no LoRA
        pipe.save_pretrained(tmp_path)
        assert check(tmp_path, mode).findings == ()


def test_a_fused_lora_is_right(make: Make, tmp_path: Path) -> None:
    pipe = make("lcm-lora")
    pipe.fuse_lora()
    assert check(pipe, "lcm-lora").findings == ()
    pipe.unload_lora_weights()
    assert check(pipe, "lcm-lora").findings == ()
    pipe.save_pretrained(tmp_path)
    (finding,) = check(tmp_path, "lcm-lora").findings  # it cannot be seen
    assert finding.severity == "doubtful"


@pytest.mark.parametrize("mode", modes.mode_names())
def test_from_sdxl_the_mends_lead_to_every_mode(
    mode: str,
    make: Make,
    type_in: Type,
    lora_file: Path,
    lcm_unet_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The names of weights that are not on this machine stand for one LoRA, which fits all."""
    pipe = make()
    load = type(pipe).load_lora_weights
    monkeypatch.setattr(type(pipe), "load_lora_weights", lambda self, *_, **__: load(self, lora_file))
    for _ in range(4):
        report = check(pipe, mode)
        if not report.findings:
            break
        pipe = type_in(report.findings[0].mend, pipe)
    assert report.findings == ()
    assert report.ok
    assert report.mode == mode


def test_sd15_is_no_sdxl(copy: Path) -> None:
    config = copy / "unet" / "config.json"
    config.write_text(config.read_text().replace('"text_time"', "null"))
    (finding,) = check(copy, "turbo").findings
    assert "not of SDXL's architecture" in finding.what


CLASSES = (
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler", "PNDMScheduler",
    "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler", "LCMScheduler",
    "TCDScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler",
)  # fmt: skip
CONFIGS: tuple[dict[str, Any], ...] = (
    {}, {"prediction_type": "v_prediction"},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "leading"}, {"use_karras_sigmas": True},
    {"beta_schedule": "squaredcos_cap_v2"},
)  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_no_mend_leaves_its_finding(kind: str, make: Make, type_in: Type) -> None:
    """Whatever the noise process: what is offered helps, and where nothing does, nothing is offered."""
    pipe, offered = make("base"), 0
    for config, mode in itertools.product(CONFIGS, ("base", "turbo", "lcm-lora", "merge", "dmd2")):
        bare = getattr(diffusers, kind)
        known = inspect.signature(bare.__init__).parameters
        scheduler = bare(**{key: value for key, value in config.items() if key in known})
        pipe.scheduler = scheduler
        report = check(pipe, mode)
        assert report.noise
        for finding in report.findings:
            if finding.mend.startswith("pipe.scheduler"):
                pipe.scheduler, offered = scheduler, offered + 1
                after = check(type_in(finding.mend, pipe), mode)
                assert finding.what not in [left.what for left in after.findings]
    other = kind.startswith(("EDM", "FlowMatch"))
    assert (offered == 0) == other
    assert ("EDM" in report.noise or "flow matching" in report.noise) == other
