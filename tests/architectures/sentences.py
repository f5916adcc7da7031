"""Prompts of many lengths and scripts, and what transformers alone makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fewstep import Engine
from fewstep.architectures.text import TextEncoder
from fewstep.denoiser import Conditioning
from fewstep.prompts import parse_fragments

SIZE = (96, 64)  # height, width
LONG = "red fox " * 60 + "and an owl"
Load = Callable[..., Engine]
Make = Callable[..., TextEncoder]
Networks = tuple[Any, Any, Any, Any]  # both tokenizers, both encoders


def foxes(count: int) -> str:
    """So many tokens."""
    return " ".join(["fox"] * count)


PROMPTS = [
    *(foxes(n) for n in (0, 1, 2, 10, 37, 74, 75, 76, 77, 100, 149, 150, 151, 152, 225, 226, 300, 400)),
    "雪の中の赤い狐、" * 9,
    "一只红色的狐狸在雪地里。" * 3,
    "눈 속의 붉은 여우 " * 6,
    "рыжая лиса на снегу " * 9,
    "μια κόκκινη αλεπού στο χιόνι " * 3,
    "ثعلب أحمر في الثلج " * 8,
    "שועל אדום בשלג " * 9,
    "बर्फ में लाल लोमड़ी " * 2,
    "หมาจิ้งจอกแดงในหิมะ",
    "🦊" * 40,
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇯🇵 " * 7,
    "a fox\n\n\tin the\r\nsnow\n" * 20,
    "qz" * 200,
    foxes(74) + " " + "qz" * 30 + " owl",
    "?!... " * 90,
    "a, b; c: d - e / " * 20,
    r"a \(red\) fox (in) [the] {snow} ((" * 12,
    "Cafe\u0301 Ünïcödé ÀÉÎ " * 9,
    "a (red fox:1.3), an (owl:0.6)",
    "a (red fox:1.3), an (owl in (deep:1.5) snow:0.6), " * 9,
    foxes(74) + " (red owl:0.5) (" + foxes(80) + ":1.5)",
    "an <|endoftext|> owl, " * 20,
]


def same(one: Conditioning, other: Conditioning) -> bool:
    """Bit for bit."""
    parts = ((one.tokens, other.tokens), *((rows, other.added[name]) for name, rows in one.added.items()))
    return one.windows == other.windows and all(torch.equal(*pair) for pair in parts)


def window(text: TextEncoder, ids: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers makes of one window of tokens for each encoder: (77, C), (P,)."""
    hidden = []
    for tokenizer, encoder, own in zip(text.tokenizers, text.encoders, ids, strict=True):
        padding = [tokenizer.pad_token_id] * (75 - len(own))
        row = [tokenizer.bos_token_id, *own, tokenizer.eos_token_id, *padding]
        with torch.no_grad():
            answer = encoder(torch.tensor([row]), output_hidden_states=True)
        hidden.append(answer.hidden_states[-2])
    return torch.cat(hidden, dim=-1)[0], answer.text_embeds[0]


def plain(prompt: str) -> str:
    return "".join(fragment.text for fragment in parse_fragments(prompt))


def weighs(prompt: str) -> bool:
    return any(fragment.weight != 1 for fragment in parse_fragments(prompt))


def whole(tokenizer: Any, prompt: str) -> list[int]:
    """All tokens of a prompt, by transformers alone; brackets that weigh part words."""
    parts = [tokenizer(f.text, verbose=False).input_ids[1:-1] for f in parse_fragments(prompt)]
    return [token for part in parts for token in part]


def content(tokenizer: Any, row: list[int]) -> list[int]:
    """A row of 77 without its signs of begin and end and its padding."""
    assert len(row) == 77
    assert row[0] == tokenizer.bos_token_id
    end = len(row)
    while end > 1 and row[end - 1] == tokenizer.pad_token_id:
        end -= 1
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        return row[1:end]
    assert row[end - 1] == tokenizer.eos_token_id
    return row[1 : end - 1]
