"""Enlarging by a network: ESRGAN and its kin (extra: fewstep[upscale]).

spandrel tells from a file's tensors which of its architectures made them, and what factor they enlarge by.
Pictures are taken through the network in overlapping tiles, as through a denoiser, so that memory does not
grow with them and no edge of a tile shows. What comes out has the network's own size: whoever asked for
another brings it there by Lanczos.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fewstep.errors import CorruptModelError, ModelNotFoundError, RequestError, describe_error
from fewstep.images import image_to_tensor
from fewstep.tiles import blend_tiles
from fewstep.torch_state import FreshTorchState

TILE = 256  # pixels of a given picture's side that are enlarged at once
INSTALL = "upscaler= needs spandrel, pip install 'fewstep[upscale]', and torchvision from where torch is from"


@FreshTorchState()
@torch.no_grad()
def enlarge(image: Image.Image, file: str | Path) -> Image.Image:
    """Return a picture, RGB, enlarged by the network of a .safetensors file, by that network's own factor.

    It runs on the CPU in fp32. Raises `ModelError` where the file is none, `RequestError` without spandrel.
    """
    model = _load_upscaler(str(file))
    pixels = (image_to_tensor(image) + 1) / 2  # (1, 3, H, W) in [0, 1], as spandrel's models take it
    enlarged = blend_tiles(model, pixels, (TILE, TILE)).clamp(0, 1)[0].permute(1, 2, 0)
    return Image.fromarray((enlarged * 255).round().to(torch.uint8).numpy())


@lru_cache(maxsize=1)
def _load_upscaler(file: str) -> Any:
    """Return spandrel's model of a file; only safetensors are read."""
    path = Path(file)
    if path.suffix != ".safetensors":
        raise RequestError(f"upscaler={file!r}: give a .safetensors file; others may run code when read")
    if not path.is_file():
        raise ModelNotFoundError(f"upscaler={file!r}: there is no such file")
    try:
        from spandrel import ImageModelDescriptor, ModelLoader
    except Exception as error:  # torchvision, which it needs, fails in its own ways beside another torch
        raise RequestError(f"{INSTALL} ({describe_error(error)})") from error
    try:
        model = ModelLoader(device="cpu").load_from_file(path)
    except Exception as error:
        raise CorruptModelError(
            f"upscaler={file!r} is no upscaler that spandrel knows: {describe_error(error)}"
        ) from error
    if not isinstance(model, ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise RequestError(f"upscaler={file!r} does not turn an RGB picture into one: give another")
    return model.eval()
