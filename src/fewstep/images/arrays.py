"""Arrays and tensors of pixels → PIL, and PIL → tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from fewstep.errors import RequestError, describe_error
from fewstep.images.decode import OpenedImage, check_pixels
from fewstep.images.ranges import scale_to_bytes

if TYPE_CHECKING:
    from torch import Tensor

LAYOUTS = "(H, W), (H, W, channels) or (channels, H, W), of 1 to 4 channels"
_CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, RGB, RGBA


@runtime_checkable
class Array(Protocol):
    """What numpy reads: its arrays, tensors, and what else has pixels."""

    def __array__(self) -> Any: ...


def image_from_array(pixels: Array, name: str, *, mask: bool) -> OpenedImage:
    """Return an array or a tensor of one picture as L, LA, RGB or RGBA; raises `RequestError`."""
    tensor = hasattr(pixels, "detach")  # torch's; none of it has to be imported
    shape = getattr(pixels, "shape", None)
    if shape is not None:  # before anything is copied
        _check_shape(tuple(shape), name, channels_first=tensor)
    try:
        values = np.asarray(_tensor_on_cpu(pixels) if tensor else pixels)
    except Exception as error:
        raise RequestError(
            f"{name} cannot be read as an array: {describe_error(error)}; give a numpy array or a CPU tensor"
        ) from error
    if np.ma.isMaskedArray(pixels):
        raise RequestError(f"{name} is a masked array: type {name}.filled(0)")
    layout = _check_shape(values.shape, name, channels_first=tensor)
    values = values.reshape(values.shape[-len(layout) :])
    if layout == "CHW":
        values = values.transpose(1, 2, 0)
    scaled, notes = scale_to_bytes(values, name, mask=mask)
    if scaled.ndim == 3 and scaled.shape[2] == 1:
        scaled = scaled[:, :, 0]
    return OpenedImage(Image.fromarray(np.ascontiguousarray(scaled)), notes)


def _tensor_on_cpu(tensor: Any) -> Any:
    """Return a tensor as numpy can read it; bfloat16 and float8 become float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu()


def _check_shape(shape: tuple[int, ...], name: str, *, channels_first: bool) -> str:
    """Return "HW", "HWC" or "CHW", a batch of one left out; raises `RequestError`."""
    picture_shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    layouts = [
        layout
        for layout, axis in (("HWC", 2), ("CHW", 0))
        if len(picture_shape) == 3 and picture_shape[axis] in _CHANNELS
    ]
    layout = "HW" if len(picture_shape) == 2 else layouts[-1 if channels_first else 0] if layouts else ""
    if len(shape) == 4 and shape[0] != 1:
        raise RequestError(f"{name} is a batch of {shape[0]}, of shape {shape}: give one, {name}[0]")
    if not layout:
        raise RequestError(f"{name} has the shape {shape}: give {LAYOUTS}")
    sides = dict(zip(layout, picture_shape, strict=True))
    check_pixels((sides["W"], sides["H"]), name)
    return layout


def image_to_tensor(image: Image.Image) -> Tensor:
    """Return RGB in [-1, 1], (1, 3, H, W)."""
    return byte_tensor(image.convert("RGB")).permute(2, 0, 1)[None].float() / 127.5 - 1


def mask_to_tensor(image: Image.Image) -> Tensor:
    """Return grey in [0, 1], 1 (white) where the picture is to be made anew, (1, 1, H, W)."""
    return byte_tensor(image.convert("L")).permute(2, 0, 1)[None].float() / 255


def byte_tensor(image: Image.Image) -> Tensor:
    """Return the bytes of an image as uint8, (H, W, channels)."""
    import torch

    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1)
