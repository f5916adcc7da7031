"""The tasks that make the bundled family, each on what a work folder holds of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTokenizer

from fewstep.architectures.text import TextEncoder
from fewstep.train import add, base, lcm, loop, lora, vae
from fewstep.train.bundled import data, export, latents, tiny_vae
from fewstep.train.bundled.latents import Latents
from fewstep.train.source import Teacher

LATENTS_FILE = "latents.safetensors"
STYLE_NAME = "fx"  # the one that is apart


def vae_task(work: Path) -> vae.VaeTask:
    """The autoencoder, freshly initialised."""
    torch.manual_seed(vae.HYPER.seed)
    return vae.VaeTask(data.load_sprites(work / "data")[0], vae.HYPER.batch)


def base_task(work: Path, *, compiled: bool = False) -> base.BaseTask:
    """Text encoders and UNet, freshly initialised."""
    torch.manual_seed(base.HYPER.seed)
    return base.BaseTask(load_latents(work), *_fresh_model(work), base.HYPER.batch, compiled=compiled)


def lcm_task(work: Path, *, compiled: bool = False) -> lcm.LcmTask:
    """A whole student of the finished base."""
    return lcm.lcm_task(load_latents(work), load_teacher(work), lcm.HYPER.batch, compiled=compiled)


def lora_task(work: Path) -> lcm.LcmTask:
    """An adapter on the finished base."""
    torch.manual_seed(lcm.LORA_HYPER.seed)
    return lcm.lcm_lora_task(load_latents(work), load_teacher(work), lcm.LORA_HYPER.batch)


def add_task(work: Path, *, compiled: bool = False) -> add.AddTask:
    """A student of the finished base that begins as the finished LCM, and is held near to it."""
    started = lcm_task(work)
    loop.restore(started.averages, work / "lcm")
    student: Any = started.averages["unet"]
    torch.manual_seed(add.HYPER.seed)
    start = lcm.with_fixed_guidance(student, add.GUIDANCE)
    task = add.add_task(load_latents(work), load_teacher(work), start, add.HYPER.batch, compiled=compiled)
    return replace(task, hold=add.HOLD)


def style_task(work: Path) -> lora.StyleTask:
    """An adapter on the finished base, for the style that nothing else has seen."""
    torch.manual_seed(lora.STYLE_HYPER.seed)
    return lora.style_task(load_latents(work, STYLE_NAME), load_teacher(work), lora.STYLE_HYPER.batch)


def decoder_task(work: Path) -> tiny_vae.TinyVaeTask:
    """A tiny twin of the finished autoencoder."""
    torch.manual_seed(tiny_vae.HYPER.seed)
    return tiny_vae.TinyVaeTask(data.load_sprites(work / "data")[0], load_vae(work), tiny_vae.HYPER.batch)


def load_latents(work: Path, apart: str = "") -> Latents:
    """All encoded pictures, or those of a style that is apart."""
    return latents.read_latents(latents_path(work, apart), data.load_captions(work / "data", apart))


def latents_path(work: Path, apart: str = "") -> Path:
    return work / (f"latents-{apart}.safetensors" if apart else LATENTS_FILE)


def load_vae(work: Path) -> AutoencoderKL:
    """The finished VAE, which knows how its latents are normalised."""
    network, encoded = vae.build_vae().to(loop.process_state().device), load_latents(work)
    loop.restore({"vae": network}, work / "vae")
    export.set_scaling(network, encoded.mean.tolist(), encoded.std.tolist())
    return network


def load_teacher(work: Path) -> Teacher:
    """The finished base."""
    unet, text = _fresh_model(work)
    loop.restore(dict(zip(base.NETWORKS, (unet, *text.encoders), strict=True)), work / "base")
    return Teacher(unet=unet, text=text, process=base.PROCESS)


def _fresh_model(work: Path) -> tuple[UNet2DConditionModel, TextEncoder]:
    """UNet and text encoders, freshly initialised."""
    unet, text = base.build_unet(), base.build_text(CLIPTokenizer.from_pretrained(work / "tokenizer"))
    for network in (unet, *text.encoders):
        network.to(loop.process_state().device)
    return unet, text
