"""LoRA adapters on a UNet, in kohya, diffusers and PEFT layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from fewstep.errors import CorruptModelError
from fewstep.models.catalog import reading


def attach(unet: Any, path: Path) -> None:
    """Merge the adapter in `path` into the UNet's weights.

    The file is read with safetensors and handed to diffusers as tensors: its own reader
    would take a pickle by name.
    """
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin as Loader

    with reading(path):
        tensors = load_file(path)
        state, alphas = Loader.lora_state_dict(tensors, unet_config=unet.config)[:2]
    own = {key: value for key, value in state.items() if key.startswith("unet.")}
    if not own:
        raise CorruptModelError(f"{path} holds no LoRA for a UNet")
    try:
        Loader.load_lora_into_unet(own, alphas, unet, adapter_name="accelerator")
    except (LookupError, RuntimeError, ValueError) as error:
        raise CorruptModelError(f"{path} does not fit this model: it was made for another base") from error
    unet.fuse_lora()
    unet.unload_lora()
