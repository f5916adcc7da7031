"""Prompts of any length: every token is read, or refused, or told to be cut."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTokenizer

from fewstep import RequestError
from fewstep.architectures.text import TextEncoder
from fewstep.prompts import Prompt, split_windows, tokenize_prompt
from tests.architectures.sentences import (
    LONG,
    PROMPTS,
    SIZE,
    Make,
    Networks,
    content,
    foxes,
    plain,
    same,
    weighs,
    whole,
    window,
)


def test_there_are_forty_prompts(networks: Networks) -> None:
    counts = [len(whole(networks[0], prompt)) for prompt in PROMPTS]
    assert len(set(PROMPTS)) == 40
    assert {0, 75, 76, 150, 151, 400} <= set(counts)
    assert sum(count > 75 for count in counts) > 25


@pytest.mark.parametrize("prompt", PROMPTS)
def test_chunk_reads_every_token(prompt: str, text: TextEncoder, seen: list[list[list[int]]]) -> None:
    told = text.encode([prompt], SIZE)
    assert text.check([prompt], "chunk") == ()
    assert told.tokens.shape == (1, 77 * told.windows[0], 80)
    for tokenizer, rows in zip(text.tokenizers, seen, strict=True):
        expected = whole(tokenizer, prompt)
        made = [content(tokenizer, row) for row in rows]
        if weighs(prompt):  # compel looks at more than the prompt, in the same windows
            reading = tokenize_prompt(tokenizer, prompt)
            made = [reading.ids[part] for part in split_windows(reading.ends)]
        assert [token for ids in made for token in ids] == expected
        assert len(made) == told.windows[0]
        for ids in made[:-1]:
            ends = [token.endswith("</w>") for token in tokenizer.convert_ids_to_tokens(ids)]
            assert ends[-1] or (len(ids) == 75 and not any(ends))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_refuse_says_what_does_not_fit(prompt: str, text: TextEncoder) -> None:
    count = len(whole(text.tokenizers[0], prompt))
    if count <= 75:
        assert text.check([prompt], "refuse") == ()
        assert same(text.encode([prompt], SIZE, "refuse"), text.encode([prompt], SIZE))
        return
    text.encode([prompt], SIZE)  # to be known is not to be allowed
    for refused in (lambda: text.check([prompt], "refuse"), lambda: text.encode([prompt], SIZE, "refuse")):
        with pytest.raises(RequestError, match=f"{count} tokens, 75 fit.*'chunk'.*'cut'") as refusal:
            refused()
        assert repr(tokenize_prompt(text.tokenizers[0], prompt).rest) in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_cut_says_what_was_not_read(prompt: str, text: TextEncoder) -> None:
    tokenizer = text.tokenizers[0]
    tokens = whole(tokenizer, prompt)
    told = text.encode([prompt], SIZE, "cut")
    warnings = text.check([prompt], "cut")
    assert told.windows == (1,)
    if not weighs(prompt):  # as without syntax, where the tokenizer itself cuts
        expected = text.batch([plain(prompt)], SIZE)
        blank = prompt == ""
        assert torch.equal(told.tokens, expected.tokens * (not blank))
        assert torch.equal(told.added["text_embeds"], expected.added["text_embeds"] * (not blank))
    if len(tokens) <= 75:
        assert warnings == ()
        return
    (warning,) = warnings
    rest = tokenize_prompt(tokenizer, prompt).rest
    assert repr(rest) in warning
    assert plain(prompt).endswith(rest)
    if not weighs(prompt) and tokenizer.convert_ids_to_tokens(tokens[74]).endswith("</w>"):
        assert whole(tokenizer, rest.replace("(", r"\(")) == tokens[75:]


@pytest.mark.parametrize("prompt", [p for p in PROMPTS if not weighs(p)])
def test_one_window_has_the_bits_it_always_had(prompt: str, text: TextEncoder) -> None:
    """Up to 75 tokens, the answer is that of transformers' own padding and cutting."""
    if not 0 < len(whole(text.tokenizers[0], prompt)) <= 75:
        return
    told, hidden = text.encode([prompt], SIZE), []
    for tokenizer, encoder in zip(text.tokenizers, text.encoders, strict=True):
        ids = tokenizer(
            [plain(prompt)], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            answer = encoder(ids, output_hidden_states=True)
        hidden.append(answer.hidden_states[-2])
    assert torch.equal(told.tokens, torch.cat(hidden, dim=-1))
    assert torch.equal(told.added["text_embeds"], answer.text_embeds)


def test_windows_are_encoded_each_by_itself(text: TextEncoder) -> None:
    prompt = foxes(70) + " in the deep snow and an owl"
    ids = whole(text.tokenizers[0], prompt)
    first, second = (
        [ids[part]] * 2 for part in split_windows(tokenize_prompt(text.tokenizers[0], prompt).ends)
    )
    halves = [window(text, half) for half in (first, second)]
    told = text.encode([prompt], SIZE)
    assert told.windows == (2,)
    assert torch.equal(told.tokens[0], torch.cat([tokens for tokens, _ in halves]))
    assert torch.equal(told.added["text_embeds"][0], halves[0][1])


def test_each_cut_prompt_is_told_once(text: TextEncoder) -> None:
    told = text.check([LONG, "a fox", LONG, Prompt("a fox", LONG), Prompt(foxes(80), LONG)], "cut")
    assert len(told) == 2
    assert "and an owl" in told[0]
    assert foxes(5) in told[1]


def test_the_rest_is_in_the_words_of_the_prompt(text: TextEncoder) -> None:
    """Not as tokens read it, in lower case and without spaces."""
    for start in (foxes(75), f"({foxes(40)}:1.2) \\({foxes(32)}\\) fox"):
        assert tokenize_prompt(text.tokenizers[0], start + "  A Big\nOWL, 🦊").rest == "A Big\nOWL, 🦊"


def test_zeros_after_a_short_row(text: TextEncoder) -> None:
    told = text.encode(["a fox", LONG, foxes(76)], SIZE)
    assert told.windows == (1, 2, 2)
    assert told.tokens.shape == (3, 154, 80)
    assert not told.tokens[0, 77:].any()
    for row, prompt in enumerate(["a fox", LONG, foxes(76)]):
        assert same(told.select([row]), text.encode([prompt], SIZE))
    assert same(told.select([1, 2]), text.encode([LONG, foxes(76)], SIZE))
    assert same(text.encode(["a fox"], SIZE).join(text.encode([LONG, foxes(76)], SIZE)), told)


def test_pairs_are_filled_up_with_the_empty_prompt(make: Make) -> None:
    text = make()
    blank, _ = window(text, [[], []])
    said, against = ["a fox", LONG, LONG, foxes(160)], ["an owl", "", "an owl", LONG]
    negative, positive = text.encode_pairs(against, said, SIZE)
    assert negative.windows == positive.windows == (1, 2, 2, 3)
    assert same(positive, text.encode(said, SIZE))
    alone = text.encode(against, SIZE)
    for row, count in enumerate(alone.windows):
        assert torch.equal(negative.tokens[row, : 77 * count], alone.tokens[row, : 77 * count])
    assert torch.equal(negative.tokens[2, 77:154], blank)
    assert torch.equal(negative.tokens[3, 154:], blank)
    assert not negative.tokens[1].any()  # zeros go on as zeros
    assert torch.equal(negative.added["text_embeds"], alone.added["text_embeds"])
    encoded, _ = make(zero_empty=False).encode_pairs([""], [LONG], SIZE)
    assert torch.equal(encoded.tokens[0], torch.cat([blank, blank]))


def test_the_shorter_encoder_is_filled_up(make: Make, networks: Networks) -> None:
    """Tokenizers of different vocabularies need different numbers of windows for one prompt."""
    usual = networks[0]
    bare = CLIPTokenizer(vocab=usual.get_vocab(), merges=[], model_max_length=77)
    for tokenizers, width in (((bare, networks[1]), slice(32, 80)), ((usual, bare), slice(0, 32))):
        text = make(tokenizers)
        prompt = "a red fox in the snow " * 5
        counts = [len(split_windows(tokenize_prompt(t, prompt).ends)) for t in tokenizers]
        assert sorted(counts) == [1, 2]
        told = text.encode([prompt], SIZE)
        assert told.windows == (2,)
        assert torch.equal(told.tokens[0, 77:, width], window(text, [[], []])[0][:, width])
        (warning,) = text.check([prompt], "cut")
        assert "snow" in warning
