"""Text encoders of SDXL's shape, without the rest of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fewstep.architectures.text import TextEncoder
from tests.architectures.sentences import Make, Networks


@pytest.fixture(scope="session")
def networks(sdxl_folder: Path) -> Networks:
    """Tokenizers and encoders, by transformers alone."""
    tokenizers = (CLIPTokenizer.from_pretrained(sdxl_folder / f"tokenizer{end}") for end in ("", "_2"))
    first = CLIPTextModel.from_pretrained(sdxl_folder / "text_encoder")
    second = CLIPTextModelWithProjection.from_pretrained(sdxl_folder / "text_encoder_2")
    return *tokenizers, first.eval(), second.eval()


@pytest.fixture
def make(networks: Networks) -> Make:
    """A `TextEncoder` with an empty cache."""

    def made(tokenizers: tuple[Any, Any] | None = None, **how: Any) -> TextEncoder:
        return TextEncoder(networks[:2] if tokenizers is None else tokenizers, networks[2:], **how)

    return made


@pytest.fixture
def text(make: Make) -> TextEncoder:
    return make()


@pytest.fixture
def seen(text: TextEncoder) -> Iterator[list[list[list[int]]]]:
    """The rows that each of the two encoders was called with."""
    rows: list[list[list[int]]] = [[], []]

    def listener(which: int) -> Any:
        def hear(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
            rows[which] += args[0].tolist()

        return hear

    hooks = [e.register_forward_pre_hook(listener(i)) for i, e in enumerate(text.encoders)]
    yield rows
    for hook in hooks:
        hook.remove()
