"""What a caption leaves open: size, place, tilt and background of a sprite.

A caption that fixes its picture completely makes the flow nearly straight, and an
undistilled model at four steps looks like one at fifty; so the caption leaves things open.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F

from fewstep.train.bundled.data import Caption

COLOURS = {
    "white": (255, 255, 255), "black": (20, 20, 20), "grey": (150, 150, 150), "red": (220, 50, 50),
    "orange": (245, 150, 50), "yellow": (250, 220, 80), "green": (80, 180, 90), "teal": (60, 170, 170),
    "blue": (70, 120, 220), "purple": (140, 90, 200), "pink": (250, 160, 200), "brown": (130, 90, 60),
}  # fmt: skip


def place_sprites(sprites: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Sprites (B, 4, H, W) in [0, 1] at a random size (0.78-1), place and tilt (up to 8°)."""
    maps = []
    for _ in range(len(sprites)):
        scale = rng.uniform(0.78, 1.0)
        angle = math.radians(rng.uniform(-8, 8)) if rng.random() < 0.3 else 0.0
        dx, dy = (rng.uniform(-1, 1) * (1 - scale) / scale for _ in range(2))
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        maps.append([[cos, -sin, dx], [sin, cos, dy]])
    grid = F.affine_grid(torch.tensor(maps), list(sprites.shape), align_corners=False)
    return F.grid_sample(sprites, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def make_background(rng: random.Random, size: int) -> tuple[torch.Tensor, str | None]:
    """A background (3, size, size) in [0, 1], and its name where it is one plain colour."""
    kind = rng.random()
    if kind < 0.5:
        return torch.ones(3, size, size), "white"
    if kind < 0.88:
        name = rng.choice(list(COLOURS)[1:])
        colour = torch.tensor([min(255, max(0, c + rng.gauss(0, 8))) / 255 for c in COLOURS[name]])
        return colour.view(3, 1, 1).expand(3, size, size), name
    ends = torch.tensor([[rng.uniform(0.5, 1.0) for _ in range(3)] for _ in range(2)])
    ramp = torch.linspace(0, 1, size).view(1, size, 1).expand(1, size, size)
    ramp = ramp.transpose(1, 2) if rng.random() < 0.5 else ramp
    return ends[0].view(3, 1, 1) * (1 - ramp) + ends[1].view(3, 1, 1) * ramp, None


def make_pictures(sprites: torch.Tensor, rng: random.Random) -> tuple[torch.Tensor, list[str | None]]:
    """uint8 sprites (B, 4, H, W) → pictures (B, 3, H, W) in [-1, 1] and background names."""
    layers = place_sprites(sprites.float() / 255, rng)
    backs, names = zip(*(make_background(rng, sprites.shape[-1]) for _ in range(len(sprites))), strict=True)
    rgb = layers[:, :3] + (1 - layers[:, 3:]) * torch.stack(backs)
    return rgb.clamp(0, 1) * 2 - 1, list(names)


def make_prompt(caption: Caption, backdrop: str | None, rng: random.Random, empty: float = 0.1) -> str:
    """One way of saying what is in the picture; "" with probability `empty`."""
    if rng.random() < empty:
        return ""
    subject = caption.label
    if caption.tags and rng.random() < 0.15:
        subject = " ".join(rng.sample(caption.tags, min(len(caption.tags), rng.randint(1, 3))))
    if rng.random() < 0.3:
        subject = ("an " if subject[0] in "aeiou" else "a ") + subject
    style = f", {caption.style} style" if rng.random() < 0.85 else ""
    names_backdrop = backdrop is not None and rng.random() < (0.2 if backdrop == "white" else 0.8)
    return subject + style + (f", on a {backdrop} background" if names_backdrop else "")
