"""The words of a prompt: weights, brackets, windows, and what a request records of them. No weights."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import torch

import fewstep
from fewstep import RequestError, modes, prompts, request
from fewstep.prompts import Embedding, Fragment, Prompt, parse_fragments, split_windows

PLAIN = 1.0


def embedding(text: str = "", seed: int = 0) -> Embedding:
    noise = torch.Generator().manual_seed(seed)
    tokens, pooled = torch.randn(77, 8, generator=noise), torch.randn(4, generator=noise)
    return Embedding(tokens=tokens, pooled=pooled, text=text)


def job(prompt: Any, mode: str = "lcm", **options: Any) -> request.Job:
    about, recipe = modes.choose_mode("tiny", mode)
    return request.resolve_job(about, recipe, prompt, None, options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a fox", [("a fox", PLAIN)]),
        ("(fox:1.2)", [("fox", 1.2)]),
        ("a (red fox:1.2), snow", [("a ", PLAIN), ("red fox", 1.2), (", snow", PLAIN)]),
        ("(a:1.5)(b:1.5)", [("ab", 1.5)]),
        ("(a:1.0) b", [("a b", PLAIN)]),
        ("((a:1.5) b:1.2)", [("a", 1.5 * 1.2), (" b", 1.2)]),
        ("((fox:0.5):2) owl", [("fox owl", PLAIN)]),
        ("(a:0)(b:2)", [("a", 0.0), ("b", 2.0)]),
        ("(a : 1.2 )", [("a ", 1.2)]),
        ("(a:.5)", [("a", 0.5)]),
        ("(a:1.)", [("a", PLAIN)]),
        ("(a:+1.5)", [("a", 1.5)]),
        ("(photo: a fox:1.2)", [("photo: a fox", 1.2)]),
        ("(a (b) c:1.2)", [("a (b) c", 1.2)]),
        (r"(a \(b\):1.2)", [("a (b)", 1.2)]),
    ],
)
def test_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert parse_fragments(prompt) == tuple(Fragment(*pair) for pair in expected)


@pytest.mark.parametrize(
    "prompt",
    ["a (b) c", "(", ")", "((", "))", ")(", "()", "(a", "a)", "(a:1.2", "a:1.2)", "(a:)", "(a:b)",
     "(a:1.2.3)", "(:1.2)", "( :1.2)", "(a:nan)", "(a:inf)", "(a:1e1)", "(a:0x1)", "[a:1.2]", "{a:1.2}",
     "a\\b", "(a\n:b)"],
)  # fmt: skip
def test_all_else_is_text(prompt: str) -> None:
    assert parse_fragments(prompt) == (Fragment(prompt, PLAIN),)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (r"\(a:1.2\)", "(a:1.2)"),
        (r"a \(b\)", "a (b)"),
        (r"\\(", r"\("),
        (r"(a:1.2\)", "(a:1.2)"),
        (r"\(a:1.2)", "(a:1.2)"),
        ("((a:1)", "(a"),
        ("(a:1))", "a)"),
    ],
)
def test_literal_brackets(prompt: str, text: str) -> None:
    assert parse_fragments(prompt) == (Fragment(text, PLAIN),)


@pytest.mark.parametrize("weight", ["2.01", "3", "-1", "-0.1", "100", "30", "9" * 500])
def test_a_weight_out_of_range_is_refused(weight: str) -> None:
    with pytest.raises(RequestError, match=r"from 0 to 2") as refusal:
        parse_fragments(f"an owl (red\nfox:{weight}) here")
    said = str(refusal.value)
    assert weight in said
    assert r"\(" in said
    assert "\n" not in said


def test_no_text_breaks_the_syntax() -> None:
    """2000 prompts of brackets: nothing is lost, and nothing but a weight is refused."""
    rng = random.Random(0)
    pieces = ["(", ")", ":1.2)", ":0.5)", "\\(", "\\)", "\\", ":", "fox", " ", "\n", "🦊", ":7)", "1", "."]
    whole = 0
    for _ in range(2000):
        prompt = "".join(rng.choices(pieces, k=rng.randrange(1, 30)))
        with suppress(RequestError):
            found = parse_fragments(prompt)
            letters = "".join(fragment.text for fragment in found)
            assert all(letters.count(sign) == prompt.count(sign) for sign in ("fox", "🦊"))
            assert all(one.weight != other.weight for one, other in pairwise(found))
            assert all(fragment.text for fragment in found)
            whole += 1
    assert whole > 1000


@pytest.mark.parametrize(
    "prompt",
    ["(" * 50000, "(a" * 20000 + ":1.0)" * 20000, ":" + "1" * 50000, "(a:" + " " * 50000, "\\(" * 50000],
)
def test_long_prompts_are_read_at_once(prompt: str) -> None:
    started = time.process_time()
    parse_fragments(prompt)
    assert time.process_time() - started < 1


def joined(ends: Sequence[bool], room: int) -> list[list[int]]:
    tokens = list(range(len(ends)))
    return [tokens[window] for window in split_windows(ends, room)]


def test_windows_end_where_words_do() -> None:
    assert joined([], 3) == [[]]
    assert joined([True] * 3, 3) == [[0, 1, 2]]
    assert joined([True] * 4, 3) == [[0, 1, 2], [3]]
    assert joined([True, True, False, True], 3) == [[0, 1], [2, 3]]
    assert joined([False] * 7, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert joined([True, False, False, False, False, True], 3) == [[0], [1, 2, 3], [4, 5]]


@pytest.mark.parametrize("seed", range(50))
def test_windows_lose_no_token(seed: int) -> None:
    rng = random.Random(seed)
    ends = [rng.random() < 0.3 for _ in range(rng.randrange(400))]
    made = joined(ends, 75)
    assert [token for window in made for token in window] == list(range(len(ends)))
    assert all(0 < len(window) <= 75 for window in made) or not ends
    for window in made[:-1]:
        assert ends[window[-1]] or (len(window) == 75 and not any(ends[token] for token in window))


def test_every_picture_is_told() -> None:
    made = job(["a", "b"], prompt_2="c", count=2)
    assert made.prompts == (Prompt("a", "c"),) * 2 + (Prompt("b", "c"),) * 2
    assert made.request.prompts == ("a", "a", "b", "b")
    assert made.request.prompts_2 == ("c",) * 4
    assert job(["a", "b"], prompt_2=["c", ""]).request.prompts_2 == ("c", "")
    assert job("a").prompts == (Prompt("a", "a"),)
    assert job("a").request.prompts_2 == ()
    assert job("a", prompt_2="").prompts == (Prompt("a", ""),)
    assert job("a", "base", negative_prompt="b").negative == Prompt("b", "b")


def test_an_embedding_stands_for_a_prompt() -> None:
    known, unknown = embedding("a fox"), embedding()
    made = job([known, "an owl", unknown], "base", negative_prompt=unknown)
    assert made.prompts == (known, Prompt("an owl", "an owl"), unknown)
    assert made.negative is unknown
    name = unknown.name
    assert made.request.prompts == (f"a fox {name}", "an owl", name)  # tensors can be changed, texts stay
    assert made.request.negative_prompt == name
    assert name == embedding().name != embedding(seed=1).name
    assert name.startswith("<embedding ")
    assert len(name) == len("<embedding 1a2b3c4d>")
    assert job(known).prompts == (known,)
    assert job("a").plan.to_dict().keys() == made.plan.to_dict().keys()


def test_an_embedding_shows_no_numbers() -> None:
    assert repr(embedding("a fox")) == "Embedding(text='a fox')"
    half = embedding()
    kept = Embedding(tokens=half.tokens.bfloat16(), pooled=half.pooled.bfloat16())
    assert kept.name.startswith("<embedding ")


def test_the_words_of_an_embedding_are_no_syntax() -> None:
    assert job(embedding("a (style:9)")).request.prompts[0].startswith("a (style:9) <embedding ")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prompt_2": ["a", "b"]}, "prompt_2 lists 2 for 1"),
        ({"prompt_2": []}, "prompt_2=.*list as long as prompt"),
        ({"prompt_2": 3}, "prompt_2=3"),
        ({"prompt_2": [embedding()]}, "prompt_2="),
        ({"prompt_2": "\ud83e"}, "half a character"),
        ({"prompt_2": "(a:5)"}, "from 0 to 2"),
        ({"negative_prompt": 3}, "negative_prompt=3: give a string or an Embedding"),
        ({"negative_prompt": ["a"]}, "negative_prompt="),
        ({"negative_prompt": "(a:5)"}, "from 0 to 2"),
        ({"negative_prompt": "((a:1.5):1.5)"}, "multiply to 2.25: at most 2"),
        ({"long_prompt": "split"}, "long_prompt='split'.*chunk, refuse, cut"),
        ({"long_prompt": True}, "long_prompt=True"),
    ],
)
def test_refusals(options: dict[str, Any], match: str) -> None:
    with pytest.raises(RequestError, match=match) as refusal:
        job("a fox", "base", **options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("prompt", [[], "\ud83e", None, 3, ["a", 3], b"a", {"a": 1}, [["a"]], "(a:5)"])
def test_bad_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(RequestError):
        job(prompt)


def test_prompt_2_cannot_act_beside_an_embedding() -> None:
    with pytest.raises(RequestError, match="Embedding"):
        job([embedding(), "a"], prompt_2=["b", "c"])


def test_weights_need_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "find_spec", lambda _name: None)
    for options in ({"prompt": "a (fox:1.2)"}, {"prompt": "a", "prompt_2": "(fox:1.2)"}):
        with pytest.raises(RequestError, match=r"pip install 'fewstep\[prompt\]'") as refusal:
            job(**options)
        assert r"\(" in str(refusal.value)
    with pytest.raises(RequestError, match=r"fewstep\[prompt\]"):
        job("a", "base", negative_prompt="(fox:0.9)")
    assert job(r"a \(fox:1.2\) (owl:1.0) (b)").prompts[0].name == r"a \(fox:1.2\) (owl:1.0) (b)"


def test_weights_are_refused_without_torch() -> None:
    code = """
import sys; sys.modules["compel"] = None
import fewstep
try:
    fewstep.generate("a (fox:1.2)")
except fewstep.RequestError as error:
    print("fewstep[prompt]" in str(error), "torch" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "False"]


def test_an_embedding_is_public() -> None:
    assert fewstep.Embedding is Embedding
