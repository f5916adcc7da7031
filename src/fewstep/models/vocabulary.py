"""CLIP's vocabulary, for checkpoints that come without: SDXL's two tokenizers from this package alone."""

from __future__ import annotations

import lzma
from itertools import chain
from pathlib import Path
from typing import Any

MERGES = Path(__file__).parent / "sdxl" / "merges.txt.xz"
START, END = "<|startoftext|>", "<|endoftext|>"
SIZE = 49_408  # 2 x 256 bytes, the merges, and the two signs


def tokenizers() -> tuple[Any, Any]:
    """Of SDXL's first and second text encoder; they differ in what fills a short prompt up."""
    from transformers import CLIPTokenizer

    merges: Any = [tuple(line.split()) for line in lzma.decompress(MERGES.read_bytes()).decode().splitlines()]
    letters = byte_letters()
    words = chain(letters, (f"{letter}</w>" for letter in letters), map("".join, merges), (START, END))
    ids = {word: number for number, word in enumerate(words)}
    # "!" is number 0, with which OpenCLIP fills up (SDXL's tokenizer_2).
    first, second = (
        CLIPTokenizer(
            vocab=ids, merges=merges, unk_token=END, bos_token=START, eos_token=END, pad_token=pad,
            model_max_length=77,
        )
        for pad in (END, "!")
    )  # fmt: skip
    return first, second


def byte_letters() -> list[str]:
    """A letter for each byte, in CLIP's order: printable ones are themselves (GPT-2's rule)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(plain)
    return [*map(chr, plain), *(chr(256 + number) for number in range(others))]
