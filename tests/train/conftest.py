"""A vocabulary of eight captions and latents of constant patches: enough to train on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from fewstep.train.bundled import vocabulary
from fewstep.train.bundled.data import Caption
from fewstep.train.bundled.latents import Latents

LABELS = ("grinning face", "red heart", "orange cat", "apple", "rocket", "cat face", "umbrella", "red car")


@pytest.fixture(scope="session")
def captions() -> list[Caption]:
    styles = ("noto", "flat", "3d")
    return [
        Caption(label=label, style=styles[i % 3], tags=tuple(label.split()), hexcode=f"1f60{i}")
        for i, label in enumerate(LABELS)
    ]


@pytest.fixture(scope="session")
def tokenizer_folder(captions: list[Caption], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary.build_tokenizer(captions, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> CLIPTokenizer:
    read: CLIPTokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    return read


@pytest.fixture(scope="session")
def latents(captions: list[Caption]) -> Latents:
    """Two placements of each caption, (16, 4, 8, 8): one random value per channel, and a little noise."""
    generator = torch.Generator().manual_seed(5)
    patches = torch.randn(2 * len(captions), 4, 1, 1, generator=generator)
    values = patches + 0.1 * torch.randn(2 * len(captions), 4, 8, 8, generator=generator)
    backdrops = torch.arange(2 * len(captions)) % 4
    return Latents(values.half(), backdrops, captions, torch.zeros(4), torch.ones(4))
