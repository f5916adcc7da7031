"""Starting from a picture: strength and masks."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor

from fewstep import Engine, RequestError
from fewstep.codec import Codec
from fewstep.images import image_to_tensor
from fewstep.loop import draw_noise, masked_denoiser
from fewstep.samplers import SAMPLERS

SIDE = 96
HALF = (0, 0, SIDE // 2, SIDE)  # left, top, right, bottom of what is kept
STRENGTHS = [round(0.1 * i, 1) for i in range(1, 11)]
MODES = ["turbo", "lcm", "lcm-lora", "base"]
Load = Callable[..., Engine]


@pytest.fixture(scope="module")
def noise() -> Image.Image:
    """Every byte value, nothing smooth: what a VAE could not give back."""
    values = torch.randint(
        0, 256, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return Image.fromarray(values.numpy())


@pytest.fixture(scope="module")
def right() -> Image.Image:
    """A mask: white, to be made anew, in the right half."""
    mask = Image.new("L", (SIDE, SIDE), 255)
    mask.paste(0, HALF)
    return mask


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("mode", MODES)
def test_strength_never_changes_the_steps(
    mode: str, strength: float, engine: Load, drawing: Image.Image
) -> None:
    loaded = engine(mode)
    rule = loaded.recipe.steps
    levels: Any = {"scheduler": "trailing"} if mode == "base" else {}  # "leading" starts a step lower
    most = min(rule.high, 8, int(50 * strength))  # LCM has 50 levels
    for steps in range(rule.low, most + 1):
        made = loaded.plan("a fox", steps, image=drawing, strength=strength, **levels)
        assert made.schedule.steps == steps
        assert made.schedule.timesteps[0] == pytest.approx(1000 * strength - 1, abs=20)
    seen = list(loaded.stream("a fox", rule.low, image=drawing, strength=strength, seed=1, **levels))
    assert [step.steps for step in seen] == [rule.low] * rule.low


def test_more_steps_than_levels_is_an_error(engine: Load, drawing: Image.Image) -> None:
    with pytest.raises(RequestError, match="at most 5 steps or raise strength"):
        engine("lcm").generate("a fox", 6, image=drawing, strength=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_outside_the_mask_nothing_changes(
    mode: str, engine: Load, noise: Image.Image, right: Image.Image
) -> None:
    (made,) = engine(mode).generate("a fox", 2, image=noise, mask=right, strength=0.8, seed=1)
    assert made.crop(HALF).tobytes() == noise.crop(HALF).tobytes()
    anew = (SIDE // 2, 0, SIDE, SIDE)
    changed = ImageChops.difference(made.crop(anew), noise.crop(anew)).convert("L")
    assert sum(changed.histogram()[8:]) > 0.9 * SIDE * SIDE / 2


@pytest.mark.parametrize("mode", MODES)
def test_a_black_mask_gives_the_picture_back(mode: str, engine: Load, noise: Image.Image) -> None:
    black = Image.new("L", noise.size)
    result = engine(mode).generate(["a fox", "an owl"], 2, image=noise, mask=black, seed=1)
    assert [image.tobytes() for image in result] == [noise.tobytes()] * 2


@pytest.mark.parametrize("mode", MODES)
def test_a_white_mask_is_no_mask(mode: str, engine: Load, noise: Image.Image) -> None:
    white = Image.new("L", noise.size, 255)
    asked: dict[str, Any] = {"image": noise, "strength": 0.7, "seed": 1}
    with_mask, without = (engine(mode).generate("a fox", 2, mask=mask, **asked) for mask in (white, None))
    assert with_mask[0].tobytes() == without[0].tobytes()


def test_a_grey_mask_mixes(engine: Load, noise: Image.Image) -> None:
    loaded, grey = engine("turbo"), Image.new("L", noise.size, 51)  # a fifth
    *_, last = loaded.stream("a fox", 2, image=noise, mask=grey, seed=1)
    made = loaded.generate("a fox", 2, image=noise, mask=grey, seed=1)
    off = ImageChops.difference(made[0], Image.blend(noise, last.preview(), 0.2))
    assert max(off.tobytes()) <= 1


def known_latents(engine: Engine, image: Image.Image, seed: int, draws: int) -> tuple[Tensor, list[Tensor]]:
    """The picture's latents, and the noise that its call takes after them."""
    posterior, *noise = draw_noise([seed], (1, 4, SIDE // 8, SIDE // 8), 2 + draws, False)
    return Codec(engine.parts.vae, engine.placement).encode(image_to_tensor(image), posterior), noise


def expected_noise(steps: int, sigmas: tuple[float, ...], noise: list[Tensor], eta: float) -> list[Tensor]:
    """What must lie on a known picture after each step: deviation sigma, from these draws."""
    left = noise[0] * sigmas[0]
    found = []
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        up = eta * target * math.sqrt(1 - (target / sigma) ** 2)
        left = left * math.sqrt(target**2 - up**2) / sigma + up * noise[i + 1]
        found.append(left)
    assert len(found) == steps
    return found


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 4])
def test_lcm_noises_the_known_half_anew(
    steps: int, strength: float, engine: Load, noise: Image.Image, right: Image.Image
) -> None:
    loaded = engine("lcm")
    known, drawn = known_latents(loaded, noise, 5, steps)
    asked: dict[str, Any] = {"image": noise, "mask": right, "strength": strength}
    sigmas = loaded.plan("a fox", steps, **asked).schedule.sigmas
    for step in loaded.stream("a fox", steps, seed=5, **asked):
        expected = known + sigmas[step.index + 1] * drawn[step.index + 1]
        half = step.latents.shape[-1] // 2
        assert torch.equal(step.x0[..., :half], known[..., :half])
        torch.testing.assert_close(step.latents[..., :half], expected[..., :half], rtol=0, atol=1e-5)
        assert not torch.equal(step.x0[..., half:], known[..., half:])


@pytest.mark.parametrize(
    ("mode", "sampler"), [("turbo", "euler_ancestral"), ("turbo", "euler"), ("base", "ddim")]
)
def test_the_known_half_keeps_its_noise_level(
    mode: str, sampler: str, engine: Load, noise: Image.Image, right: Image.Image
) -> None:
    loaded = engine(mode)
    rule = SAMPLERS[sampler]
    known, drawn = known_latents(loaded, noise, 5, 4 * rule.draws)
    asked: dict[str, Any] = {"image": noise, "mask": right, "strength": 0.8, "sampler": sampler}
    sigmas = loaded.plan("a fox", 4, **asked).schedule.sigmas
    drawn += [torch.zeros_like(drawn[0])] * 4  # where the rule draws none
    for step, expected in zip(
        loaded.stream("a fox", 4, seed=5, **asked), expected_noise(4, sigmas, drawn, rule.eta), strict=True
    ):
        half = step.latents.shape[-1] // 2
        residual = (step.latents - known)[..., :half]
        torch.testing.assert_close(residual, expected[..., :half], rtol=0, atol=1e-4)
        assert float(residual.std()) == pytest.approx(sigmas[step.index + 1], rel=0.15)


def test_a_mask_edge_inside_a_latent_is_shared() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 12:] = 1  # half of the right latent
    known, answer = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    mixed = masked_denoiser(lambda _x, _sigma: answer, known, mask)(known, 1.0)
    assert mixed[0, 0].tolist() == [[0.0, 0.5], [0.0, 0.5]]


@pytest.mark.parametrize("size", [(91, 77), (300, 200), (40, 30)])
def test_a_picture_of_any_size_comes_back_at_it(
    size: tuple[int, int], engine: Load, noise: Image.Image
) -> None:
    """Filled up, made smaller and enlarged inside; outside the mask every bit is the given one."""
    given, mask = noise.resize(size), Image.new("L", size, 0)
    mask.paste(255, (size[0] // 2, 0, *size))
    (made,) = engine("lcm").generate("a fox", 2, image=given, mask=mask, strength=0.8, seed=1)
    outside = (0, 0, size[0] // 2, size[1])
    assert made.size == size
    assert made.crop(outside).tobytes() == given.crop(outside).tobytes()
    assert made.tobytes() != given.tobytes()


def test_other_forms_draw_the_same(engine: Load, noise: Image.Image, right: Image.Image) -> None:
    """Arrays, tensors and bytes; a mask of zeros and ones; a cut-out whose hidden colours are others."""
    values, hole = np.asarray(noise), np.asarray(right) > 0
    file, lcm = io.BytesIO(), engine("lcm")
    noise.save(file, "PNG")
    asked: dict[str, Any] = {"strength": 0.8, "seed": 1}
    (wanted,) = lcm.generate("a fox", 2, image=noise, mask=right, **asked)
    tensor = torch.from_numpy(values.transpose(2, 0, 1) / 255)
    forms: list[tuple[Any, Any]] = [
        (values, hole),
        (tensor, torch.from_numpy(hole).float()),
        (file, hole.astype(np.int64)),
        (file.getvalue(), Image.fromarray(hole.astype(np.uint8))),
    ]
    for image, mask in forms:
        (made,) = lcm.generate("a fox", 2, image=image, mask=mask, **asked)
        assert made.tobytes() == wanted.tobytes()
    cut = [
        Image.new("RGBA", noise.size, (*colour, 0)) for colour in ((0, 0, 0), (30, 200, 60), (255, 255, 255))
    ]
    for image in cut:
        image.paste(noise.crop(HALF), HALF)
    results = [lcm.generate("a fox", 2, image=image, **asked) for image in cut]
    assert len({result[0].tobytes() for result in results}) == 1
    assert all("laid on white" in result.warnings[0] for result in results)
