"""LoRAs on an engine: put on, changed and taken off, by calls that may interleave, without a trace."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fewstep
from fewstep import CorruptModelError, Engine, ModelNotFoundError
from fewstep.addons import lora, lora_apply
from tests.addons import loras, lycoris_kinds

Load = Callable[..., Engine]
Loras = Sequence[tuple[Path, float]]


@pytest.fixture(scope="module")
def styles(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A LoRA for all networks, one for the UNet, one for a text encoder."""
    folder = tmp_path_factory.mktemp("styles")
    given: list[tuple[str, ...]] = [tuple(loras.NETWORKS), ("unet",), ("text_encoder_2",)]
    return [
        loras.by_kohya(loras.states(sdxl_folder, seed, *names), folder / f"{seed}.safetensors", original=True)
        for seed, names in enumerate(given, 21)
    ]


@pytest.fixture
def worn(sdxl_folder: Path) -> Iterator[Engine]:
    """An engine of the test's own."""
    with fewstep.load(sdxl_folder, "turbo", device="cpu", precision="fp32") as engine:
        yield engine


def weights(engine: Engine) -> dict[str, Tensor]:
    networks = (engine.parts.unet, *engine.parts.text.encoders)
    return {f"{i}.{name}": value for i, n in enumerate(networks) for name, value in n.state_dict().items()}


def bits(engine: Engine) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights(engine).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def picture(engine: Engine, loras: Loras = (), seed: int = 1) -> bytes:
    return engine.generate("a red fox", 2, seed=seed, loras=loras)[0].tobytes()


def undressed(engine: Engine) -> dict[str, Tensor]:
    picture(engine)
    return bits(engine)


def test_putting_on_changing_and_removing_leaves_no_bit(worn: Engine, styles: list[Path]) -> None:
    one, two, three = styles
    outfits: list[Loras] = [
        [(one, 0.8)], [(one, -0.3)], [(one, 0.8), (two, 1.0)], [(two, 1.0)], [(three, 0.7)], [], [(one, 0.8)],
        [(two, 0.0)], [(two, 1.0), (three, 1.0)], [(one, 10.0)], [],
    ]  # fmt: skip
    before, plain = undressed(worn), picture(worn)
    seen: dict[str, tuple[bytes, dict[str, Tensor]]] = {}
    for outfit in outfits:
        made, now = picture(worn, outfit), bits(worn)
        known, then = seen.setdefault(str(outfit), (made, now))
        assert made == known  # whatever was on before
        assert same(now, then)
    assert picture(worn) == plain == picture(worn, [(two, 0.0)])
    assert same(bits(worn), before)
    assert len({made for made, _ in seen.values()}) == len(seen) - 1  # a weight of 0 is no LoRA


def test_removal_puts_back_the_tensors_themselves(worn: Engine, styles: list[Path]) -> None:
    """In RAM the loaded weights are kept, not copies: they may be mapped to their file."""
    before = {name: value.data_ptr() for name, value in weights(worn).items()}
    picture(worn, [(styles[0], 1.0)])
    assert {name: value.data_ptr() for name, value in weights(worn).items()} != before
    picture(worn)
    assert {name: value.data_ptr() for name, value in weights(worn).items()} == before


def test_nothing_is_merged_twice(worn: Engine, styles: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal outfits cost nothing; of others, only the weights that they touch."""
    merged: list[Tensor] = []

    def counted(weight: Tensor, added: Any) -> Tensor:
        merged.append(weight)
        return real(weight, added)

    real = lora_apply.merge_weight
    monkeypatch.setattr(lora_apply, "merge_weight", counted)
    layers = [len(state) // 2 for state in loras.states(Path(worn.model.source), 21).values()]
    picture(worn, [(styles[0], 1.0)])
    assert len(merged) == sum(layers)
    picture(worn, [(styles[0], 1.0)])
    assert len(merged) == sum(layers)
    picture(worn, [(styles[0], 1.0), (styles[2], 1.0)])
    assert len(merged) == sum(layers) + layers[2]
    picture(worn, [(styles[0], 1.0), (styles[2], 1.0), (styles[1], 0.0)])
    assert len(merged) == sum(layers) + layers[2]


def test_prompts_are_encoded_with_the_adapters_that_are_on(worn: Engine, styles: list[Path]) -> None:
    """Those of another outfit are forgotten."""
    text = styles[2]
    plain = picture(worn)
    assert picture(worn, [(text, 1.0)]) != plain == picture(worn)
    assert torch.equal(worn.embed("a red fox").tokens, (first := worn.embed("a red fox")).tokens)
    picture(worn, [(text, 1.0)])
    assert torch.equal(worn.embed("a red fox").tokens, first.tokens)


def drawn(engine: Engine, outfits: Sequence[Loras]) -> list[Tensor]:
    """Last latents, call after call."""
    made = []
    for seed, outfit in enumerate(outfits):
        *_, last = engine.stream("a red fox", 3, seed=seed, loras=outfit)
        made.append(last.latents)
    return made


@pytest.fixture
def outfits(styles: list[Path]) -> list[Loras]:
    one, two, three = styles
    return [[(one, 0.8)], [], [(two, 1.0)], [(three, -0.5)], [(one, 0.8), (two, 0.4)], [(two, -1.0)]]


def test_streams_that_interleave(worn: Engine, outfits: list[Loras]) -> None:
    alone = drawn(worn, outfits)
    streams = [worn.stream("a red fox", 3, seed=seed, loras=outfit) for seed, outfit in enumerate(outfits)]
    *_, last = zip(*streams, strict=True)  # a step of each in turn
    assert all(torch.equal(step.latents, latents) for step, latents in zip(last, alone, strict=True))


def test_four_threads(worn: Engine, outfits: list[Loras]) -> None:
    alone = [picture(worn, outfit, seed) for seed, outfit in enumerate(outfits)] * 4
    before = undressed(worn)
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(picture, worn, outfit, seed) for seed, outfit in enumerate(outfits)] + [
            pool.submit(picture, worn, outfit, seed) for _ in range(3) for seed, outfit in enumerate(outfits)
        ]
        assert [done.result() for done in work] == alone
    assert same(undressed(worn), before)


def broken(path: Path, source: Path, fault: str) -> Path:
    state = load_file(source)
    match fault:
        case "cut off":
            path.write_bytes(source.read_bytes()[:-100])
            return path
        case "another width":
            state = {
                k: v.repeat_interleave(2, dim=1) if k.endswith("lora_down.weight") else v
                for k, v in state.items()
            }
        case "another layer":
            state = {k.replace("_1_transformer", "_9_transformer"): v for k, v in state.items()}
        case "half":
            state.popitem()
            state.pop(max(state))
    save_file(state, path)
    return path


@pytest.mark.parametrize("fault", ["cut off", "another width", "another layer", "half"])
def test_a_bad_file_changes_nothing(fault: str, worn: Engine, styles: list[Path], tmp_path: Path) -> None:
    bad = broken(tmp_path / "bad.safetensors", styles[1], fault)
    picture(worn, [(styles[0], 0.8)])
    before = bits(worn)
    with pytest.raises(CorruptModelError, match=r"bad\.safetensors") as told:
        picture(worn, [(styles[2], 1.0), (bad, 1.0)])
    assert "\n" not in str(told.value)
    assert same(bits(worn), before)


def test_a_lack_of_memory_midway_changes_nothing(
    worn: Engine, styles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = picture(worn, [(styles[1], 1.0)])
    picture(worn, [(styles[0], 0.8)])
    before, real, left = bits(worn), lora_apply.merge_weight, [20]

    def failing(weight: Tensor, added: Any) -> Tensor:
        left[0] -= 1
        if left[0] == 0:
            raise MemoryError
        return real(weight, added)

    with monkeypatch.context() as patch:
        patch.setattr(lora_apply, "merge_weight", failing)
        with pytest.raises(fewstep.DeviceMemoryError):
            picture(worn, [(styles[1], 1.0)])
    assert same(bits(worn), before)
    assert picture(worn, [(styles[1], 1.0)]) == expected


def test_an_interrupt_midway_changes_nothing(
    worn: Engine, styles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, as soon as a weight is changed."""
    picture(worn, [(styles[0], 0.8)])
    before, real, left = bits(worn), lora_apply._set_weight, [20]

    def interrupted(weight: Any, value: Tensor) -> None:
        real(weight, value)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(lora_apply, "_set_weight", interrupted)
    with pytest.raises(KeyboardInterrupt):
        picture(worn, [(styles[1], 1.0)])
    assert same(bits(worn), before)


def test_a_file_that_changes_is_read_again(worn: Engine, styles: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes(styles[1].read_bytes())
    first = picture(worn, [(path, 1.0)])
    save_file({key: value * 2 for key, value in load_file(path).items()}, tmp_path / "new")
    os.replace(tmp_path / "new", path)
    assert picture(worn, [(path, 1.0)]) != first


def test_files_stay_read(worn: Engine, styles: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = list[Path](), lora.read_lora

    def noted(path: Path, layers: Any) -> Any:
        read.append(path)
        return real(path, layers)

    monkeypatch.setattr(lora, "read_lora", noted)
    for _ in range(3):
        picture(worn, [(styles[0], 1.0), (styles[1], 0.5)])
    assert read == [styles[0], styles[1]]


@pytest.mark.parametrize("given", ["nothing.safetensors", "./missing/"])
def test_a_missing_file_is_told_before_anything_is_drawn(given: str, worn: Engine) -> None:
    with pytest.raises(ModelNotFoundError, match="neither a file or folder here, nor a hub id"):
        worn.stream("a fox", loras=[given])


def test_half_precision_casts_once(sdxl_folder: Path, styles: list[Path]) -> None:
    """bf16 weights: the sum is made in fp32, of the loaded weight, and rounded to bf16."""
    with fewstep.load(sdxl_folder, "turbo", device="cpu", precision="bf16") as engine:
        name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
        original = engine.parts.unet.get_parameter(f"{name}.weight").clone()
        picture(engine, [(styles[1], 1.0), (styles[1], 0.5)])
        factors = loras.states(sdxl_folder, 22, "unet")["unet"]
        product = factors[f"{name}.lora_B.weight"] @ factors[f"{name}.lora_A.weight"]
        expected = (original.float() + 1.5 * loras.ALPHA / loras.RANK * product).bfloat16()
        now = engine.parts.unet.get_parameter(f"{name}.weight")
        assert now.dtype == torch.bfloat16
        torch.testing.assert_close(now, expected, rtol=2**-8, atol=0)  # at most the last bit
        assert float((now == expected).float().mean()) > 0.99  # which a second rounding would often move


def test_close_lets_go(sdxl_folder: Path, styles: list[Path]) -> None:
    engine = fewstep.load(sdxl_folder, "turbo", device="cpu", precision="fp32")
    picture(engine, [(styles[0], 1.0)])
    read = engine._loaded.loras.read([(str(styles[0]), 1.0)])[0][0]
    held = [
        weakref.ref(one)
        for one in (
            engine.parts.unet, engine.parts.text, engine.parts.unet.conv_in.weight,
            engine._loaded.loras, read,
            lora_apply._loras_by_network[engine.parts.unet]._loaded["conv_in.weight"],
        )
    ]  # fmt: skip
    del read
    engine.close()
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


def test_every_algorithm_leaves_no_bit(worn: Engine, tmp_path: Path) -> None:
    """Of weights, norms and biases: put on alone, together, by a negative share, and taken off."""
    files = []
    for number, kind in enumerate(("LoHa", "DoRA, by input", "full", "norms", "GLoRA", "LoKr, Tucker")):
        tensors, _ = lycoris_kinds.file_of(worn.parts.unet, kind, "LyCORIS")
        files.append(tmp_path / f"{number}.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, files[-1])
    before, plain = undressed(worn), picture(worn)
    alone = [picture(worn, [(path, 0.4)]) for path in files]
    assert len({plain, *alone}) == 1 + len(files)
    together = picture(worn, [(path, 0.2) for path in files])
    assert together not in alone
    assert picture(worn, [(files[1], -0.4), (files[2], 0.0)]) not in (plain, alone[1])
    assert picture(worn, [(files[3], 0.4)]) == alone[3]
    assert picture(worn) == plain == picture(worn, [(path, 0) for path in files])
    assert same(bits(worn), before)
