"""The tasks that make the bundled family, each on what a work folder holds of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTokenizer

from fewstep.text import TextEncoder
from fewstep.train import add, base, data, decoder, export, latents, lcm, loop, style, vae
from fewstep.train.latents import Latents
from fewstep.train.source import Teacher

LATENTS = "latents.safetensors"
STYLE = "fx"  # the one that is apart


def vae_task(work: Path) -> vae.VaeTask:
    """The autoencoder, freshly initialised."""
    torch.manual_seed(vae.HYPER.seed)
    return vae.VaeTask(data.load(work / "data")[0], vae.HYPER.batch)


def base_task(work: Path, *, compiled: bool = False) -> base.BaseTask:
    """Text encoders and UNet, freshly initialised."""
    torch.manual_seed(base.HYPER.seed)
    return base.BaseTask(pictures(work), *_undistilled(work), base.HYPER.batch, compiled=compiled)


def lcm_task(work: Path, *, compiled: bool = False) -> lcm.LcmTask:
    """A whole student of the finished base."""
    return lcm.whole(pictures(work), teacher(work), lcm.HYPER.batch, compiled=compiled)


def lora_task(work: Path) -> lcm.LcmTask:
    """An adapter on the finished base."""
    torch.manual_seed(lcm.LORA_HYPER.seed)
    return lcm.as_lora(pictures(work), teacher(work), lcm.LORA_HYPER.batch)


def add_task(work: Path, *, compiled: bool = False) -> add.AddTask:
    """A student of the finished base that begins as the finished LCM, and is held near to it."""
    started = lcm_task(work)
    loop.restore(started.averages, work / "lcm")
    student: Any = started.averages["unet"]
    torch.manual_seed(add.HYPER.seed)
    start = lcm.settled(student, add.GUIDANCE)
    task = add.task(pictures(work), teacher(work), start, add.HYPER.batch, compiled=compiled)
    return replace(task, hold=add.HOLD)


def style_task(work: Path) -> style.StyleTask:
    """An adapter on the finished base, for the style that nothing else has seen."""
    torch.manual_seed(style.HYPER.seed)
    return style.task(pictures(work, STYLE), teacher(work), style.HYPER.batch)


def decoder_task(work: Path) -> decoder.DecoderTask:
    """A tiny twin of the finished autoencoder."""
    torch.manual_seed(decoder.HYPER.seed)
    return decoder.DecoderTask(data.load(work / "data")[0], autoencoder(work), decoder.HYPER.batch)


def pictures(work: Path, apart: str = "") -> Latents:
    """All encoded pictures, or those of a style that is apart."""
    return latents.load(latents_path(work, apart), data.captions(work / "data", apart))


def latents_path(work: Path, apart: str = "") -> Path:
    return work / (f"latents-{apart}.safetensors" if apart else LATENTS)


def autoencoder(work: Path) -> AutoencoderKL:
    """The finished VAE, which knows how its latents are normalised."""
    network, known = vae.build().to(loop.here().device), pictures(work)
    loop.restore({"vae": network}, work / "vae")
    export.set_scaling(network, known.mean.tolist(), known.std.tolist())
    return network


def teacher(work: Path) -> Teacher:
    """The finished base."""
    unet, text = _undistilled(work)
    loop.restore(dict(zip(base.NETWORKS, (unet, *text.encoders), strict=True)), work / "base")
    return Teacher(unet=unet, text=text, prediction=base.PREDICTION)


def _undistilled(work: Path) -> tuple[UNet2DConditionModel, TextEncoder]:
    """UNet and text encoders, freshly initialised."""
    unet, text = base.build_unet(), base.build_text(CLIPTokenizer.from_pretrained(work / "tokenizer"))
    for network in (unet, *text.encoders):
        network.to(loop.here().device)
    return unet, text
