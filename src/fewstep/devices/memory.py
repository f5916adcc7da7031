"""How many bytes a model takes on a device, and in which arrangement it takes fewer."""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import dataclass

import torch

# The most that is alive at once beside the weights, in numbers per pixel of one picture: SDXL's
# networks without weights on torch's meta device, every tensor that an operator makes counted from
# its birth to its death, at 512, 768 and 1024 pixels, attention taken as fused
# (tests/devices/activations.py). The VAE's encoder needs fewer, 643.
UNET_NUMBERS = 79  # one row of a batch
VAE_NUMBERS = 768
TINY_VAE_NUMBERS = (
    198  # of an AutoencoderTiny as madebyollin/taesdxl, whose encoder needs more than its decoder
)
# Kernels want room of their own: a whole process on a CPU grew by 1.0 to 1.3 times what was counted
# for the VAE, and by 2.2 times the UNet's much smaller number (512 and 1024 pixels, torch 2.13).
WORKSPACE = 1.5
# Bytes for what is loaded late (cuDNN, cuBLAS) and for holes between blocks; at most as much again as
# the model takes, so that a small one fits a small machine.
RESERVE = 512 * 2**20
SMALL_MODEL = 50_000_000  # parameters: below, starting an operator costs more than its arithmetic
LARGEST_LAYER = 64_000_000  # parameters of SDXL's largest layer, the word table of its second text encoder


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What a model takes, before any of it is loaded."""

    unet: int  # parameters
    text: int  # parameters, of both text encoders
    vae: int  # parameters
    side: int  # pixels, of the pictures it was trained at
    vae_fp16_safe: bool  # False also where nobody knows
    vae_room: int = VAE_NUMBERS  # numbers per pixel beside its weights

    @property
    def small(self) -> bool:
        """Return whether its overheads outweigh its arithmetic."""
        return self.unet + self.text + self.vae < SMALL_MODEL


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A model's bytes in the dtypes it is to have, for one picture at a time."""

    unet: int
    text: int
    vae: int
    layer: int
    step: int  # beside the weights, while the UNet runs
    decode: int  # beside the weights, while the VAE runs on the whole picture
    tile: int  # the same, on one tile

    @property
    def weights(self) -> int:
        return self.unet + self.text + self.vae

    def on_device(self, offload: str, tiling: bool) -> int:
        """The most that the device holds at once."""
        decode = self.tile if tiling else self.decode
        peak = {
            "none": self.weights + max(self.step, decode),
            "model": max(self.unet + self.step, self.text, self.vae + decode),
            "sequential": self.vae + max(self.layer + self.step, decode),
        }[offload]
        return peak + min(RESERVE, peak)


def footprint(need: ModelSize, dtype: torch.dtype, vae_dtype: torch.dtype, rows: int) -> Footprint:
    """Parameters → bytes; `rows` is how many a picture has in one UNet call: two where guidance is on."""
    size, area = dtype.itemsize, need.side**2
    decode = int(WORKSPACE * need.vae_room * area * vae_dtype.itemsize)
    return Footprint(
        unet=need.unet * size,
        text=need.text * size,
        vae=need.vae * vae_dtype.itemsize,
        layer=min(LARGEST_LAYER, need.unet) * size,
        step=int(WORKSPACE * UNET_NUMBERS * area * size) * rows,
        decode=decode,
        tile=decode // 4,  # half the side: see `fewstep.codec.with_tiles`
    )


def free_memory() -> None:
    """Give cached memory back, so that a smaller attempt finds it."""
    gc.collect()
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):  # glibc keeps what is freed
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
