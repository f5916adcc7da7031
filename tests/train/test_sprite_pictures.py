"""Pictures and prompts: what is said of a picture is true of it."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from fewstep.train.bundled import sprite_pictures
from fewstep.train.bundled.data import Caption

SIDE = 32
CAPTION = Caption(label="orange cat", style="3d", tags=("pet", "kitten"), hexcode="1f408")


def sprites(count: int) -> Tensor:
    """Opaque red squares of half the side, alone in the middle: (count, 4, SIDE, SIDE), uint8."""
    made = torch.zeros(count, 4, SIDE, SIDE, dtype=torch.uint8)
    made[:, [0, 3], SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = 255
    return made


def prompts(caption: Caption, backdrop: str | None, empty: float = 0.1) -> list[str]:
    rng = random.Random(0)
    return [sprite_pictures.make_prompt(caption, backdrop, rng, empty) for _ in range(4000)]


def share(prompts: list[str], part: str) -> float:
    return sum(part in prompt for prompt in prompts) / len(prompts)


def test_pictures_are_in_range_and_deterministic() -> None:
    one, names = sprite_pictures.make_pictures(sprites(64), random.Random(3))
    again, names_again = sprite_pictures.make_pictures(sprites(64), random.Random(3))
    other, _ = sprite_pictures.make_pictures(sprites(64), random.Random(4))
    assert one.shape == (64, 3, SIDE, SIDE)
    assert one.dtype == torch.float32
    assert -1 <= float(one.min()) < -0.9
    assert 0.99 < float(one.max()) <= 1
    assert torch.equal(one, again)
    assert names == names_again
    assert not torch.equal(one, other)


def test_backgrounds_are_named_right() -> None:
    pictures, names = sprite_pictures.make_pictures(sprites(400), random.Random(0))
    corners = (pictures[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] + 1) * 127.5  # (B, 3, 4)
    assert set(names) == {None, *sprite_pictures.COLOURS}
    for corner, name in zip(corners, names, strict=True):
        spread = float((corner - corner[:, :1]).abs().max())
        if name is None:
            assert spread > 1
            continue
        wanted = torch.tensor(sprite_pictures.COLOURS[name]).float()
        assert spread < 1e-3
        assert float((corner[:, 0] - wanted).abs().max()) < (1e-3 if name == "white" else 36)  # 4.5 sigma


def test_half_of_the_backgrounds_are_white_and_an_eighth_are_ramps() -> None:
    rng = random.Random(1)
    names = [sprite_pictures.make_background(rng, 2)[1] for _ in range(4000)]
    assert names.count("white") / 4000 == pytest.approx(0.5, abs=0.03)
    assert names.count(None) / 4000 == pytest.approx(0.12, abs=0.02)


def test_sprites_lie_over_the_background_by_their_alpha() -> None:
    half = torch.zeros(64, 4, SIDE, SIDE, dtype=torch.uint8)
    half[:, [0, 3]] = 102  # red at 40 %, premultiplied
    pictures, names = sprite_pictures.make_pictures(half, random.Random(0))
    middle = pictures[:, :, SIDE // 2, SIDE // 2][[name == "white" for name in names]]
    expected = torch.tensor([1.0, 0.2, 0.2])  # 0.4 red + 0.6 white, in [-1, 1]
    torch.testing.assert_close(middle, expected.expand_as(middle), atol=1e-5, rtol=0)


def test_sprites_stay_inside_at_78_to_100_percent() -> None:
    placed = sprite_pictures.place_sprites(sprites(200).float() / 255, random.Random(0))
    sides = placed[:, 3].sum(dim=(1, 2)).sqrt() / (SIDE / 2)
    assert float(sides.min()) > 0.75
    assert float(sides.max()) < 1.02
    centres = placed[:, 3].sum(dim=1) @ torch.arange(SIDE).float() / placed[:, 3].sum(dim=(1, 2))
    assert float(centres.std()) > 0.5  # they move


@pytest.mark.parametrize("empty", [0.0, 0.1, 1.0])
def test_share_of_empty_prompts(empty: float) -> None:
    found = prompts(CAPTION, "blue", empty)
    assert found.count("") / len(found) == pytest.approx(empty, abs=0.02)


@pytest.mark.parametrize(("backdrop", "said"), [("blue", 0.8), ("white", 0.2), (None, 0.0)])
def test_prompts_say_subject_style_and_backdrop(backdrop: str | None, said: float) -> None:
    found = prompts(CAPTION, backdrop, empty=0)
    assert share(found, ", 3d style") == pytest.approx(0.85, abs=0.02)
    assert share(found, f", on a {backdrop} background") == pytest.approx(said, abs=0.02)
    assert share(found, "background") == pytest.approx(said, abs=0.02)
    assert share(found, "orange cat") == pytest.approx(0.85, abs=0.02)  # else its tags
    assert share(found, "an orange cat") == pytest.approx(0.3 * 0.85, abs=0.03)


def test_tags_stand_in_for_the_label() -> None:
    subjects = {
        p.split(",")[0].removeprefix("a ").removeprefix("an ") for p in prompts(CAPTION, None, empty=0)
    }
    assert subjects == {"orange cat", "pet", "kitten", "pet kitten", "kitten pet"}


def test_without_tags_the_label_is_always_said() -> None:
    bare = Caption(label="red heart", style="noto", tags=(), hexcode="2764")
    found = prompts(bare, "pink", empty=0)
    assert share(found, "red heart") == 1
    assert share(found, "a red heart") == pytest.approx(0.3, abs=0.03)


def test_prompts_are_deterministic() -> None:
    assert prompts(CAPTION, "blue") == prompts(CAPTION, "blue")
