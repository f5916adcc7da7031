"""CLIP's vocabulary, for checkpoints that come without: tokenizers from this package alone."""

from __future__ import annotations

import lzma
from itertools import chain
from pathlib import Path
from typing import Any

from fewstep.errors import CorruptModelError
from fewstep.files.untrusted import raise_as_corrupt

MERGES_FILE = Path(__file__).parent / "clip_merges.txt.xz"
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_VOCABULARY = 49_408  # 2 x 256 bytes, the merges, and the two signs


def clip_tokenizer(*, pads_with_end: bool) -> Any:
    """Return CLIP's; a short prompt is filled up with its end sign, or with "!", as OpenCLIP's are."""
    from transformers import CLIPTokenizer

    merges: Any = [
        tuple(line.split()) for line in lzma.decompress(MERGES_FILE.read_bytes()).decode().splitlines()
    ]
    letters = byte_letters()
    tokens = chain(letters, (f"{letter}</w>" for letter in letters), map("".join, merges), (START, END))
    ids = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=ids, merges=merges, unk_token=END, bos_token=START, eos_token=END,
        pad_token=END if pads_with_end else "!",  # "!" is number 0
        model_max_length=77,
    )  # fmt: skip


def byte_letters() -> list[str]:
    """Return a letter for each byte, in CLIP's order: printable ones are themselves (GPT-2's rule)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    unprintable = 256 - len(printable)
    return [*map(chr, printable), *(chr(256 + number) for number in range(unprintable))]


MAX_TOKENIZER_FILE = 16 * 2**20  # bytes: the most of each of its files; CLIP's tokenizer.json has 3.6 million


def load_tokenizer(folder: Path, vocabulary_size: int) -> Any:
    """Return a tokenizer for an encoder of so many words: a number beyond would be past its table's end."""
    from transformers import CLIPTokenizer

    with raise_as_corrupt(folder):
        for path in folder.glob("*"):
            if path.stat().st_size > MAX_TOKENIZER_FILE:
                raise CorruptModelError(
                    f"{path} is larger than {MAX_TOKENIZER_FILE} bytes, a tokenizer's most"
                )
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        last_id = max(tokenizer.get_vocab().values(), default=0)
    signs = {f"{name}_token": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    missing = [name for name, number in signs.items() if number is None]
    if missing:
        raise CorruptModelError(f"{folder} has no {missing[0]}, which every prompt needs")
    largest_id = max(last_id, *signs.values())
    if largest_id >= vocabulary_size:
        raise CorruptModelError(
            f"{folder} has a token of number {largest_id}, and its text encoder knows {vocabulary_size}, "
            "from 0"
        )
    return tokenizer
