"""Pixels and latents: both kinds of autoencoder, scaling, layout, and numbers that are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from fewstep.codec import Codec, pixels_of
from fewstep.devices import Placement, Probe, place
from fewstep.errors import GenerationError

CPU = Probe(cuda=False, cuda_bf16=False, mps=False, cpu_bf16=False)
MEAN, STD = [0.5, -1.0, 0.0, 2.0], [2.0, 0.5, 1.0, 3.0]


def placement(*, channels_last: bool) -> Placement:
    return place(CPU, small=not channels_last)


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
    return torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(1))


def test_decoding_undoes_the_scaling(full: Any, latents: torch.Tensor) -> None:
    mean, std = (torch.tensor(v).view(1, 4, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        wanted = pixels_of(full.decode(latents * std / 0.5 + mean).sample)
    made = Codec(full, placement(channels_last=False)).decode(latents)
    assert made.dtype == torch.uint8
    assert made.shape == (2, 64, 48, 3)
    assert (made.int() - wanted.int()).abs().max() <= 1


def test_encoding_is_the_inverse_scaling(full: Any) -> None:
    picture = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    noise = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(3))
    mean, std = (torch.tensor(v).view(1, 4, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        posterior = full.encode(picture).latent_dist
    wanted = (posterior.mean + posterior.std * noise - mean) * 0.5 / std
    torch.testing.assert_close(Codec(full, placement(channels_last=False)).encode(picture, [noise]), wanted)


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
        wanted = pixels_of(tiny.decode(latents).sample)
    assert (codec.decode(latents).int() - wanted.int()).abs().max() <= 1
    picture = torch.zeros(1, 3, 64, 48)
    with torch.no_grad():
        known = tiny.encode(picture).latents
    torch.testing.assert_close(codec.encode(picture, [torch.ones(1, 4, 8, 6)]), known)


def test_a_batch_is_its_singles(full: Any, latents: torch.Tensor) -> None:
    codec = Codec(full, placement(channels_last=False))
    singles = torch.cat([codec.decode(one) for one in latents.split(1)])
    assert torch.equal(codec.decode(latents), singles)


def test_pictures_that_are_not_numbers_are_named(full: Any, latents: torch.Tensor) -> None:
    broken = latents.clone()
    broken[1, 0, 0, 0] = torch.nan
    with pytest.raises(GenerationError, match="picture 1"):
        Codec(full, placement(channels_last=False)).decode(broken)


def test_rounding_and_clipping() -> None:
    row = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert pixels_of(row)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
