"""The vocabulary: CLIP's own files, read alike by transformers and by CLIP's own algorithm."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from fewstep.train.bundled import vocabulary
from fewstep.train.bundled.data import Caption

PROMPTS = (
    "a grinning face, 3d style",
    "Red HEART",
    "an orange cat's 42 rockets!",
    "",
    "cat face on a teal background",
)
STRANGE = ("日本", "naïve café", "€5", "🙂 smile")


def bytes_to_unicode() -> dict[int, str]:
    """Every byte as a printable character (openai/CLIP, simple_tokenizer.py)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return dict(zip(shown, map(chr, shown), strict=True)) | {b: chr(256 + i) for i, b in enumerate(hidden)}


def merged(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """CLIP's byte-pair encoding of one word, lowest rank first."""
    letters = bytes_to_unicode()
    pieces = [letters[b] for b in word.encode()]
    pieces[-1] += "</w>"
    while True:
        pairs = [(ranks[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not pairs:
            return pieces
        at = min(pairs)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def test_the_files_are_clips(tokenizer_folder: Path) -> None:
    vocab = json.loads((tokenizer_folder / "vocab.json").read_text())
    header, *lines = (tokenizer_folder / "merges.txt").read_text().splitlines()
    entries = sorted(vocab, key=lambda entry: int(vocab[entry]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert header.startswith("#version")
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert entries[:512] == alphabet + [letter + "</w>" for letter in alphabet]
    assert entries[512:-2] == [line.replace(" ", "") for line in lines]
    assert entries[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert set(alphabet) == set(bytes_to_unicode().values())


@pytest.mark.parametrize("prompt", [*PROMPTS, *STRANGE])
def test_ids_equal_clips_algorithm(tokenizer_folder: Path, tokenizer: CLIPTokenizer, prompt: str) -> None:
    vocab = json.loads((tokenizer_folder / "vocab.json").read_text())
    lines = (tokenizer_folder / "merges.txt").read_text().splitlines()[1:]
    ranks = {(a, b): rank for rank, (a, b) in enumerate(line.split() for line in lines)}
    words = [word for word, _ in pre_tokenizers.WhitespaceSplit().pre_tokenize_str(prompt.lower())]
    split = [piece for word in words for piece in vocabulary_words(word)]
    expected = [vocab[entry] for word in split for entry in merged(word, ranks)]
    assert tokenizer(prompt).input_ids == [len(vocab) - 2, *expected, len(vocab) - 1]


def vocabulary_words(word: str) -> list[str]:
    """CLIP's split: contractions, runs of letters, single digits, runs of signs."""
    if word.endswith("'s"):
        return [*vocabulary_words(word[:-2]), "'s"]
    kinds = ["letter" if c.isalpha() else f"digit {i}" if c.isdigit() else "sign" for i, c in enumerate(word)]
    pieces: list[str] = []
    for i, letter in enumerate(word):
        if i and kinds[i] == kinds[i - 1]:
            pieces[-1] += letter
        else:
            pieces.append(letter)
    return pieces


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("tokenizer.json", "tokenizer_config.json")])
def test_read_back_with_the_same_ids(
    captions: list[Caption], tokenizer_folder: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    built = vocabulary.build_tokenizer(captions, tmp_path / "built")
    for name in names:
        shutil.copy(tokenizer_folder / name, tmp_path / name)
    read = CLIPTokenizer.from_pretrained(tmp_path)
    for prompt in (*PROMPTS, *STRANGE):
        assert read(prompt).input_ids == built(prompt).input_ids


@pytest.mark.parametrize("text", STRANGE)
def test_unknown_characters_survive_as_bytes(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert str(tokenizer.decode(ids[1:-1])).replace(" ", "") == text.replace(" ", "")


def test_specials(tokenizer: CLIPTokenizer) -> None:
    size = len(tokenizer)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        size - 2,
        size - 1,
        size - 1,
    )
    assert tokenizer("").input_ids == [size - 2, size - 1]
    assert size <= vocabulary.VOCABULARY_SIZE


@pytest.mark.parametrize("prompt", ["red heart", "", "umbrella " * 100])
def test_77_ids(tokenizer: CLIPTokenizer, prompt: str) -> None:
    assert tokenizer.model_max_length == 77
    ids = tokenizer(prompt, padding="max_length", truncation=True).input_ids
    assert len(ids) == 77
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id


def test_words_of_the_captions_are_single_tokens(tokenizer: CLIPTokenizer) -> None:
    for word in ("heart", "umbrella", "style", "background"):
        assert len(tokenizer(word).input_ids) == 3


def test_no_path_is_written(tokenizer_folder: Path) -> None:
    for path in tokenizer_folder.iterdir():
        assert str(tokenizer_folder) not in path.read_text()
        assert "/tmp" not in path.read_text()
