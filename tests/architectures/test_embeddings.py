"""Prompts that are encoded already."""

from __future__ import annotations

import pytest
import torch

import fewstep
from fewstep import RequestError
from fewstep.architectures.text import TextEncoder
from fewstep.prompts import Embedding
from tests.architectures.sentences import LONG, SIZE, same


@pytest.mark.parametrize("prompt", ["a red fox", "", LONG, "a (red:1.4) fox (owl:0.5)", "🦊"])
def test_embeddings_give_the_same_bits(prompt: str, text: TextEncoder) -> None:
    kept = text.embed(prompt)
    assert kept.text == prompt
    assert same(text.encode([kept, "a fox"], SIZE), text.encode([prompt, "a fox"], SIZE))
    pairs = (text.encode_pairs([a, b], [LONG, a], SIZE) for a, b in ((kept, "an owl"), (prompt, "an owl")))
    assert all(same(one, other) for one, other in zip(*pairs, strict=True))


def test_an_embedding_is_the_users_own(text: TextEncoder) -> None:
    told, kept = text.encode(["a fox"], SIZE), text.embed("a fox")
    kept.tokens.zero_()
    kept.pooled.zero_()
    assert same(text.encode(["a fox"], SIZE), told)


@pytest.mark.parametrize("way", ["chunk", "cut", "refuse"])
def test_an_embedding_is_taken_whole(way: str, text: TextEncoder) -> None:
    kept = text.embed(LONG)
    assert text.check([kept], way) == ()
    assert text.encode([kept], SIZE, way).windows == (2,)


@pytest.mark.parametrize(
    ("tokens", "pooled"),
    [((77, 81), (48,)), ((76, 80), (48,)), ((0, 80), (48,)), ((1, 77, 80), (48,)), ((77, 80), (1, 48)),
     ((77, 80), (47,))],
)  # fmt: skip
def test_embeddings_of_other_models_are_refused(
    tokens: tuple[int, ...], pooled: tuple[int, ...], text: TextEncoder
) -> None:
    given = Embedding(tokens=torch.zeros(tokens), pooled=torch.zeros(pooled), text="a fox")
    for refused in (lambda: text.check([given], "chunk"), lambda: text.encode([given], SIZE)):
        with pytest.raises(RequestError, match=r"\(77 k, 80\).*\(48,\)") as refusal:
            refused()
        assert str(tokens) in str(refusal.value)
        assert str(pooled) in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_embeddings_of_no_numbers_are_refused(text: TextEncoder) -> None:
    given = text.embed("a fox")
    given.tokens[3, 4] = torch.nan
    with pytest.raises(RequestError, match="not finite"):
        text.check([given], "chunk")


def test_the_name_of_an_embedding_is_not_drawn_as_text() -> None:
    """A picture's file records it; replaying that must not draw the words."""
    name = Embedding(tokens=torch.zeros(77, 8), pooled=torch.zeros(8)).name
    with pytest.raises(RequestError, match="give that Embedding"):
        fewstep.plan(name)
