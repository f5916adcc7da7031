"""Memory for a network's weights, in one piece where that pays."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping

import torch
from torch import Size, Tensor

LARGE = 2**28  # bytes from which a piece of its own pays
ALIGNED = 64  # bytes: where torch's own tensors begin; kernels round otherwise elsewhere
# Where Linux gives pages of 2 MiB, 7 GB are there in a second instead of six: a fault each for fewer pages.
HUGE = getattr(mmap, "MADV_HUGEPAGE", None)


def room(
    shapes: Mapping[str, Size], dtype: torch.dtype, device: torch.device, layout: torch.memory_format
) -> dict[str, Tensor]:
    """A tensor of each shape, its content undefined; those of four dimensions have this layout."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    rounded = {name: -(-size // ALIGNED) * ALIGNED for name, size in sizes.items()}
    whole = _piece(sum(rounded.values()), device)
    found, begin = {}, 0
    for name, shape in shapes.items():
        flat = whole[begin : begin + sizes[name]].view(dtype)
        found[name] = _laid_out(flat, shape, layout)
        begin += rounded[name]
    return found


def _piece(size: int, device: torch.device) -> Tensor:
    """So many bytes, aligned."""
    if size < LARGE or device.type != "cpu" or HUGE is None:
        return torch.empty(size, dtype=torch.uint8, device=device)
    piece = mmap.mmap(-1, size)
    piece.madvise(HUGE)
    return torch.frombuffer(piece, dtype=torch.uint8)


def _laid_out(flat: Tensor, shape: Size, layout: torch.memory_format) -> Tensor:
    if len(shape) != 4 or layout != torch.channels_last:
        return flat.view(shape)
    out, channels, height, width = shape
    return flat.view(out, height, width, channels).permute(0, 3, 1, 2)
