"""Whether seams show, at five sizes: at the edges of tiles, of masks and of what was painted on.

    python -m tests.seams [--save FOLDER]

draws with the bundled model and prints for each size the mean step from pixel to pixel across an edge
divided by that across its parallels up to 12 pixels away, in what was drawn and in the picture it was drawn
over, which has no seam: a seam is where the first is the larger. And how far pixels outside the mask are
from the given picture's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

import fewstep
from fewstep import Result
from fewstep.tiles import tile_starts

PROMPT = "a smiling cat face, 3d style"
REACH = 12  # pixels either side of an edge that it is compared with
TILED = [(208, 208), (256, 256), (320, 256), (384, 384), (448, 320)]
PAINTED = [(128, 128), (160, 128), (192, 128), (128, 176), (176, 160)]


def tile_edge_ratio(image: Image.Image, tile: int, grid: int = 8) -> float:
    """Return the step across the tiles' edges, over that across parallels up to `REACH` pixels away."""
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    edges: list[float] = []
    beside: list[float] = []
    for axis, side in ((0, image.height), (1, image.width)):
        steps = np.abs(np.diff(pixels, axis=axis)).mean(axis=(1 - axis, 2))
        starts = [start * grid for start in tile_starts(side // grid, min(tile, side) // grid)]
        for place in {*starts, *(start + tile for start in starts)} - {0, side}:
            edges.append(steps[place - 1])
            near = range(max(0, place - 1 - REACH), min(side - 1, place + REACH))
            beside += [steps[i] for i in near if abs(i - place + 1) > 1]
    return float(np.mean(edges) / np.mean(beside))


def mask_edge_ratio(image: Image.Image, mask: Image.Image) -> float:
    """Return the step across the mask's edge, over that across its parallels up to `REACH` pixels away."""
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    depth = _depth(mask)  # 1, 2, ... inwards from the edge, 0, -1, ... outwards
    steps: dict[int, list[float]] = {}
    for axis in (0, 1):
        change = np.abs(np.diff(pixels, axis=axis)).mean(axis=2)
        side = depth.shape[axis]
        near, far = (np.take(depth, range(a, side + a - 1), axis=axis) for a in (0, 1))
        level = np.minimum(near, far)
        for value in range(-REACH, REACH + 1):
            steps.setdefault(value, []).extend(change[(near != far) & (level == value)].tolist())
    beside = [np.mean(numbers) for value, numbers in steps.items() if numbers and abs(value) > 1]
    return float(np.mean(steps[0]) / np.mean(beside))


def _depth(mask: Image.Image) -> np.ndarray[Any, Any]:
    """Return how deep in a mask each pixel lies, at most `REACH` + 1 either way."""
    inside = mask.point(lambda value: 255 if value else 0)
    layers = np.zeros((mask.height, mask.width), int)
    for sign, area in ((1, inside), (-1, inside.point(lambda value: 255 - value))):
        for _ in range(REACH + 1):
            layers += sign * (np.asarray(area) > 0)
            area = area.filter(ImageFilter.MinFilter(3))
    return np.where(layers < 0, layers + 1, layers)


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


def _drafts(size: tuple[int, int]) -> Result:
    """Return a picture on white, and one on a coloured ground."""
    width, height = size
    return fewstep.generate([PROMPT] * 2, 4, "lcm", seed=[5, 11], width=width, height=height, device="cpu")


def _figures(name: str, size: tuple[int, int], after: Iterable[float], before: Iterable[float]) -> str:
    return f"{name:12} {size[0]}x{size[1]}  edge {_mean(after):.2f}  without {_mean(before):.2f}"


def _mean(figures: Iterable[float]) -> float:
    return float(np.mean([*figures]))


def tiles(save: Callable[[str, Result], None]) -> Iterable[str]:
    """Yield a line for each size of enlarged pictures."""
    pictures = _drafts((128, 128)).images
    for size in TILED:
        images = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
        drawn = fewstep.generate(
            PROMPT, 2, "lcm", image=images, tiles=True, strength=0.2, seed=5, device="cpu"
        )
        save(f"tiles-{size[0]}x{size[1]}", drawn)
        after, before = ([tile_edge_ratio(image, 128) for image in each] for each in (drawn.images, images))
        yield _figures("tiles", size, after, before)


def masks(save: Callable[[str, Result], None]) -> Iterable[str]:
    """Yield lines for each size of inpainted and outpainted pictures."""
    for size in PAINTED:
        drafts, mask = _drafts(size), disc(size)
        for name, only_masked in (("inpaint", False), ("only_masked", True)):
            drawn = drafts.inpaint(mask, only_masked=only_masked, steps=4, seed=6)
            save(f"{name}-{size[0]}x{size[1]}", drawn)
            pairs = [*zip(drafts.images, drawn.images, strict=True)]
            after, before = ([mask_edge_ratio(pair[i], mask) for pair in pairs] for i in (1, 0))
            outside = max(outside_difference(*pair, mask) for pair in pairs)
            yield f"{_figures(name, size, after, before)}  outside {outside} of 255"
        wide = drafts.outpaint(left=16, right=16, steps=4, seed=6).pick(1)
        save(f"outpaint-{size[0]}x{size[1]}", wide)
        join = Image.new("L", wide[0].size, 255)
        join.paste(0, (16, 0, 16 + size[0], size[1]))
        outside = outside_difference(wide.job.images[0], wide[0], wide.job.masks[0])
        yield f"{_figures('outpaint', size, [mask_edge_ratio(wide[0], join)], [1])}  outside {outside} of 255"


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
