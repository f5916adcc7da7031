"""Whether seams show, at five sizes: at the edges of tiles, of masks and of what was painted on.

    python -m tests.seams [--save FOLDER]

draws with the bundled model and prints, for each size, the mean step from pixel to pixel across an edge
divided by that across lines beside it (1 is no seam; a line that shows has 2 and more), and how far
pixels outside the mask are from the given picture's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

import fewstep
from fewstep import Result
from fewstep.tiles import tile_starts

PROMPT = "a smiling cat face, 3d style"
TILED = [(208, 208), (256, 256), (320, 256), (384, 384), (448, 320)]
PAINTED = [(128, 128), (160, 128), (192, 128), (128, 176), (176, 160)]


def tile_edge_ratio(image: Image.Image, tile: int, grid: int = 8) -> float:
    """Return the step across the tiles' edges, over that across all other lines of pixels between latents."""
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    edges, others = [], []
    for axis, side in ((0, image.height), (1, image.width)):
        steps = np.abs(np.diff(pixels, axis=axis)).mean(axis=(1 - axis, 2))
        starts = tile_starts(side // grid, min(tile, side) // grid)
        places = {start * grid for start in starts if start} | {start * grid + tile for start in starts}
        for place in range(grid, side, grid):
            (edges if place in places else others).append(steps[place - 1])
    return float(np.mean(edges) / np.mean(others))


def mask_edge_ratio(image: Image.Image, mask: Image.Image, reach: int = 12) -> float:
    """Return the step across the mask's edge, over that across its parallels up to `reach` pixels away."""
    inside = np.asarray(mask) > 0
    distance = np.where(
        inside, ndimage.distance_transform_edt(inside), 1 - ndimage.distance_transform_edt(~inside)
    )
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    steps: dict[int, list[float]] = {}
    for axis in (0, 1):
        change = np.abs(np.diff(pixels, axis=axis)).mean(axis=2)
        near, far = (np.take(distance, range(a, distance.shape[axis] + a - 1), axis=axis) for a in (0, 1))
        level = np.floor((near + far) / 2).astype(int)
        crosses = np.floor(near) != np.floor(far)
        for value in range(-reach, reach + 1):
            steps.setdefault(value, []).extend(change[crosses & (level == value)].tolist())
    beside = [np.mean(numbers) for value, numbers in steps.items() if numbers and abs(value) > 1]
    return float(np.mean(steps[0]) / np.mean(beside))


def outside_difference(before: Image.Image, after: Image.Image, mask: Image.Image) -> int:
    """Return how far pixels are from the given picture's where the mask is black, in 255ths."""
    difference = np.abs(np.asarray(before, dtype=int) - np.asarray(after, dtype=int)).max(axis=2)
    return int(difference[np.asarray(mask) == 0].max())


def disc(size: tuple[int, int]) -> Image.Image:
    """Return a mask with a disc in its middle, half as wide as the shorter side."""
    mask, radius = Image.new("L", size), min(size) // 4
    x, y = size[0] // 2, size[1] // 2
    ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask


def _draft(size: tuple[int, int]) -> Result:
    return fewstep.generate(PROMPT, steps=4, mode="lcm", seed=5, width=size[0], height=size[1], device="cpu")


def tiles(save: Callable[[str, Result], None]) -> Iterable[str]:
    """Yield a line for each size of enlarged pictures."""
    picture = _draft((128, 128))[0]
    for size in TILED:
        image = picture.resize(size, Image.Resampling.LANCZOS)
        drawn = fewstep.generate(
            PROMPT, 2, "lcm", image=image, tiles=True, strength=0.2, seed=5, device="cpu"
        )
        save(f"tiles-{size[0]}x{size[1]}", drawn)
        yield (
            f"{'tiles':12} {size[0]}x{size[1]}  edge {tile_edge_ratio(drawn[0], 128):.2f}  "
            f"(enlarged alone {tile_edge_ratio(image, 128):.2f})"
        )


def masks(save: Callable[[str, Result], None]) -> Iterable[str]:
    """Yield lines for each size of inpainted and outpainted pictures."""
    for size in PAINTED:
        draft, mask = _draft(size), disc(size)
        for name, only_masked in (("inpaint", False), ("only_masked", True)):
            drawn = draft.inpaint(mask, only_masked=only_masked, steps=4, seed=6)
            save(f"{name}-{size[0]}x{size[1]}", drawn)
            yield (
                f"{name:12} {size[0]}x{size[1]}  edge {mask_edge_ratio(drawn[0], mask):.2f}  "
                f"(before {mask_edge_ratio(draft[0], mask):.2f})  "
                f"outside {outside_difference(draft[0], drawn[0], mask)} of 255"
            )
        wide = draft.outpaint(left=16, right=16, steps=4, seed=6)
        save(f"outpaint-{size[0]}x{size[1]}", wide)
        given = wide.job.images[0]
        join = Image.new("L", wide[0].size, 255)
        join.paste(0, (16, 0, 16 + size[0], size[1]))
        yield (
            f"{'outpaint':12} {size[0]}x{size[1]}  edge {mask_edge_ratio(wide[0], join):.2f}  "
            f"outside {outside_difference(given, wide[0], wide.job.masks[0])} of 255"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, help="a folder for the pictures")
    folder = parser.parse_args().save

    def save(name: str, result: Result) -> None:
        if folder is not None:
            result.save(folder / f"{name}.png", overwrite=True)

    for lines in (tiles, masks):
        for line in lines(save):
            print(line, flush=True)


if __name__ == "__main__":
    main()
