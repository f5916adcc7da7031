"""diffusers pipelines, right for a mode, to be spoiled; and how a mend is typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from fewstep.checking import Finding, Report

Make = Callable[..., Any]
Type = Callable[..., Any]


def found(what: str, report: Report) -> Finding:
    """The one finding that says it."""
    (finding,) = [finding for finding in report.findings if what in finding.what]
    return finding


@pytest.fixture
def make(sdxl_folder: Path, lcm_unet_folder: Path, lora_file: Path) -> Make:
    """`make(mode)`: a pipeline as a mode's documentation says to build it."""

    def made(mode: str = "base", kind: Any = diffusers.StableDiffusionXLPipeline) -> Any:
        pipe = kind.from_pretrained(sdxl_folder, add_watermarker=False)
        pipe.set_progress_bar_config(disable=True)
        if mode == "turbo":
            pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(
                pipe.scheduler.config, timestep_spacing="trailing"
            )
        if mode == "lcm":
            pipe.unet = diffusers.UNet2DConditionModel.from_pretrained(lcm_unet_folder)
        if mode == "lcm-lora":
            pipe.load_lora_weights(lora_file.parent, weight_name=lora_file.name, adapter_name="lcm")
        if mode.startswith("lcm"):
            pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
        return pipe

    return made


@pytest.fixture
def type_in(sdxl_folder: Path, lcm_unet_folder: Path, lora_file: Path) -> Type:
    """`type_in(line, pipe)`: the pipe after a line; what the hub would give is on this machine."""
    hub = {
        "stabilityai/stable-diffusion-xl-base-1.0": sdxl_folder,
        "stabilityai/sdxl-turbo": sdxl_folder,
        "madebyollin/sdxl-vae-fp16-fix": sdxl_folder / "vae",
        "latent-consistency/lcm-sdxl": lcm_unet_folder,
        "latent-consistency/lcm-lora-sdxl": lora_file.parent,
    }

    def typed(line: str, pipe: Any, **names: Any) -> Any:
        assert "\n" not in line
        for name, folder in hub.items():
            line = line.replace(name, str(folder))
        known = {"diffusers": diffusers, "torch": torch, "transformers": transformers, "pipe": pipe, **names}
        exec(line, known)
        return known["pipe"]

    return typed
