"""A picture does not depend on its neighbours, however long their prompts are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from fewstep.architectures.text import TextEncoder
from fewstep.denoiser import Cfg, Conditioning, Denoiser, Network
from fewstep.runtimes.batching import SharedNetwork, group_rows
from fewstep.runtimes.eager import eager_network
from tests.architectures.sentences import LONG, SIZE, foxes

SAID = ["a red fox", LONG, "an owl in the snow", foxes(160), "", "the sun", foxes(76)]
AGAINST = ["bright", "", "an (owl:1.3)", "the sun", LONG, foxes(151), foxes(100)]
SIGMA = 3.0


@pytest.fixture(scope="module")
def unet(sdxl_folder: Path) -> Network:
    module = UNet2DConditionModel.from_pretrained(sdxl_folder / "unet").requires_grad_(False).eval()
    return eager_network(module)


def listened(unet: Network, calls: list[tuple[int, int]]) -> Network:
    """`unet`, noting how many rows of how many tokens it is called with."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        calls.append((len(x), conditioning.tokens.shape[1]))
        assert conditioning.tokens.any(dim=2).all(dim=1).sum() >= len(x) - 1  # the empty prompt
        return unet(x, timestep, conditioning, embedding)

    return call


def denoised(unet: Network, text: TextEncoder, rows: Sequence[int], *, guided: bool) -> Tensor:
    """One denoising of these pictures, each from its own noise."""
    noise = [torch.randn(4, 12, 8, generator=torch.Generator().manual_seed(row)) for row in rows]
    said = [SAID[row] for row in rows]
    cfg, told = None, text.encode(said, SIZE)
    if guided:
        against, told = text.encode_pairs([AGAINST[row] for row in rows], said, SIZE)
        cfg = Cfg(negative=against, scale=5.0, rescale=0.5)
    return Denoiser(unet, told, cfg=cfg)(SIGMA * torch.stack(noise), SIGMA)


@pytest.mark.parametrize("guided", [False, True])
def test_pictures_are_their_singles(guided: bool, unet: Network, text: TextEncoder) -> None:
    rows = range(len(SAID))
    together = denoised(SharedNetwork(unet, limit=1), text, rows, guided=guided)
    for row in rows:
        assert torch.equal(
            together[row : row + 1], denoised(SharedNetwork(unet, limit=1), text, [row], guided=guided)
        )
    shuffled = [3, 0, 6, 2, 5, 1, 4]
    again = denoised(SharedNetwork(unet, limit=1), text, shuffled, guided=guided)
    assert torch.equal(again, together[shuffled])
    for limit in (0, 2, 3):
        larger = denoised(SharedNetwork(unet, limit=limit), text, rows, guided=guided)
        assert torch.allclose(larger, together, atol=1e-3)


def test_long_prompts_are_felt_to_their_end(unet: Network, text: TextEncoder) -> None:
    def drawn(prompt: str, way: str) -> Tensor:
        told = text.encode([prompt], SIZE, way)
        return Denoiser(SharedNetwork(unet, limit=0), told)(torch.ones(1, 4, 12, 8), SIGMA)

    assert (drawn(LONG, "chunk") - drawn(LONG, "cut")).abs().max() > 0.01
    assert torch.equal(drawn("a fox", "chunk"), drawn("a fox", "cut"))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (0, [(4, 77), (2, 154), (1, 231)]),
        (2, [(2, 77), (2, 77), (2, 154), (1, 231)]),
        (3, [(3, 77), (1, 77), (2, 154), (1, 231)]),
        (1, [(1, 77)] * 4 + [(1, 154)] * 2 + [(1, 231)]),
    ],
)
def test_rows_of_one_length_go_together(
    limit: int, expected: list[tuple[int, int]], unet: Network, text: TextEncoder
) -> None:
    calls: list[tuple[int, int]] = []
    denoised(SharedNetwork(listened(unet, calls), limit=limit), text, range(len(SAID)), guided=False)
    assert calls == expected


def test_equal_rows_are_handed_on_as_they_are(text: TextEncoder) -> None:
    told = text.encode(["a fox", "an owl"], SIZE)
    x, level = torch.zeros(2, 4, 12, 8), torch.zeros(2)

    def call(*given: object, **_: object) -> Tensor:
        assert all(one is other for one, other in zip(given, (x, level, told, None), strict=True))
        return x + 1

    assert torch.equal(SharedNetwork(cast(Network, call), limit=0)(x, level, told, None), x + 1)


def test_each_row_keeps_its_own_embedding_and_timestep(text: TextEncoder) -> None:
    told = text.encode(["a fox", LONG, "an owl"], SIZE)
    x, level, embedding = torch.randn(3, 4, 6, 6), torch.randn(3), torch.randn(3, 1)

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        assert embedding is not None
        return (
            x * timestep.view(-1, 1, 1, 1)
            + (embedding * conditioning.added["text_embeds"])[:, :1, None, None]
        )

    assert torch.equal(
        SharedNetwork(call, limit=0)(x, level, told, embedding), call(x, level, told, embedding)
    )


def test_batches() -> None:
    assert group_rows((1, 1, 1), 0) == [[0, 1, 2]]
    assert group_rows((1, 1, 1), 2) == [[0, 1], [2]]
    assert group_rows((2, 1, 2, 1), 0) == [[0, 2], [1, 3]]
    assert group_rows((2, 1, 2, 2), 2) == [[0, 2], [3], [1]]
