"""Pixels and latents: both kinds of autoencoder, scaling, layout, and numbers that are none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from fewstep import codec as rooms
from fewstep.catalog import models
from fewstep.codec import Codec, to_pixels
from fewstep.devices import Placement, place
from tests.devices.machines import SDXL, TINY, machine

MEAN, STD = [0.5, -1.0, 0.0, 2.0], [2.0, 0.5, 1.0, 3.0]


def placement(*, channels_last: bool) -> Placement:
    return place(machine(), SDXL if channels_last else TINY)


@pytest.fixture(scope="module")
def full() -> Any:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latents_mean=MEAN,
        latents_std=STD,
        scaling_factor=0.5,
    ).eval()


@pytest.fixture(scope="module")
def tiny() -> Any:
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8)
    ).eval()


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(1))


def test_decoding_undoes_the_scaling(full: Any, latents: torch.Tensor) -> None:
    mean, std = (torch.tensor(v).view(1, 4, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        wanted = to_pixels(full.decode(latents * std / 0.5 + mean).sample)[0]
    made = Codec(full, placement(channels_last=False)).decode(latents)
    assert made.dtype == torch.uint8
    assert made.shape == (64, 48, 3)
    assert (made.int() - wanted.int()).abs().max() <= 1


def test_encoding_is_the_inverse_scaling(full: Any) -> None:
    picture = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    noise = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(3))
    mean, std = (torch.tensor(v).view(1, 4, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        posterior = full.encode(picture).latent_dist
    wanted = (posterior.mean + posterior.std * noise - mean) * 0.5 / std
    torch.testing.assert_close(Codec(full, placement(channels_last=False)).encode(picture, noise), wanted)


@pytest.mark.parametrize("kind", ["full", "tiny"])
def test_the_layout_changes_no_picture(
    kind: str, latents: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    vae = request.getfixturevalue(kind)
    made = [Codec(vae, placement(channels_last=last)).decode(latents).int() for last in (False, True)]
    assert (made[0] - made[1]).abs().max() <= 1


def test_a_tiny_autoencoder_serves_both_ways(tiny: Any, latents: torch.Tensor) -> None:
    codec = Codec(tiny, placement(channels_last=False))
    with torch.no_grad():
        wanted = to_pixels(tiny.decode(latents).sample)[0]
    assert (codec.decode(latents).int() - wanted.int()).abs().max() <= 1
    picture = torch.zeros(1, 3, 64, 48)
    with torch.no_grad():
        known = tiny.encode(picture).latents
    torch.testing.assert_close(codec.encode(picture, torch.ones(1, 4, 8, 6)), known)


def test_pictures_that_are_not_numbers_are_refused(full: Any, latents: torch.Tensor) -> None:
    broken = latents.clone()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        Codec(full, placement(channels_last=False)).decode(broken)


def test_a_small_vae_previews_by_decoding(full: Any, latents: torch.Tensor) -> None:
    codec = Codec(full, placement(channels_last=False))
    assert torch.equal(codec.preview(latents), codec.decode(latents))


def test_a_large_vae_previews_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled VAE as if it were large: its linear map finds the colours of flat pictures."""
    monkeypatch.setattr(rooms, "SMALL_VAE", 0)
    codec = Codec(AutoencoderKL.from_pretrained(models.TINY / "vae").eval(), placement(channels_last=False))
    for colour in ([1.0, -1.0, -1.0], [-0.5, 0.5, 0.0], [1.0, 1.0, 1.0]):
        picture = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 64, 48)
        seen = codec.preview(codec.encode(picture, torch.zeros(1, 4, 8, 6)))
        assert seen.shape == (64, 48, 3)
        assert (seen.float().mean(dim=(0, 1)) - (torch.tensor(colour) + 1) * 127.5).abs().max() < 48  # of 255


def test_tiles_share_the_weights(full: Any) -> None:
    tiled = rooms.with_tiles(full)
    assert tiled.use_tiling
    assert not full.use_tiling
    assert tiled.decoder is full.decoder
    assert tiled.tile_latent_min_size * 8 == tiled.tile_sample_min_size


def test_tiles_of_a_tiny_autoencoder_give_the_whole_picture(tiny: Any) -> None:
    """Of 320x288, in four tiles of 256; but for seams, as it has no norms over all of a picture."""
    draw = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 4, 40, 36, generator=draw)
    picture = torch.rand(1, 3, 320, 288, generator=draw) * 2 - 1
    whole = Codec(tiny, placement(channels_last=False))
    tiles = Codec(tiny, replace(placement(channels_last=False), tiling=True))
    decoded = [one.decode(latents).float() for one in (whole, tiles)]
    assert decoded[1].shape == (320, 288, 3)
    assert 0 < (decoded[0] - decoded[1]).abs().mean() < 8  # of 255; 0 would be no tiles
    noise = torch.zeros_like(latents)
    known = [one.encode(picture, noise) for one in (whole, tiles)]
    assert known[1].shape == latents.shape
    assert known[1].isfinite().all()
    assert 0 < (known[0] - known[1]).abs().mean() < 0.2 * known[0].std()


def test_rounding_and_clipping() -> None:
    row = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_pixels(row)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
