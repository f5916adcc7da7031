"""Weights on words: those of compel, in every precision."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any, cast

import pytest
import torch
from compel import Compel, ReturnedEmbeddingsType, SplitLongTextMode

from fewstep import RequestError
from fewstep.architectures.text import TextEncoder
from tests.architectures.sentences import SIZE, Networks, foxes, plain, same


@pytest.mark.parametrize(
    ("prompt", "theirs"),
    [
        ("a (red:1.2) fox", "a (red)1.2 fox"),
        ("a (red:0.5) fox", "a (red)0.5 fox"),
        ("(red fox:0) snow", "(red fox)0 snow"),
        ("((red:1.5) fox:1.2) in (snow:0.8)", "((red)1.5 fox)1.2 in (snow)0.8"),
        ("a fox (in the snow:2) and (an owl:0.1) bird", "a fox (in the snow)2 and (an owl)0.1 bird"),
        (f"{foxes(70)} (red owl:1.4) {foxes(60)} (a:0.3)", f"{foxes(70)} (red owl)1.4 {foxes(60)} (a)0.3"),
        (f"{foxes(60)} (red owl {foxes(30)}:0.7) sun", f"{foxes(60)} (red owl {foxes(30)})0.7 sun"),
    ],
)  # fmt: skip
def test_weights_are_compels(prompt: str, theirs: str, text: TextEncoder) -> None:
    """compel writes weights after the bracket, and takes the summary of the text with its syntax in it."""
    for cut in (False, True):
        sides = [
            Compel(
                tokenizer, encoder, truncate_long_prompts=cut,
                returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
                split_long_text_mode=SplitLongTextMode.WORDS,
            )(theirs)
            for tokenizer, encoder in zip(text.tokenizers, text.encoders, strict=True)
        ]  # fmt: skip
        told = text.encode([prompt], SIZE, "cut" if cut else "chunk")
        assert torch.equal(told.tokens, torch.cat(sides, dim=-1))
        unweighted = text.encode([plain(prompt)], SIZE, "cut" if cut else "chunk")
        assert (told.tokens - unweighted.tokens).abs().max() > 0.01
        assert torch.equal(told.added["text_embeds"], unweighted.added["text_embeds"])


@pytest.mark.parametrize("prompt", ["a (red:1.0) fox", "((red fox:0.5):2) owl", f"(red {foxes(80)}:1)"])
def test_a_weight_of_one_is_none(prompt: str, text: TextEncoder) -> None:
    assert same(text.encode([prompt], SIZE), text.encode([plain(prompt)], SIZE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_in_half_precision(dtype: torch.dtype, networks: Networks) -> None:
    """Weights of 0 are huge inside compel, beyond what fp16 holds; two of them at once."""
    encoders = tuple(copy.deepcopy(encoder).to(dtype) for encoder in networks[2:])
    prompt = "a (red:0) fox (in the:0) snow (owl:1.7) " + foxes(75)
    exact = TextEncoder(networks[:2], networks[2:]).encode([prompt], SIZE)
    told = TextEncoder(networks[:2], cast(Any, encoders)).encode([prompt], SIZE)
    assert told.tokens.dtype == told.added["text_embeds"].dtype == dtype
    assert bool(told.tokens.isfinite().all())
    assert (told.tokens - exact.tokens).norm() < 0.03 * exact.tokens.norm()


def test_odd_weights_are_read(text: TextEncoder) -> None:
    """Fragments without tokens, of signs that are also padding, and across the ends of windows."""
    for prompt in (
        "((a:1.2) (b:1.2):0.5)", "(a:1.2)\n(b:0.4)", "(!:0.5) fox (!!:0.3)", "(🦊:0.2)(🦊:0.4)",
        f"{foxes(75)}(fox:0.5)", f"({foxes(75)}:0.5)(fox:0.2)",
        f"{foxes(74)} (red owl:0.5) ({foxes(80)}:0.2)", f"({'qz' * 100}:0.5) owl",
    ):  # fmt: skip
        for way in ("chunk", "cut"):
            told = text.encode([prompt], SIZE, way)
            assert bool(told.tokens.isfinite().all())
            assert told.tokens.shape[1] == 77 * told.windows[0]


@pytest.mark.parametrize("prompt", ["<|startoftext|> a (fox:0.5)", "a (<|endoftext|>:1.5)"])
def test_signs_of_the_ends_are_refused_beside_weights(prompt: str, text: TextEncoder) -> None:
    with pytest.raises(RequestError, match="cannot stand in a prompt with weights"):
        text.encode([prompt], SIZE, "cut")


def test_weights_print_nothing() -> None:
    """In a process of its own: what compel imports speaks once, and so do tokenizers of long texts."""
    code = """
import fewstep
with fewstep.load() as engine:
    print(len(engine.embed("(red fox:1.2) " + "fox " * 200).tokens))
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) > 200
    assert ran.stderr == ""
