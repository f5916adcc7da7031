"""Calls with ControlNets and IP-Adapters beside calls without: none sees another."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image, ImageChops
from torch import Tensor

import fewstep
from fewstep import Engine
from fewstep.addons import cache, ip_adapter
from fewstep.catalog import addons
from fewstep.denoiser import Network
from fewstep.runtimes import offload
from fewstep.runtimes.batching import SharedNetwork
from fewstep.testing import FakeEngine
from tests.addons.conftest import PLUS, SUMMARY

Load = Callable[..., Engine]
Orders = dict[str, dict[str, Any]]
FOX = {"prompt": "a red fox", "steps": 2, "seed": 7}


@pytest.fixture
def orders(
    nets: tuple[Path, Path], adapters: Path, edges: Image.Image, cats: Sequence[Image.Image]
) -> Orders:
    """Requests that differ in what is beside the model."""
    files = [adapters / "sdxl_models" / name for name in (SUMMARY, PLUS)]
    return {
        "plain": FOX,
        "control": {**FOX, "control": [(nets[0], edges, 0.7)]},
        "other": {**FOX, "control": [(nets[1], edges, 0.3), (nets[0], edges, 0.4)]},
        "summary": {**FOX, "reference": [(files[0], cats[0], 0.8)]},
        "weaker": {**FOX, "reference": [(files[0], cats[0], 0.2)]},
        "plus": {**FOX, "reference": [(files[1], cats[1], 0.8)]},
        "both": {
            **FOX, "control": [(nets[0], edges, 0.5)],
            "reference": [(files[1], cats[0], 0.5), (files[0], cats[1], 0.5)],
        },
    }  # fmt: skip


def drawn(engine: Engine, order: dict[str, Any]) -> bytes:
    return engine.generate(**order)[0].tobytes()


@pytest.mark.parametrize("mode", ["turbo", "lcm", "base"])
def test_a_call_leaves_nothing_behind(mode: str, engine: Load, orders: Orders) -> None:
    loaded = engine(mode)
    unet = loaded.parts.unet
    before = drawn(loaded, orders["plain"]), list(unet.state_dict()), dict(unet.attn_processors)
    made = {name: drawn(loaded, order) for name, order in orders.items()}
    assert len(set(made.values())) == len(orders)
    assert (drawn(loaded, orders["plain"]), list(unet.state_dict()), unet.attn_processors) == before
    assert unet.encoder_hid_proj is None
    assert {name: drawn(loaded, order) for name, order in reversed(orders.items())} == made


def test_one_that_fails_leaves_nothing_behind(
    engine: Load, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = engine("turbo")
    before, processors = drawn(loaded, orders["plain"]), dict(loaded.parts.unet.attn_processors)
    with monkeypatch.context() as broken:
        broken.setattr(loaded.parts.unet.conv_out, "forward", lambda _x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loaded.generate(**orders["both"])
    assert loaded.parts.unet.attn_processors == processors
    assert drawn(loaded, orders["plain"]) == before


@pytest.mark.parametrize("name", ["control", "plus", "both"])
@pytest.mark.parametrize("mode", ["turbo", "lcm", "base"])
def test_a_batch_is_its_pictures(mode: str, name: str, engine: Load, orders: Orders) -> None:
    """Also where prompts are of several lengths, and picture and mask are given."""
    order = {key: value for key, value in orders[name].items() if key not in ("prompt", "seed")}
    prompts = ["a red fox", "an owl in the snow, " * 30, "bright sun"]
    alone = [engine(mode).generate(prompt, seed=3 + i, **order)[0] for i, prompt in enumerate(prompts)]
    together = engine(mode).generate(prompts, seed=[3, 4, 5], **order)
    differences = [ImageChops.difference(*pair) for pair in zip(together, alone, strict=True)]
    assert max(int(np.asarray(difference).max()) for difference in differences) <= 1
    order["reproducible"] = True
    alone = [engine(mode).generate(prompt, seed=3 + i, **order)[0] for i, prompt in enumerate(prompts)]
    together = engine(mode).generate(prompts, seed=[3, 4, 5], **order)
    assert [picture.tobytes() for picture in together] == [picture.tobytes() for picture in alone]


def test_threads_draw_what_one_draws(engine: Load, orders: Orders) -> None:
    loaded, names = engine("turbo"), list(orders) * 6
    alone = {name: drawn(loaded, order) for name, order in orders.items()}
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda name: drawn(loaded, orders[name]), names))
    assert together == [alone[name] for name in names]


def test_streams_read_in_turn(engine: Load, orders: Orders) -> None:
    loaded = engine("lcm")
    alone = [list(loaded.stream(**order))[-1].latents for order in orders.values()]
    *_, last = zip(*(loaded.stream(**order) for order in orders.values()), strict=True)
    assert all(torch.equal(step.latents, other) for step, other in zip(last, alone, strict=True))


def test_lacking_memory_halves_the_rows(
    engine: Load, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ControlNets' rows and references' follow the UNet's."""
    loaded = engine("base")
    order = {**orders["both"], "prompt": ["a red fox", "an owl"], "seed": [1, 2], "guidance": 4}
    expected = [one.tobytes() for one in loaded.generate(**order, reproducible=True)]

    class Scarce(SharedNetwork):
        def __init__(self, network: Network, **how: Any):
            def call(x: Tensor, *rest: Any) -> Tensor:
                if len(x) > 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return network(x, *rest)

            super().__init__(cast(Network, call), **how)

    monkeypatch.setattr("fewstep.loop.SharedNetwork", Scarce)
    made = loaded.generate(**order)
    assert [one.tobytes() for one in made] == expected


def test_scale_zero_loads_nothing(engine: Load, orders: Orders, edges: Image.Image) -> None:
    nobody: dict[str, Any] = {
        "control": [("nobody/nothing", edges, 0)], "reference": [("nobody/nothing/ip.safetensors", edges, 0)]
    }  # fmt: skip
    assert drawn(engine("turbo"), {**FOX, **nobody}) == drawn(engine("turbo"), orders["plain"])


def test_the_last_few_stay_loaded() -> None:
    asked: list[str] = []

    def load(source: str) -> str:
        asked.append(source)
        return source

    get = cache.keep_loaded(load, lambda source: addons.AddonPlace(root=f"owner/{source}"))
    for names in ("a", "b", "ab", "c", "b", "a", "abc", "bca"):
        assert get(names) == {name: name for name in names}
    assert "".join(asked) == "abc" + "a" + "c"


def test_close_lets_go(sdxl_folder: Path, orders: Orders) -> None:
    loaded = fewstep.load(sdxl_folder, "turbo", device="cpu")
    loaded.generate(**orders["both"])
    beside = loaded._loaded.addons
    net, adapter = weakref.ref(beside), weakref.ref(loaded.parts.unet)
    del beside
    loaded.close()
    assert net() is None
    assert adapter() is None


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_offloading_leaves_them_on_the_device(
    how: str, sdxl_folder: Path, orders: Orders, engine: Load
) -> None:
    loaded = fewstep.load(sdxl_folder, "turbo", device="cpu", precision="fp32")
    parts = loaded.parts
    networks = (*parts.text.encoders, parts.unet)
    offload.apply_offload(networks, parts.vae, replace(loaded.placement, offload=how))
    assert drawn(loaded, orders["both"]) == drawn(engine("turbo"), orders["both"])


def test_a_pipeline_shares_its_unet_unharmed(sdxl_folder: Path, orders: Orders) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False)
    engine, processors = Engine.from_pipe(pipe, "base"), dict(pipe.unet.attn_processors)
    plain = drawn(engine, orders["plain"])
    stream = engine.stream(**orders["both"])
    next(stream)
    assert pipe.unet.attn_processors == processors
    assert drawn(engine, orders["plain"]) == plain


@pytest.mark.parametrize("size", [(64, 64), (40, 91), (200, 33), (1000, 37), (31, 20)])
def test_clip_sees_the_middle(size: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    values = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator())
    image = Image.fromarray(values.numpy())
    theirs = CLIPImageProcessorPil(size=32, crop_size=32)(image, return_tensors="pt").pixel_values
    off = (ip_adapter._clip_pixels(image, 32) - theirs).abs()
    assert float(off.max()) < 1.01 / 255 / 0.26  # one level of grey, where the two round apart
    assert float((off > 1e-6).float().mean()) < 0.002


def test_a_long_picture_takes_no_memory() -> None:
    """Made as large as the rule says before it is cut, this one would take 4 GB."""
    assert ip_adapter._clip_pixels(Image.new("RGB", (30_000, 1)), 224).shape == (1, 3, 224, 224)


def test_the_fake_takes_them_in(edges: Image.Image, cats: Sequence[Image.Image]) -> None:
    fake = FakeEngine("lcm")
    asked: list[dict[str, Any]] = [
        {}, {"control": [("canny", edges, 1)]}, {"control": [("canny", cats[0].resize((96, 96)), 1)]},
        {"reference": [("ip-adapter", cats[0], 1)]}, {"reference": [("ip-adapter", cats[1], 1)]},
    ]  # fmt: skip
    made = [fake.generate("a fox", 2, seed=1, width=96, height=96, **more) for more in asked]
    assert len({result[0].tobytes() for result in made}) == len(asked)
