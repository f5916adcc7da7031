"""What goes wrong in one picture: it is caught, said, and stays with that picture."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

import fewstep
from fewstep import DeviceMemoryError, Engine, GenerationError
from fewstep.engine import Engine as Loaded

SEEDS, STEPS = [7, 8, 9], 2
VALUES = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


def bits(images: Sequence[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest, in 255ths."""
    return int(np.asarray(ImageChops.difference(one, other)).max())


@pytest.fixture(scope="module")
def fresh(sdxl_folder: Path) -> Callable[..., Engine]:
    """New engines, to be broken."""

    def loaded(mode: str = "turbo", precision: str = "fp32", **placement: Any) -> Engine:
        made = fewstep.load(sdxl_folder, mode, device="cpu", precision=precision)
        return Loaded(made.choice, replace(made.placement, **placement), made.parts)

    return loaded


# Numbers: 36 injections.


def spoil(module: torch.nn.Module, call: int, value: float, where: int, row: int = 0) -> Callable[[], None]:
    """Put `value` at one place of a row that the `call`-th call of `module` returns; returns the undo."""
    calls = itertools.count()

    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        if next(calls) == call:
            first = output[0] if isinstance(output, tuple) else output
            first[row, 0, where, where] = value

    return module.register_forward_hook(hook).remove


@pytest.fixture(scope="module")
def clean(engine: Callable[..., Engine]) -> list[bytes]:
    return bits(engine("turbo").generate("a red fox", STEPS, seed=SEEDS[0], count=3))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("picture", range(3))
@pytest.mark.parametrize(("stage", "turn"), [("UNet", 0), ("UNet", 1), ("VAE", 0), ("VAE", -1)])
def test_a_number_that_is_none_is_caught(
    stage: str, turn: int, picture: int, value: str, clean: list[bytes], engine: Callable[..., Engine]
) -> None:
    """36: in either network, in the first or last step or pixel, in each picture, three values."""
    loaded = engine("turbo")
    parts = loaded.parts
    if stage == "UNet":  # called once a step, for all pictures
        undo = spoil(parts.unet, turn, VALUES[value], 5, row=picture)
    else:
        undo = spoil(parts.vae.decoder, picture, VALUES[value], turn)
    try:
        with pytest.raises(GenerationError) as caught:
            loaded.generate("a red fox", STEPS, seed=SEEDS[0], count=3)
    finally:
        undo()
    (failure,) = caught.value.failures
    assert (failure.picture, failure.seed, failure.stage) == (picture, SEEDS[picture], stage)
    assert f"picture {picture} (seed {SEEDS[picture]}): the {stage}" in str(caught.value)
    assert "this is fp32 already: try another seed" in str(caught.value)
    assert "\n" not in str(caught.value)
    survivors, others = caught.value.survivors, [i for i in range(3) if i != picture]
    assert survivors is not None
    assert bits(survivors) == [clean[i] for i in others]
    assert survivors.seeds == tuple(SEEDS[i] for i in others)
    assert bits(loaded.generate("a red fox", STEPS, seed=SEEDS[0], count=3)) == clean


def test_survivors_keep_their_place_in_file_names(engine: Callable[..., Engine], tmp_path: Path) -> None:
    loaded = engine("turbo")
    undo = spoil(loaded.parts.vae.decoder, 0, torch.nan, 0)
    with pytest.raises(GenerationError) as caught:
        loaded.generate("a red fox", 1, seed=1, count=3)
    undo()
    assert caught.value.survivors is not None
    written = caught.value.survivors.save(tmp_path / "fox.png")
    assert [path.name for path in written] == ["fox-1.png", "fox-2.png"]
    assert fewstep.metadata.read(written[0])["seeds"] == [2]


def test_no_survivors_where_all_fail(fresh: Callable[..., Engine]) -> None:
    with fresh() as loaded, torch.no_grad():
        loaded.parts.unet.conv_out.bias.fill_(torch.nan)
        with pytest.raises(GenerationError, match=r"picture 0 \(seed 7\), picture 1 \(seed 8\)") as caught:
            loaded.generate("a red fox", seed=7, count=2)
    assert caught.value.survivors is None


def test_an_overflowing_vae_is_run_once_more_in_fp32(fresh: Callable[..., Engine]) -> None:
    """SDXL's own VAE does this in fp16."""
    with fresh(precision="bf16") as loaded:
        expected = loaded.generate("a red fox", 1, seed=1, count=2)

        def overflow(module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output * torch.inf if next(calls) == 0 else output

        calls = itertools.count()
        loaded.parts.vae.decoder.register_forward_hook(overflow)
        result = loaded.generate("a red fox", 1, seed=1, count=2)
        assert next(iter(loaded.parts.vae.parameters())).dtype == torch.bfloat16
    assert result.warnings == ("the VAE gave numbers that are not finite, and decoded once more in fp32",)
    assert difference(result[0], expected[0]) <= 8  # bf16 against fp32
    assert bits(result[1:]) == bits(expected[1:])


def test_lower_precision_is_advised_against(fresh: Callable[..., Engine]) -> None:
    with fresh(precision="bf16") as loaded:
        undo = spoil(loaded.parts.unet, 0, torch.nan, 0)
        with pytest.raises(GenerationError, match=r"not finite; try precision='fp32'$"):
            loaded.generate("a red fox", 1, seed=1)
        undo()


def test_a_preview_never_fails(engine: Callable[..., Engine]) -> None:
    """What is wrong is said when the picture is made, and the others survive."""
    loaded = engine("turbo")
    undo = spoil(loaded.parts.unet, 0, torch.nan, 0)
    with pytest.raises(GenerationError) as caught:
        loaded.generate("a red fox", 1, seed=1, count=2, progress=lambda step: step.preview(0))
    undo()
    assert caught.value.survivors is not None
    assert caught.value.survivors.seeds == (2,)


# Memory: 20 cases.


def too_little(message: str = "CUDA out of memory. Tried to allocate 2.00 GiB") -> Exception:
    return torch.OutOfMemoryError(message)


LACKS: list[Callable[[], Exception]] = [
    too_little,
    lambda: RuntimeError("MPS backend out of memory (MPS allocated: 5.10 GB)"),
    lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError,
]


def scarce(loaded: Engine, rows: int, error: Callable[[], Exception] = too_little) -> list[int]:
    """The UNet runs out of memory above so many rows; returns the sizes it was called with."""
    seen: list[int] = []

    def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(inputs[0]))
        if len(inputs[0]) > rows:
            raise error()

    loaded.parts.unet.register_forward_pre_hook(hook)
    return seen


@pytest.mark.parametrize(
    ("rows", "pictures", "mode", "sizes"),
    [
        (1, 2, "turbo", [2, 1, 1]),
        (1, 5, "turbo", [5, 2, 1, 1, 1, 1, 1]),
        (2, 4, "turbo", [4, 2, 2]),
        (2, 5, "turbo", [5, 2, 2, 1]),
        (4, 4, "turbo", [4]),
        (1, 1, "base", [2, 1, 1]),  # guidance: two rows a picture
        (2, 2, "base", [4, 2, 2]),
        (3, 2, "base", [4, 2, 2]),
    ],
)
def test_the_batch_is_halved(
    rows: int, pictures: int, mode: str, sizes: list[int], fresh: Callable[..., Engine]
) -> None:
    with fresh(mode, batch=0) as loaded:
        expected = loaded.generate("a red fox", 1, seed=3, count=pictures)
        seen = scarce(loaded, rows)
        result = loaded.generate("a red fox", 1, seed=3, count=pictures)
    assert seen == sizes
    assert any("rows at a time instead of" in said for said in result.warnings) == (len(sizes) > 1)
    assert all(difference(*pair) <= 1 for pair in zip(result, expected, strict=True))


def test_what_was_learned_holds_for_the_whole_call(fresh: Callable[..., Engine]) -> None:
    with fresh(batch=0) as loaded:
        seen = scarce(loaded, 2)
        loaded.generate("a red fox", 3, seed=3, count=4)
    assert seen == [4, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("error", LACKS)
def test_one_picture_too_many_is_an_error_with_advice(
    error: Callable[[], Exception], fresh: Callable[..., Engine]
) -> None:
    with fresh(batch=0) as loaded:
        seen = scarce(loaded, 0, error)
        with pytest.raises(DeviceMemoryError, match="in the UNet, with one picture: make smaller") as caught:
            loaded.generate("a red fox", 1, seed=3, count=4)
    assert seen == [4, 2, 1]
    assert "\n" not in str(caught.value)


@pytest.fixture
def vae_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bool]]:
    """`vae_calls(tiled)`: decoding and encoding fail untiled and, where `tiled`, in tiles too."""

    def install(loaded: Engine, what: str, tiled: bool, error: Callable[[], Exception]) -> list[bool]:
        cls, seen = type(loaded.parts.vae), []
        own = getattr(cls, what)

        def call(vae: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(vae.use_tiling)
            if tiled or not vae.use_tiling:
                raise error()
            return own(vae, *args, **kwargs)

        monkeypatch.setattr(cls, what, call)
        return seen

    return install


@pytest.mark.parametrize("error", LACKS)
def test_the_vae_is_tiled_once(
    error: Callable[[], Exception], fresh: Callable[..., Engine], vae_calls: Callable[..., list[bool]]
) -> None:
    with fresh() as loaded:
        expected = loaded.generate("a red fox", 1, seed=3)
        seen = vae_calls(loaded, "decode", False, error)
        result = loaded.generate("a red fox", 1, seed=3)
        assert not loaded.parts.vae.use_tiling
    assert seen == [False, True]
    assert result.warnings == ("memory ran out: the VAE worked in tiles",)
    assert result[0].size == expected[0].size


def test_encoding_is_tiled_too(
    fresh: Callable[..., Engine], vae_calls: Callable[..., list[bool]], drawing: Image.Image
) -> None:
    with fresh() as loaded:
        seen = vae_calls(loaded, "encode", False, too_little)
        result = loaded.generate("a red fox", 1, seed=3, image=drawing)
    assert seen == [False, True]
    assert "in tiles" in result.warnings[0]


def test_tiles_that_do_not_help_are_an_error_with_advice(
    fresh: Callable[..., Engine], vae_calls: Callable[..., list[bool]]
) -> None:
    with fresh() as loaded:
        seen = vae_calls(loaded, "decode", True, too_little)
        with pytest.raises(DeviceMemoryError, match="though it worked in tiles: make smaller pictures"):
            loaded.generate("a red fox", 1, seed=3)
    assert seen == [False, True]


def test_a_vae_placed_in_tiles_is_not_run_whole(
    fresh: Callable[..., Engine], vae_calls: Callable[..., list[bool]]
) -> None:
    with fresh(tiling=True) as loaded:
        seen = vae_calls(loaded, "decode", False, too_little)
        assert loaded.generate("a red fox", 1, seed=3).warnings == ()
    assert seen == [True]


def test_pictures_made_before_memory_ran_out_survive(
    fresh: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    with fresh() as loaded:
        expected = bits(loaded.generate("a red fox", 1, seed=3, count=3))
        own, calls = type(loaded.parts.vae).decode, itertools.count()

        def decode(vae: Any, *args: Any, **kwargs: Any) -> Any:
            if next(calls) in (1, 2):  # the second picture: whole, and in tiles
                raise too_little()
            return own(vae, *args, **kwargs)

        monkeypatch.setattr(type(loaded.parts.vae), "decode", decode)
        with pytest.raises(
            GenerationError, match=r"picture 1 \(seed 4\): memory ran out in the VAE"
        ) as caught:
            loaded.generate("a red fox", 1, seed=3, count=3)
    assert not isinstance(caught.value, DeviceMemoryError)  # some came out
    assert caught.value.failures[0].memory
    assert caught.value.survivors is not None
    assert bits(caught.value.survivors) == [expected[0], expected[2]]


def test_memory_for_prompts_is_told_too(fresh: Callable[..., Engine]) -> None:
    with fresh() as loaded:
        loaded.parts.text.encoders[0].register_forward_pre_hook(
            lambda *_: (_ for _ in ()).throw(too_little())
        )
        with pytest.raises(DeviceMemoryError, match="while prompts were encoded: make smaller"):
            loaded.generate("a red fox", 1, seed=3)


@pytest.mark.parametrize("error", [lambda: RuntimeError("shape mismatch"), lambda: ValueError("no")])
def test_nothing_else_is_tried_again(
    error: Callable[[], Exception], fresh: Callable[..., Engine], vae_calls: Callable[..., list[bool]]
) -> None:
    with fresh(batch=0) as loaded:
        rows = scarce(loaded, 0, error)
        with pytest.raises(type(error()), match=str(error())):
            loaded.generate("a red fox", 1, seed=3, count=4)
        assert rows == [4]
    with fresh() as loaded:
        seen = vae_calls(loaded, "decode", True, error)
        with pytest.raises(type(error()), match=str(error())):
            loaded.generate("a red fox", 1, seed=3)
    assert seen == [False]


def test_tiles_are_the_picture(engine: Callable[..., Engine]) -> None:
    """Tiling changes seams, not what is seen."""
    loaded = engine("turbo")
    tiled = Loaded(loaded.choice, replace(loaded.placement, tiling=True), loaded.parts)
    whole, parts = (each.generate("a red fox", 1, seed=3) for each in (loaded, tiled))
    assert whole[0].size == parts[0].size
    average = [sum(ImageChops.difference(whole[0], parts[0]).convert("L").histogram()[32:])]
    assert average[0] < 0.1 * whole[0].width * whole[0].height
