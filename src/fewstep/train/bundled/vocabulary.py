"""A CLIP tokenizer for the captions: byte-pair encoding in CLIP's own file format."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from fewstep.train.bundled import sprite_pictures
from fewstep.train.bundled.data import Caption

VOCABULARY_SIZE = 3000  # entries, the two special ones included
_SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
# CLIP's split into words, numbers and signs (Radford et al. 2021, the released tokenizer).
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def build_tokenizer(captions: list[Caption], folder: Path, *, seed: int = 0) -> CLIPTokenizer:
    """Learn a vocabulary from the captions and write it to `folder`."""
    bpe = Tokenizer(models.BPE(unk_token=_SPECIAL[1], end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
    )
    bpe.train_from_iterator(_caption_lines(captions, seed), trainer)
    return _write_tokenizer(json.loads(bpe.to_str())["model"], folder)


def _caption_lines(captions: list[Caption], seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for caption in captions:
        yield sprite_pictures.make_prompt(caption, rng.choice(list(sprite_pictures.COLOURS)), rng, empty=0)
        yield " ".join(caption.tags)


def _write_tokenizer(model: dict[str, object], folder: Path) -> CLIPTokenizer:
    """CLIP's two files: every byte bare and at a word's end, then merges, then the specials."""
    merges = [" ".join(m) if isinstance(m, list) else str(m) for m in model["merges"]]  # type: ignore[attr-defined]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, *(c + "</w>" for c in alphabet), *(m.replace(" ", "") for m in merges), *_SPECIAL]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {entry: i for i, entry in enumerate(dict.fromkeys(entries))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(m + "\n" for m in merges))
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
