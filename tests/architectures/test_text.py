"""What is encoded, and what is kept of it; from several threads at once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from fewstep.architectures.text import TextEncoder
from fewstep.prompts import Prompt
from tests.architectures.sentences import LONG, SIZE, Load, Make, same


def test_shapes_and_size_ids(text: TextEncoder) -> None:
    told = text.encode(["a red fox", "an owl", "a red fox"], SIZE)
    assert told.tokens.shape == (3, 77, 80)
    assert told.added["text_embeds"].shape == (3, 48)
    assert told.added["time_ids"].tolist() == [[96, 64, 0, 0, 96, 64]] * 3
    assert told.windows == (1, 1, 1)
    assert torch.equal(told.tokens[0], told.tokens[2])
    assert not torch.equal(told.tokens[0], told.tokens[1])


@pytest.mark.parametrize("zero_empty", [True, False])
def test_an_empty_prompt_is_zeros_where_the_model_says_so(zero_empty: bool, make: Make) -> None:
    text = make(zero_empty=zero_empty)
    told = text.encode(["", "a fox", Prompt("", "fox"), Prompt("fox", ""), " "], SIZE)
    assert [bool((row == 0).all()) for row in told.tokens] == [zero_empty, False, False, False, False]
    assert [bool((row == 0).all()) for row in told.added["text_embeds"]] == [
        zero_empty,
        False,
        False,
        False,
        False,
    ]
    assert torch.equal(
        told.added["text_embeds"][3], make(zero_empty=False).encode([""], SIZE).added["text_embeds"][0]
    )


@pytest.mark.parametrize("prompts", [["", ""], ["a fox", ""]])
def test_empty_prompts_make_pictures(prompts: list[str], engine: Load) -> None:
    result = engine("turbo").generate(prompts, seed=1)
    assert len(result) == 2
    assert result.warnings == ()


def test_prompt_2_is_that_of_diffusers(sdxl_folder: Path, text: TextEncoder) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl_folder)
    firsts, seconds = ["a red fox", "an owl"], ["in the snow", "the sun"]
    tokens, _, pooled, _ = pipe.encode_prompt(firsts, seconds, do_classifier_free_guidance=False)
    told = text.encode([Prompt(*pair) for pair in zip(firsts, seconds, strict=True)], SIZE)
    assert torch.allclose(told.tokens, tokens, atol=1e-5)
    assert torch.allclose(told.added["text_embeds"], pooled, atol=1e-5)
    one = pipe.encode_prompt(firsts[0], seconds[0], do_classifier_free_guidance=False)
    assert torch.equal(text.encode([Prompt(firsts[0], seconds[0])], SIZE).tokens, one[0])


def test_the_cache_is_bounded_and_true(make: Make) -> None:
    small, large = make(cache=3), make()
    prompts = [f"fox number {i % 7}" for i in range(20)]
    for prompt in prompts:
        assert torch.equal(small.encode([prompt], SIZE).tokens, large.encode([prompt], SIZE).tokens)
        assert len(small._cache) <= 3
    assert torch.equal(
        small.encode(prompts, SIZE).added["text_embeds"], large.encode(prompts, SIZE).added["text_embeds"]
    )
    assert len(small._cache) <= 3
    assert len(large._cache) == 7
    assert same(make(cache=0).encode(prompts, SIZE), large.encode(prompts, SIZE))


def test_the_cache_keeps_what_was_used_last(make: Make) -> None:
    text = make(cache=2)
    for prompt in ("a", "b", "a", "c"):
        text.encode([prompt], SIZE)
    assert [prompt.first for prompt, _ in text._cache] == ["a", "c"]


def test_the_cache_knows_all_that_matters(text: TextEncoder) -> None:
    ways = [
        *(text.encode([Prompt(a, b)], SIZE, way) for a, b in (("a", LONG), (LONG, "a"), (LONG, LONG))
          for way in ("chunk", "cut")),
    ]  # fmt: skip
    assert not any(same(one, other) for i, one in enumerate(ways) for other in ways[:i])


def test_each_prompt_is_encoded_once(text: TextEncoder, seen: list[list[list[int]]]) -> None:
    for _ in range(3):
        text.encode(["a fox", "an owl", "a fox"], SIZE)
    assert [len(rows) for rows in seen] == [2, 2]


def test_a_prompt_does_not_feel_its_neighbours(text: TextEncoder, make: Make) -> None:
    alone = make().encode(["an owl"], SIZE)
    among = text.encode(["a red fox", "an owl", LONG], SIZE)
    assert same(alone, among.select([1]))


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    """Threads take turns a thousand times as often, so that what can collide does."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 1000)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("_hasty_threads")
def test_threads_share_an_encoder(make: Make) -> None:
    """A cache of two entries under eight threads; cutting and padding change a tokenizer's state."""
    text, alone = make(cache=2), make()
    prompts = [
        LONG if i % 3 == 0 else f"fox ({i % 5}:1.2)" if i % 7 == 0 else f"fox {i % 5}" for i in range(240)
    ]
    ways = ("chunk", "cut")
    expected = {
        (p, way): (alone.encode([p], SIZE, way), alone.check([p], way)) for p in set(prompts) for way in ways
    }

    def work(prompt: str) -> bool:
        told = ((text.encode([prompt], SIZE, way), text.check([prompt], way)) for way in ways)
        wanted = (expected[prompt, way] for way in ways)
        return all(same(a, b) and c == d for (a, c), (b, d) in zip(told, wanted, strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, prompts))


def test_a_lock_of_the_engine_is_held(make: Make) -> None:
    lock, held = threading.RLock(), []
    text = make(lock=lock)
    hook = text.encoders[0].register_forward_pre_hook(lambda *_: held.append(lock._is_owned()))  # type: ignore[attr-defined]
    text.encode(["a fox"], SIZE)
    text.encode_pairs(["an owl"], [LONG], SIZE)
    text.embed("the sun")
    hook.remove()
    assert held
    assert all(held)
