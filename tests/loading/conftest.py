"""What the tests of loading share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from fewstep.loading import tokenizers


@pytest.fixture(scope="module")
def kept_tokenizers() -> Iterator[None]:
    """Tokenizers of a folder, and CLIP's, are built once: with 49,408 words they are half of a small load.

    For tests in one thread whose models keep the tokenizers that they have.
    """
    with pytest.MonkeyPatch.context() as patch:
        for build in (tokenizers.load_tokenizer, tokenizers.clip_tokenizer):
            patch.setattr(tokenizers, build.__name__, cache(build))
        yield
