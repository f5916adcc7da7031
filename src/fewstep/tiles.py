"""Large latents and pictures by overlapping tiles, blended so that no seam is left.

What a network says of a place is the average of what it says in all tiles that hold it, weighed less
towards a tile's edges. For a denoiser that is done at every step (MultiDiffusion, Bar-Tal et al. 2023,
arXiv:2302.08113, eq. 5, with weights W_i that fall to the edge), so neighbouring tiles start each
step from what they agreed on in the one before. A tiled denoiser is `denoise(x, sigma) -> x0` like any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.samplers import Denoise

OVERLAP = 0.25  # of a tile's side, at least
KEPT = 8  # a tile's side has so many of the smallest structures that stay as they are in the picture


def anchored_denoiser(denoise: Denoise, picture: Tensor, tile: tuple[int, int]) -> Denoise:
    """Return a denoiser whose answers have the large structures of `picture`, latents (B, C, h, w).

    A tile does not see what the whole shows, and would make a picture of its own of it. So what is larger
    than an eighth of a tile is the given picture's, as in ILVR (Choi et al. 2021, arXiv:2108.02938,
    eq. 7), here at x0: x0 + low(picture - x0).
    """
    height, width = (max(1, side // KEPT) for side in tile)
    coarse = (max(1, picture.shape[-2] // height), max(1, picture.shape[-1] // width))

    def denoise_details(x: Tensor, sigma: float | Sequence[float]) -> Tensor:
        x0 = denoise(x, sigma)
        low = F.interpolate(picture - x0, coarse, mode="area")
        return x0 + F.interpolate(low, x0.shape[-2:], mode="bicubic")

    return denoise_details


def tiled_denoiser(denoise: Denoise, tile: tuple[int, int]) -> Denoise:
    """Return a denoiser for latents (B, C, h, w) larger than `tile` (height, width), of one for tiles."""

    def denoise_tiles(x: Tensor, sigma: float | Sequence[float]) -> Tensor:
        return blend_tiles(lambda part: denoise(part, sigma), x, tile)

    return denoise_tiles


def blend_tiles(
    run: Callable[[Tensor], Tensor], x: Tensor, tile: tuple[int, int], overlap: float = OVERLAP
) -> Tensor:
    """Return what `run` makes of x (B, C, H, W), called with tiles of `tile` (height, width), blended.

    `run` may enlarge by a whole factor, as an upscaler does. `overlap`: of a tile's side, at least.
    """
    height, width = (min(side, length) for side, length in zip(tile, x.shape[-2:], strict=True))
    total, weights, factor = x.new_zeros(0), x.new_zeros(0), 0
    for top in tile_starts(x.shape[-2], height, overlap):
        for left in tile_starts(x.shape[-1], width, overlap):
            drawn = run(x[..., top : top + height, left : left + width])
            if not factor:
                factor = drawn.shape[-2] // height
                sides = [side * factor for side in x.shape[-2:]]
                total, weights = drawn.new_zeros(*drawn.shape[:-2], *sides), drawn.new_zeros(sides)
                window = tile_window(height * factor, width * factor, drawn)
            place = (
                slice(top * factor, (top + height) * factor), slice(left * factor, (left + width) * factor)
            )  # fmt: skip
            total[(..., *place)] += window * drawn
            weights[place] += window
    return total / weights


def tile_starts(length: int, tile: int, overlap: float = OVERLAP) -> list[int]:
    """Return where tiles begin: as few as cover `length`, evenly spread, each over `overlap` of the next."""
    if tile >= length:
        return [0]
    steps = math.ceil((length - tile) / max(1, int(tile * (1 - overlap))))
    return [round(i * (length - tile) / steps) for i in range(steps + 1)]


def tile_window(height: int, width: int, like: Tensor) -> Tensor:
    """Return how much each place of a tile counts, (height, width): a triangle each way, above 0."""
    rows, columns = (
        1 - (torch.arange(side, device=like.device, dtype=like.dtype) * 2 + 1 - side).abs() / (side + 1)
        for side in (height, width)
    )
    return rows[:, None] * columns[None]
