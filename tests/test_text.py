"""Prompts: what is read, what is cut, what is kept; from several threads at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fewstep import Engine
from fewstep.text import TextEncoder

SIZE = (96, 64)  # height, width
LONG = "red fox " * 60 + "and an owl"
Load = Callable[..., Engine]


def encoder(engine: Engine, *, zero_empty: bool = True, cache: int = 256) -> TextEncoder:
    """The same networks with an empty cache."""
    shared = engine.parts.text
    return TextEncoder(shared.tokenizers, shared.encoders, zero_empty=zero_empty, cache=cache)


def test_shapes_and_size_ids(engine: Load) -> None:
    told = encoder(engine("turbo")).encode(["a red fox", "an owl", "a red fox"], SIZE)
    assert told.tokens.shape == (3, 77, 80)
    assert told.pooled.shape == (3, 48)
    assert told.size_ids.tolist() == [[96, 64, 0, 0, 96, 64]] * 3
    assert torch.equal(told.tokens[0], told.tokens[2])
    assert not torch.equal(told.tokens[0], told.tokens[1])


@pytest.mark.parametrize("zero_empty", [True, False])
def test_an_empty_prompt_is_zeros_where_the_model_says_so(zero_empty: bool, engine: Load) -> None:
    told = encoder(engine("turbo"), zero_empty=zero_empty).encode(["", "a fox"], SIZE)
    assert bool((told.tokens[0] == 0).all()) is zero_empty
    assert bool((told.pooled[0] == 0).all()) is zero_empty
    assert bool((told.tokens[1] != 0).any())


@pytest.mark.parametrize("prompts", [["", ""], ["a fox", ""]])
def test_empty_prompts_make_pictures(prompts: list[str], engine: Load) -> None:
    result = engine("turbo").generate(prompts, seed=1)
    assert len(result) == 2
    assert result.warnings == ()


def test_a_long_prompt_is_cut_aloud(engine: Load) -> None:
    loaded = engine("turbo")
    result = loaded.generate([LONG, "a fox"], seed=1)
    (warning,) = result.warnings
    assert "77 tokens" in warning
    assert "and an owl" in warning
    room = 75  # 77 without the two signs at the ends
    ids = loaded.parts.text.tokenizers[0](LONG).input_ids[1:-1]
    tail = loaded.parts.text.tokenizers[0].decode(ids[room:])
    assert loaded.parts.text.cut(LONG) == tail
    assert repr(tail) in warning


def test_a_long_negative_prompt_is_cut_aloud(engine: Load) -> None:
    result = engine("base").generate("a fox", 2, seed=1, negative_prompt=LONG)
    assert [repr("and an owl")[1:-1] in warning for warning in result.warnings] == [True]


@pytest.mark.parametrize("words", [75, 76])
def test_the_limit_is_exact(words: int, engine: Load) -> None:
    text = encoder(engine("turbo"))
    fox = text.tokenizers[0]("fox").input_ids[1:-1]
    assert len(fox) == 1
    prompt = " ".join(["fox"] * words)
    assert text.cut(prompt) == ("" if words == 75 else "fox")


def test_the_cache_is_bounded_and_true(engine: Load) -> None:
    small, large = encoder(engine("turbo"), cache=3), encoder(engine("turbo"))
    prompts = [f"fox number {i % 7}" for i in range(20)]
    for prompt in prompts:
        assert torch.equal(small.encode([prompt], SIZE).tokens, large.encode([prompt], SIZE).tokens)
        assert len(small._cache) <= 3
    assert torch.equal(small.encode(prompts, SIZE).pooled, large.encode(prompts, SIZE).pooled)
    assert len(small._cache) <= 3
    assert len(large._cache) == 7


def test_the_cache_keeps_what_was_used_last(engine: Load) -> None:
    text = encoder(engine("turbo"), cache=2)
    for prompt in ("a", "b", "a", "c"):
        text.encode([prompt], SIZE)
    assert [*text._cache] == ["a", "c"]


def test_a_prompt_does_not_feel_its_neighbours(engine: Load) -> None:
    alone = encoder(engine("turbo")).encode(["an owl"], SIZE)
    among = encoder(engine("turbo")).encode(["a red fox", "an owl", LONG], SIZE)
    assert torch.equal(alone.tokens[0], among.tokens[1])
    assert torch.equal(alone.pooled[0], among.pooled[1])


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    """Threads take turns a thousand times as often, so that what can collide does."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 1000)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("_hasty_threads")
def test_threads_share_an_encoder(engine: Load) -> None:
    """A cache of two entries under eight threads; cutting and padding change a tokenizer's state."""
    text, alone = encoder(engine("turbo"), cache=2), encoder(engine("turbo"))
    prompts = [LONG if i % 3 == 0 else f"fox {i % 5}" for i in range(240)]
    expected = {p: (alone.encode([p], SIZE).tokens, alone.cut(p)) for p in set(prompts)}

    def work(prompt: str) -> bool:
        tokens, tail = expected[prompt]
        return torch.equal(text.encode([prompt], SIZE).tokens, tokens) and text.cut(prompt) == tail

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, prompts))
