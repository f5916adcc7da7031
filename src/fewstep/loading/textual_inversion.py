"""Textual inversion (arXiv:2208.01618): words learned as rows of token embeddings.

The word is the file's name without its ending, or its own name where it is bundled with a LoRA. It is
read in any case, wherever it stands as a word of its own. A tokenizer reads it as one token per vector,
of which only the last ends a word: windows and weights then treat them as the syllables of any long word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.architectures.text import TextEncoder
from fewstep.catalog import addons
from fewstep.errors import CorruptModelError, RequestError
from fewstep.files import safetensors
from fewstep.files.untrusted import printable_path, raise_as_corrupt
from fewstep.prompts import WINDOW_TOKENS, Fragment, parse_fragments

PRIVATE_USE = 0xF0000  # where Unicode has characters that nobody writes; one stands for each vector
LEGACY_EOS = 2  # SDXL's text encoders have this as eos_token_id, which is not what it says


@dataclass(frozen=True, eq=False)
class LearnedWord:
    """A learned word."""

    text: str
    vectors: tuple[Tensor, ...]  # (n, width) for each encoder


def add_words(text: TextEncoder, sources: Sequence[str]) -> None:
    """Teach the words of these files; to be called before there are hooks on the encoders."""
    name = "embeddings"
    files = [addons.addon_file(source, name) or addons.fetch_addon(source, name) for source in sources]
    words = [word for path in files for word in _read_words(path, len(text.encoders))]
    repeated, count = Counter(word.text.lower() for word in words).most_common(1)[0] if words else ("", 0)
    if count > 1:
        raise RequestError(f"embeddings has {count} files for the word {repeated!r}: leave out or rename one")
    for word in words:
        _require_width(word, text)
    for index, (tokenizer, encoder) in enumerate(zip(text.tokenizers, text.encoders, strict=True)):
        for word in words:
            rows = word.vectors[index]
            _add_rows(encoder, _add_tokens(tokenizer, word.text, len(rows)), rows, tokenizer.eos_token_id)


def _read_words(path: Path, encoders: int) -> list[LearnedWord]:
    """Return a file's words, each with every encoder's vectors."""
    from safetensors import safe_open

    names = addons.require_inversion(safetensors.read_header(path), encoders)
    with raise_as_corrupt(path), safe_open(path, framework="pt") as file:
        return [
            _checked_word(path, word, tuple(torch.atleast_2d(file.get_tensor(name)) for name in parts))
            for word, parts in names.items()
        ]


def _checked_word(path: Path, word: str, tensors: tuple[Tensor, ...]) -> LearnedWord:
    for vectors in tensors:
        if vectors.ndim != 2 or not 1 <= len(vectors) <= WINDOW_TOKENS or not vectors.is_floating_point():
            raise CorruptModelError(
                f"{printable_path(path)} has {tuple(vectors.shape)} for a word: give (n, width), n from 1 to "
                f"{WINDOW_TOKENS}"
            )
    if not re.search(r"\w", word) or parse_fragments(word) != (Fragment(word, 1.0),):
        raise RequestError(f"{word!r} cannot be written in a prompt: rename {printable_path(path)}")
    return LearnedWord(word, tensors)


def _require_width(word: LearnedWord, text: TextEncoder) -> None:
    needed = tuple(_token_embedding(encoder).weight.shape[1] for encoder in text.encoders)
    widths = tuple(vectors.shape[1] for vectors in word.vectors)
    if widths != needed:
        raise CorruptModelError(
            f"embeddings: the word {word.text!r} is for text encoders of widths {widths}, and this model's "
            f"have {needed}: it was made for another base"
        )


def _add_tokens(tokenizer: Any, word: str, count: int) -> list[int]:
    """Have a word read as `count` new tokens, whose ids are returned."""
    from tokenizers import AddedToken, Regex, normalizers

    backend, first_code = tokenizer.backend_tokenizer, PRIVATE_USE + len(tokenizer)
    signs = [chr(first_code + number) for number in range(count)]
    signs[-1] += "</w>"  # as CLIP's vocabulary marks what ends a word
    # As the text will be when it is looked for: in small letters, and with earlier words replaced.
    escaped = re.escape(backend.normalizer.normalize_str(word))
    pattern = Regex(rf"(?<!\w)(?<!</){escaped}(?!\w)")  # nor inside such a mark
    backend.normalizer = normalizers.Sequence(
        [backend.normalizer, normalizers.Replace(pattern, "".join(signs))]
    )
    tokenizer.add_tokens([AddedToken(sign, normalized=True, special=False) for sign in signs])
    ids: list[int] = tokenizer.convert_tokens_to_ids(signs)
    return ids


def _add_rows(encoder: Any, ids: Sequence[int], rows: Tensor, end: int) -> None:
    """Give new tokens their rows; `end` is the id of the token that ends a prompt."""
    table = _token_embedding(encoder)
    old_rows = table.weight.data
    size = max(len(old_rows), max(ids) + 1)
    new_rows = torch.cat([old_rows, old_rows.new_zeros(size - len(old_rows), old_rows.shape[1])])
    new_rows[list(ids)] = rows.to(new_rows)
    table.weight, table.num_embeddings = nn.Parameter(new_rows, requires_grad=False), size
    encoder.config.vocab_size = size
    module: Any
    for module in encoder.modules():
        # Where it says 2, transformers takes the highest id for the prompt's end: now that is a word's.
        if getattr(module, "eos_token_id", None) == LEGACY_EOS:
            module.eos_token_id = end


def _token_embedding(encoder: Any) -> nn.Embedding:
    table: nn.Embedding = encoder.get_input_embeddings()
    return table
