"""Textual inversions: words that files teach, as diffusers' `load_textual_inversion` teaches them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fewstep import CorruptModelError, ModelNotFoundError, RequestError
from fewstep.architectures.text import TextEncoder
from fewstep.loading import textual_inversion
from fewstep.prompts import split_windows, tokenize_prompt

SIZE = (96, 96)
WIDTHS = (32, 48)  # of the fixture's text encoders
Make = Callable[..., TextEncoder]


@pytest.fixture
def fresh(sdxl_folder: Path) -> Callable[[], TextEncoder]:
    """Text encoders that a test may teach."""

    def made() -> TextEncoder:
        first, second = (CLIPTokenizer.from_pretrained(sdxl_folder / f"tokenizer{end}") for end in ("", "_2"))
        one = CLIPTextModel.from_pretrained(sdxl_folder / "text_encoder").eval()
        two = CLIPTextModelWithProjection.from_pretrained(sdxl_folder / "text_encoder_2").eval()
        return TextEncoder((first, second), (one, two))

    return made


def file(path: Path, count: int = 3, seed: int = 0, names: tuple[str, str] = ("clip_l", "clip_g")) -> Path:
    """A learned word of `count` vectors."""
    draw = torch.Generator().manual_seed(seed)
    pairs = zip(names, WIDTHS, strict=True)
    save_file({name: torch.randn(count, width, generator=draw) for name, width in pairs}, path)
    return path


def taught(fresh: Callable[[], TextEncoder], *paths: Path) -> TextEncoder:
    text = fresh()
    textual_inversion.add_words(text, [str(path) for path in paths])
    return text


def equal(one: Any, other: Any) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip((one.tokens, *one.added.values()), (other.tokens, *other.added.values()), strict=True)
    )


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_diffusers_teaches_them(
    count: int, names: tuple[str, str], fresh: Make, sdxl_folder: Path, tmp_path: Path
) -> None:
    path = file(tmp_path / "sks.safetensors", count, names=names)
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False)
    for name, end in zip(names, ("", "_2"), strict=True):
        vectors = dict(zip(names, both(count), strict=True))[name]
        pipe.load_textual_inversion(
            {"sks": vectors}, token="sks",
            tokenizer=getattr(pipe, f"tokenizer{end}"), text_encoder=getattr(pipe, f"text_encoder{end}"),
        )  # fmt: skip
    text = taught(fresh, path)
    prompts = ["a sks fox", "sks", "an owl, sks, in the snow with sks"]
    prompts += ["A red SKS"] if count == 1 else []  # of several vectors, diffusers then reads the first
    for prompt in prompts:
        tokens, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        told = text.encode([prompt], SIZE)
        torch.testing.assert_close(told.tokens, tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(told.added["text_embeds"], pooled, rtol=0, atol=1e-5)


def both(count: int, seed: int = 0) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, width, generator=draw) for width in WIDTHS)


@pytest.mark.parametrize(
    "prompt",
    ["", "a red fox", "asks skss sk s", "a fox's 雪 🦊 <|endoftext|> </w>", "fox " * 100, "(fox:1.3) owl"],
)
def test_a_prompt_without_the_word_has_the_same_bits(prompt: str, fresh: Make, tmp_path: Path) -> None:
    paths = [file(tmp_path / f"{stem}.safetensors") for stem in ("sks", "w", "0", "f0000")]
    assert equal(taught(fresh, *paths).encode([prompt], SIZE), fresh().encode([prompt], SIZE))


def test_the_word_changes_the_answer(fresh: Make, tmp_path: Path) -> None:
    one = taught(fresh, file(tmp_path / "sks.safetensors", seed=1)).encode(["a sks fox"], SIZE)
    other = taught(fresh, file(tmp_path / "sks.safetensors", seed=2)).encode(["a sks fox"], SIZE)
    assert not torch.equal(one.tokens, other.tokens)
    assert not torch.equal(one.added["text_embeds"], other.added["text_embeds"])


@pytest.mark.parametrize("stem", ["My-Style_v2", "unaesthetic XL (v3)", "狐", "é", "w", "c++", "style.v2"])
def test_words_of_many_kinds(stem: str, fresh: Make, tmp_path: Path) -> None:
    text = taught(fresh, file(tmp_path / f"{stem}.safetensors", 2))
    for tokenizer in text.tokenizers:
        new = [len(tokenizer) - 2, len(tokenizer) - 1]
        reading = tokenize_prompt(tokenizer, f"fox, {stem.upper()} owl")
        assert [token for token in reading.ids if token in new] == new


@pytest.mark.parametrize("order", [1, -1])
def test_a_word_that_is_part_of_another(order: int, fresh: Make, tmp_path: Path) -> None:
    files = [file(tmp_path / "sks.safetensors", 2), file(tmp_path / "sks-two.safetensors", 3)]
    text = taught(fresh, *files[::order])
    tokenizer = text.tokenizers[0]
    old = len(tokenizer) - 5
    counts = [
        sum(token >= old for token in tokenize_prompt(tokenizer, p).ids)
        for p in ("sks", "sks-two", "sks-three")
    ]
    assert counts == [2, 3, 2]


@pytest.mark.parametrize("before", [73, 74, 75, 76])
def test_windows_keep_its_vectors_together(before: int, fresh: Make, tmp_path: Path) -> None:
    text = taught(fresh, file(tmp_path / "sks.safetensors", 4))
    prompt = f"{'fox ' * (before // 2)}sks owl"
    tokenizer = text.tokenizers[0]
    reading = tokenize_prompt(tokenizer, prompt)
    new = [number for number, token in enumerate(reading.ids) if token >= len(tokenizer) - 4]
    assert [reading.ends[number] for number in new] == [False, False, False, True]
    parts = split_windows(reading.ends)
    assert sum(part.start <= new[0] and new[-1] < part.stop for part in parts) == 1
    assert text.encode([prompt], SIZE).windows == (len(parts),)


def test_what_is_cut_off_is_told_as_it_was_written(fresh: Make, tmp_path: Path) -> None:
    text = taught(fresh, file(tmp_path / "sks.safetensors", 4))
    ids = len(tokenize_prompt(text.tokenizers[0], "fox").ids)
    for before in range(72, 77):
        rest = tokenize_prompt(text.tokenizers[0], f"{'fox ' * (before // ids)}, sks owl").rest
        assert not any(ord(letter) > 0xE000 for letter in rest)
        assert rest.endswith("sks owl") or rest in ("owl", "")


def test_weights_on_it(fresh: Make, tmp_path: Path) -> None:
    text = taught(fresh, file(tmp_path / "sks.safetensors", 2))
    plain, heavy, light = (
        text.encode([p], SIZE).tokens for p in ("a sks fox", "a (sks:1.4) fox", "a (sks:0.5) fox")
    )
    assert not torch.equal(plain, heavy)
    assert not torch.equal(plain, light)
    assert torch.equal(text.encode(["a (sks:1.0) fox"], SIZE).tokens, plain)
    # Its two tokens are moved away from the empty prompt, and no other (compel's rule above 1).
    blank = text.embed(" ").tokens
    begin = 1 + len(tokenize_prompt(text.tokenizers[0], "a").ids)
    rows = slice(begin, begin + 2)
    torch.testing.assert_close(heavy[0, rows], blank[rows] + 1.4 * (plain[0, rows] - blank[rows]))


def test_the_end_of_the_prompt_is_still_its_end(fresh: Make, tmp_path: Path) -> None:
    """SDXL's encoders say eos_token_id 2, for which transformers takes the highest id: a new word's."""
    path = file(tmp_path / "sks.safetensors", 1)
    legacy, right = fresh(), taught(fresh, path)
    for encoder in legacy.encoders:
        for module in encoder.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = 2  # type: ignore[assignment]
    expected = legacy.encode(["a fox"], SIZE)
    textual_inversion.add_words(legacy, [str(path)])
    legacy.forget()
    assert equal(legacy.encode(["a fox"], SIZE), expected)
    assert equal(legacy.encode(["a sks fox"], SIZE), right.encode(["a sks fox"], SIZE))


def write(path: Path, **shapes: tuple[int, ...]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "SD 1.5": (lambda path: write(path, emb_params=(2, 768)), r"sd-1\.x.*clip_l and clip_g"),
    "one encoder": (lambda path: write(path, clip_g=(2, 48)), "clip_l and clip_g"),
    "another base": (lambda path: write(path, clip_l=(2, 64), clip_g=(2, 128)), r"\(64, 128\).*\(32, 48\)"),
    "a LoRA": (
        lambda path: write(path, **{f"lora_unet_conv_in.lora_{x}.weight": (2, 2) for x in ("up", "down")}),
        "no textual inversion",
    ),
    "no vector": (lambda path: write(path, clip_l=(0, 32), clip_g=(0, 48)), "n from 1 to 75"),
    "too many": (lambda path: write(path, clip_l=(76, 32), clip_g=(76, 48)), "n from 1 to 75"),
    "three dimensions": (lambda path: write(path, clip_l=(1, 1, 32), clip_g=(1, 48)), r"\(1, 1, 32\)"),
    "garbage": (lambda path: path.write_bytes(b"\x80\x04garbage" * 9), "pickle"),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_are_none(name: str, fresh: Make, tmp_path: Path) -> None:
    path = tmp_path / "word.safetensors"
    WRONG[name][0](path)
    with pytest.raises(CorruptModelError, match=WRONG[name][1]) as told:
        taught(fresh, path)
    assert "word" in str(told.value)
    assert "\n" not in str(told.value)


def test_words_that_cannot_be_written(fresh: Make, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twice = [file(tmp_path / "sks.safetensors"), file(tmp_path / "other" / "SKS.safetensors")]
    with pytest.raises(RequestError, match="2 files for the word 'sks'"):
        taught(fresh, *twice)
    for stem in ("(sks:1.2)", "..."):
        with pytest.raises(RequestError, match="cannot be written in a prompt"):
            taught(fresh, file(tmp_path / f"{stem}.safetensors"))
    with pytest.raises(ModelNotFoundError, match="embeddings has"):
        taught(fresh, tmp_path / "nothing.safetensors")


def test_words_bundled_with_a_lora(fresh: Make, tmp_path: Path) -> None:
    """As OneTrainer and AUTOMATIC1111's bundler write them: each by its own name."""
    alone = [file(tmp_path / f"{word}.safetensors", seed=seed) for seed, word in enumerate(("mycat", "sks"))]
    bundle = {"lora_te1_x.alpha": torch.tensor(1.0)}
    for path in alone:
        bundle |= {f"bundle_emb.{path.stem}.{name}": value for name, value in load_file(path).items()}
    save_file(bundle, tmp_path / "style.safetensors")
    one, other = taught(fresh, *alone), taught(fresh, tmp_path / "style.safetensors")
    first, second = (text.embed("mycat, sks") for text in (one, other))
    assert torch.equal(first.tokens, second.tokens)
    assert not torch.equal(first.tokens, fresh().embed("mycat, sks").tokens)
    save_file({"bundle_emb.a.clip_l_out": torch.zeros(1, 32)}, tmp_path / "output.safetensors")
    with pytest.raises(CorruptModelError, match=r"has clip_l_out for the word 'a': .*only OneTrainer adds"):
        taught(fresh, tmp_path / "output.safetensors")
