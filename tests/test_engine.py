"""One engine, many calls: nothing a call does can be seen in another's pictures."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

import fewstep
from fewstep import Engine, FewstepError, GenerationError, RequestError, api, engine_cache

PROMPTS = ["a red fox", "an owl", "", "a bright sun, 3d style", "a red fox"]
Load = Callable[..., Engine]
Call = dict[str, Any]


def bits(images: Sequence[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def largest_difference(images: Sequence[Image.Image], others: Sequence[Image.Image]) -> int:
    """In 255ths, over all pictures."""
    pairs = zip(images, others, strict=True)
    return max(int(np.asarray(ImageChops.difference(*pair)).max()) for pair in pairs)


def calls(image: Image.Image) -> list[Call]:
    """Different in every way that a call can be."""
    return [
        {"prompt": "a red fox", "steps": 1, "seed": 1},
        {"prompt": "an owl", "steps": 4, "seed": 2, "width": 64, "height": 96},
        {"prompt": ["a sun", ""], "steps": 2, "seed": 3},
        {"prompt": "an owl", "steps": 2, "seed": 4, "image": image, "strength": 0.4},
        {"prompt": "a red fox", "steps": 1, "seed": 5, "image": image, "mask": image.convert("L")},
        {"prompt": "snow " * 90, "steps": 1, "seed": 6, "count": 2},
    ]


@pytest.fixture
def fresh(sdxl_folder: Path) -> Iterator[Engine]:
    """One that nobody has used, to be broken."""
    with fewstep.load(sdxl_folder, "turbo", device="cpu", precision="fp32") as loaded:
        yield loaded


@pytest.mark.parametrize(("precision", "steps"), [("fp32", 1), ("fp32", 4), ("bf16", 2)])
@pytest.mark.parametrize("mode", ["lcm", "turbo"])
def test_a_batch_is_its_singles(mode: str, steps: int, precision: str, engine: Load) -> None:
    """Within 1 of 255, and bit for bit where that is asked for."""
    loaded, seeds = engine(mode, precision), [3, 2**63, 0, 5, 4]
    batch = loaded.generate(PROMPTS, steps, seed=seeds)
    one_by_one = loaded.generate(PROMPTS, steps, seed=seeds, reproducible=True)
    singles = [loaded.generate(p, steps, seed=s)[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    assert bits(one_by_one) == bits(singles)
    assert largest_difference(batch, singles) <= (1 if precision == "fp32" else 12)  # bf16 has 8 bits
    assert len(set(bits(batch))) == 5


def test_a_guided_batch_is_its_singles(engine: Load, drawing: Image.Image) -> None:
    asked: Call = {"negative_prompt": "sun", "guidance_rescale": 0.7, "image": drawing, "sampler": "dpmpp_2m"}
    batch = engine("base").generate(PROMPTS, 3, seed=9, **asked)
    asked["reproducible"] = True
    singles = [engine("base").generate(p, 3, seed=9 + i, **asked)[0] for i, p in enumerate(PROMPTS)]
    assert largest_difference(batch, singles) <= 1
    assert bits(engine("base").generate(PROMPTS, 3, seed=9, **asked)) == bits(singles)


def test_picture_i_has_seed_plus_i(engine: Load) -> None:
    loaded = engine("turbo")
    several = loaded.generate("a red fox", 2, seed=41, count=4, reproducible=True)
    assert several.seeds == (41, 42, 43, 44)
    assert bits(several) == bits([loaded.generate("a red fox", 2, seed=41 + i)[0] for i in range(4)])


def test_no_seed_is_a_new_seed_that_is_told(engine: Load) -> None:
    loaded = engine("turbo")
    first, second = loaded.generate("a red fox"), loaded.generate("a red fox")
    assert first.seeds != second.seeds
    assert bits(loaded.generate("a red fox", seed=first.seeds)) == bits(first)


def test_any_order_of_calls_gives_the_pictures_of_a_new_engine(
    sdxl_folder: Path, engine: Load, drawing: Image.Image
) -> None:
    asked = calls(drawing)
    expected = []
    for call in asked:
        with fewstep.load(sdxl_folder, "turbo", device="cpu", precision="fp32") as new:
            expected.append(bits(new.generate(**call)))
    rng, used = random.Random(0), engine("turbo")
    for index in rng.sample([*range(len(asked))] * 3, 3 * len(asked)):
        assert bits(used.generate(**asked[index])) == expected[index]


def test_threads_get_the_pictures_of_one_after_the_other(engine: Load, drawing: Image.Image) -> None:
    loaded, asked = engine("turbo"), calls(drawing) * 2
    expected = [loaded.generate(**call) for call in asked]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda call: loaded.generate(**call), asked))
        exactly = list(pool.map(lambda call: loaded.generate(**call, reproducible=True), asked))
    alone = [loaded.generate(**call, reproducible=True) for call in asked]
    assert max(map(largest_difference, together, expected)) <= 1
    assert [bits(result) for result in exactly] == [bits(result) for result in alone]


@pytest.mark.parametrize(("mode", "steps"), [("turbo", 1), ("turbo", 4), ("lcm", 3), ("base", 5)])
def test_stream_gives_every_step(mode: str, steps: int, engine: Load) -> None:
    loaded = engine(mode)
    seen = list(loaded.stream(["a red fox", "an owl"], steps, seed=1, width=64))
    result = loaded.generate(["a red fox", "an owl"], steps, seed=1, width=64)
    assert [(step.index, step.steps) for step in seen] == [(i, steps) for i in range(steps)]
    assert tuple(step.timestep for step in seen) == result.timesteps
    assert all(step.x0.shape == step.latents.shape == (2, 4, 12, 8) for step in seen)
    assert seen[0].preview(1).size == (64, 96)
    assert bits([seen[-1].preview(0), seen[-1].preview(1)]) == bits(result)
    assert len({step.preview().tobytes() for step in seen}) == steps


def test_leaving_a_stream_leaves_nothing(engine: Load) -> None:
    loaded = engine("turbo")
    before = bits(loaded.generate("an owl", 4, seed=1))
    for step in loaded.stream("a red fox", 4, seed=2):
        assert torch.is_grad_enabled()  # the caller's own work is not touched
        if step.index == 1:
            break
    assert bits(loaded.generate("an owl", 4, seed=1)) == before


def test_two_streams_can_be_read_in_turn(engine: Load) -> None:
    loaded = engine("turbo")
    one, two = (list(loaded.stream(p, 3, seed=1)) for p in ("a fox", "an owl"))
    both = list(zip(loaded.stream("a fox", 3, seed=1), loaded.stream("an owl", 3, seed=1), strict=True))
    for alone, turns in zip(zip(one, two, strict=True), both, strict=True):
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(alone, turns, strict=True))


def test_stream_checks_at_once(engine: Load) -> None:
    with pytest.raises(RequestError, match="steps=99"):
        engine("turbo").stream("a fox", 99)


@pytest.mark.parametrize("mode", ["turbo", "lcm", "base"])
def test_latents_stay_fp32(mode: str, engine: Load) -> None:
    loaded = engine(mode, "bf16")
    assert next(loaded.parts.unet.parameters()).dtype == torch.bfloat16
    steps = list(loaded.stream("a fox", 2, seed=1))
    assert {tensor.dtype for step in steps for tensor in (step.latents, step.x0)} == {torch.float32}
    assert loaded.generate("a fox", 2, seed=1).precision == "bfloat16"


def test_numbers_that_are_not_finite_name_picture_and_seed(fresh: Engine) -> None:
    def spoil(_module: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        calls_seen.append(len(inputs[0]))
        return (output[0] * spoiled,) if len(calls_seen) == 1 else output

    calls_seen, spoiled = list[int](), torch.tensor([1, torch.nan, 1]).view(3, 1, 1, 1)
    fresh.parts.unet.register_forward_hook(spoil)
    with pytest.raises(GenerationError, match=r"picture 1 \(seed 8\)"):
        fresh.generate("a red fox", 1, seed=7, count=3)
    assert len(fresh.generate("a red fox", 1, seed=7)) == 1


def test_broken_weights_are_an_error(fresh: Engine) -> None:
    with torch.no_grad():
        fresh.parts.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(GenerationError, match=r"picture 0 \(seed 7\)"):
        fresh.generate("a red fox", seed=7)


def test_a_closed_engine_says_so(fresh: Engine, drawing: Image.Image) -> None:
    running = fresh.stream("a fox", 4)
    next(running)
    network = weakref.ref(fresh.parts.unet)
    fresh.close()
    fresh.close()
    for call in ({}, {"image": drawing}):
        with pytest.raises(FewstepError, match="closed"):
            fresh.generate("a fox", **call)  # type: ignore[arg-type]
    with pytest.raises(FewstepError, match="closed"):
        fresh.parts  # noqa: B018
    assert [step.index for step in running] == [1, 2, 3]  # a call that runs is not cut off
    assert network() is None


@pytest.fixture
def nothing_resident() -> Iterator[None]:
    api._engines.loaded.clear()
    yield
    api._engines.loaded.clear()


@pytest.mark.usefixtures("nothing_resident")
def test_generate_keeps_one_engine_where_memory_is_short(
    sdxl_folder: Path, engine: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_cache, "KEPT_SHARE", 0.0)
    where: Call = {"model": sdxl_folder, "device": "cpu", "precision": "fp32"}
    first = fewstep.generate("a red fox", 2, "turbo", seed=1, **where)
    (kept,) = api._engines.loaded.values()
    again = fewstep.generate("a red fox", 2, "turbo", seed=1, **where)
    assert [*api._engines.loaded.values()] == [kept]
    assert bits(first) == bits(again) == bits(engine("turbo").generate("a red fox", 2, seed=1))

    gone = weakref.ref(kept)
    del kept
    fewstep.generate("a red fox", 2, "base", seed=1, **where)
    assert gone() is None
    assert [key.mode for key in api._engines.loaded] == ["base"]


@pytest.mark.usefixtures("nothing_resident")
def test_small_engines_stay_beside_each_other(sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those used last, and as many as there is memory for: refining in another mode loads nothing again."""
    monkeypatch.setattr(engine_cache, "MOST_KEPT", 2)
    where: Call = {"model": sdxl_folder, "device": "cpu", "precision": "fp32"}
    drafts = fewstep.generate("a red fox", 1, "turbo", seed=1, **where)
    (turbo,) = api._engines.loaded.values()
    assert turbo.weight_bytes == sum(p.nbytes for p in _all_weights(turbo))
    refined = drafts.refine(mode="base", steps=2)
    assert not refined.warnings
    assert [key.mode for key in api._engines.loaded] == ["turbo", "base"]
    refined.refine(mode="turbo")
    assert api._engines.loaded[drafts.engine_key] is turbo
    fewstep.generate("a red fox", 1, "turbo", seed=1, **where | {"precision": "bf16"})
    assert [key.mode for key in api._engines.loaded] == ["turbo", "turbo"]
    assert drafts.engine_key in api._engines.loaded


def _all_weights(loaded: Any) -> Iterator[torch.Tensor]:
    parts = loaded.parts
    for module in (parts.unet, parts.vae, *parts.text.encoders):
        yield from (*module.parameters(), *module.buffers())


@pytest.mark.usefixtures("nothing_resident")
def test_unload_frees_what_generate_keeps(sdxl_folder: Path) -> None:
    where: Call = {"model": sdxl_folder, "device": "cpu", "precision": "fp32"}
    first = fewstep.generate("a red fox", 1, "turbo", seed=1, **where)
    (kept,) = api._engines.loaded.values()
    engine, unet = weakref.ref(kept), weakref.ref(kept.parts.unet)
    running = kept.stream("a red fox", 2)
    next(running)
    del kept
    fewstep.unload()
    assert engine() is None
    next(running)  # has its networks until it ends
    del running
    gc.collect()
    assert unet() is None
    assert bits(fewstep.generate("a red fox", 1, "turbo", seed=1, **where)) == bits(first)
    fewstep.unload()
    fewstep.unload()  # of nothing


def test_generate_says_once_that_it_loads_at_every_change() -> None:
    with fewstep.testing.fake():
        calls = [fewstep.generate("a fox", 1, mode, seed=1) for mode in ("lcm", "turbo", "lcm", "turbo")]
        fewstep.unload()
        calls.append(fewstep.generate("a fox", 1, "base", seed=1))
    told = [[sentence for sentence in call.warnings if "fewstep.load" in sentence] for call in calls]
    assert [len(sentences) for sentences in told] == [0, 0, 1, 0, 0]
    assert "mode='turbo'" in told[2][0]
    assert "mode='lcm'" in told[2][0]
