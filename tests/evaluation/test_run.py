"""`evaluate` on the bundled model: real rows, which nothing here compares with their present numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fewstep
from fewstep import Engine, evaluation
from fewstep.errors import RequestError
from fewstep.evaluation import DrawingProgress, Row, Settings, drawing, run
from fewstep.evaluation.drawing import (
    CellConfig,
    batched_engine,
    cell_key,
    draw_cell,
    draw_or_load,
    engine_digest,
    reduce_picture,
    time_calls,
)
from fewstep.images import image_to_tensor
from fewstep.train.bundled.data import Caption
from fewstep.train.bundled.latents import held_out_pairs
from tests.evaluation.conftest import network_file

PROMPTS = ("red heart, noto style", "apple, flat style", "orange cat, noto style")


@pytest.fixture
def settings(work: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two prompts, one seed, LCM's one step, against a teacher of two steps."""
    monkeypatch.setattr(run, "REFERENCE_CELL", ("base", 2))
    return Settings(
        modes=("lcm",), steps=(1,), prompts=2, seeds=1, repeats=2, features=network_file(work), device="cpu"
    )


@pytest.fixture
def place(work: Path, tmp_path: Path) -> Path:
    """A work folder of this test's own, on the same data."""
    (tmp_path / "data").symlink_to(work / "data")
    return tmp_path


@pytest.fixture(scope="module")
def base() -> Iterator[Engine]:
    with fewstep.load("tiny", "base", device="cpu", precision="fp32") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def lcm() -> Iterator[Engine]:
    with fewstep.load("tiny", "lcm", device="cpu", precision="fp32") as loaded:
        yield loaded


@pytest.fixture(params=["base", "lcm"])
def engine(request: pytest.FixtureRequest) -> Engine:
    loaded: Engine = request.getfixturevalue(request.param)
    return loaded


@pytest.fixture(scope="module")
def lora(base: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of rank 1 on one layer of the bundled UNet."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = base.parts.unet.get_submodule(name).weight.shape[0]
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    factors = {
        f"unet.{name}.lora_A.weight": torch.ones(1, width), f"unet.{name}.lora_B.weight": torch.ones(width, 1)
    }  # fmt: skip
    save_file(factors, path)
    return path


def drained(drawing: Iterator[DrawingProgress]) -> tuple[list[DrawingProgress], torch.Tensor]:
    """All that a generator yields, and what it returns."""
    seen: list[DrawingProgress] = []
    while True:
        try:
            seen.append(next(drawing))
        except StopIteration as end:
            return seen, end.value


def order(engine: Engine, steps: int = 2) -> CellConfig:
    guidance = engine.recipe.guidance.default
    return CellConfig(
        mode=engine.recipe.mode, steps=steps, guidance=guidance, prompts=PROMPTS, seeds=(5, 6, 7)
    )


def test_pictures_drawn_together_are_the_products(engine: Engine) -> None:
    """One level of 255 apart at most: sums are taken in another order."""
    _, pictures = drained(draw_cell(engine, order(engine)))
    assert pictures.dtype == torch.uint8
    for i, prompt in enumerate(PROMPTS):
        own = engine.generate(prompt, 2, seed=5 + i, progress=False)[0]
        apart = (pictures[i].float() - (image_to_tensor(own)[0] + 1) * 127.5).abs()
        assert apart.max() <= 1.01


def test_the_unet_is_called_with_all_of_them(engine: Engine) -> None:
    rows: list[int] = []
    hook = engine.parts.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    drained(draw_cell(engine, order(engine)))
    hook.remove()
    assert rows == [3 * (2 if engine.recipe.mode == "base" else 1)] * 2


def test_the_mode_own_adapter_is_not_put_on_twice(base: Engine, lora: Path) -> None:
    """The twin shares the weights, in which it is already."""
    parts = replace(base.parts, unet=copy.deepcopy(base.parts.unet), accelerator=(str(lora), 1.0))
    engine = Engine(base.choice, base.placement, parts)
    worn = engine_digest(engine)
    twin = batched_engine(engine)
    assert twin.parts.unet is engine.parts.unet
    assert engine_digest(twin) == worn != engine_digest(base)
    assert engine.placement.batch == base.placement.batch  # the product's own way is as it was


def test_pictures_of_a_key_are_drawn_once(
    lcm: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, made = drained(draw_or_load(lcm, order(lcm, 1), "0" * 64, tmp_path))
    assert [(one.pictures, one.of) for one in seen] == [(3, 3)]
    monkeypatch.delattr(drawing, "draw_cell")
    seen, again = drained(draw_or_load(lcm, order(lcm, 1), "0" * 64, tmp_path))
    assert seen == []
    assert torch.equal(made, again)


def test_the_key_knows_all_that_changes_pictures(lcm: Engine, base: Engine, lora: Path) -> None:
    asked, weights = order(lcm), engine_digest(lcm)
    others = [
        replace(asked, steps=1), replace(asked, guidance=2.0), replace(asked, seeds=(5, 6, 8)),
        replace(asked, loras=((str(lora), 1.0),)), replace(asked, loras=((str(lora), 0.5),)),
    ]  # fmt: skip
    assert len({cell_key(weights, lcm, one) for one in (asked, asked, *others)}) == 6
    assert weights == engine_digest(lcm) != engine_digest(base)


def test_large_pictures_are_made_smaller() -> None:
    picture = torch.zeros(1, 3, 256, 512)
    picture[..., ::2] = 1
    assert reduce_picture(picture).shape == (1, 3, 128, 256)
    assert reduce_picture(picture).unique().tolist() == [191]  # the mean of 127.5 and 255
    assert reduce_picture(torch.full((1, 3, 96, 96), -1.0)).unique().tolist() == [0]


def test_a_row_is_complete(place: Path, settings: Settings) -> None:
    (row,) = evaluation.evaluate(place, settings)
    assert (row.mode, row.steps, row.pictures, row.prompts) == ("lcm", 1, 2, 2)
    assert row.guidance == 3
    shares = [row.name_1, row.name_5, row.style_1, row.seen_1, row.held_out_1]
    assert all(math.isnan(share) or 0 <= share <= 1 for share in shares)
    assert row.name_1 <= row.name_5
    assert 0 < row.rmse < 1
    assert row.frechet > 0
    assert math.isnan(row.diversity)  # one seed
    assert 0 < row.milliseconds_low <= row.milliseconds <= row.milliseconds_high
    assert row.processor
    assert row.threads >= 1


def test_the_teacher_is_at_no_distance_from_itself(place: Path, settings: Settings) -> None:
    seen = list(evaluation.watch(place, replace(settings, modes=("base",), steps=(2,), seeds=2)))
    row = seen[-1]
    assert isinstance(row, Row)
    assert seen[:-1] == [DrawingProgress(mode="base", steps=2, pictures=4, of=4)]
    assert row.rmse == 0
    assert row.feature_distance == pytest.approx(0, abs=1e-6)
    assert row.diversity > 0


def test_an_interrupted_evaluation_goes_on(
    place: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = replace(settings, steps=(1, 2))
    whole = evaluation.evaluate(place, both)
    first = next(whole)
    del whole  # here it is interrupted
    timed: list[int] = []
    real = time_calls

    def counted(engine: Engine, order: CellConfig, repeats: int) -> tuple[float, float, float]:
        timed.append(order.steps)
        return real(engine, order, repeats)

    monkeypatch.setattr(drawing, "time_calls", counted)
    rows = list(evaluation.evaluate(place, both))
    assert timed == [2]
    assert repr(rows[0]) == repr(first)  # nan is not equal to itself
    assert [row.steps for row in rows] == [1, 2]
    assert len(evaluation.read(place / "eval" / "rows.csv")) == 2


def test_modes_take_the_steps_that_their_recipes_allow() -> None:
    assert run._modes_with_steps(Settings(modes=("base", "lcm", "turbo", "lcm-lora"))) == [
        ("base", (1, 2, 4, 8, 10, 25, 50)),
        ("lcm", (1, 2, 4, 8)),
        ("turbo", (1, 2, 4)),
        ("lcm-lora", (2, 4, 8)),
    ]
    assert run._modes_with_steps(Settings(modes=("lightning",))) == [  # an engine for each
        ("lightning", (2,)), ("lightning", (4,)), ("lightning", (8,))
    ]  # fmt: skip


def test_the_models_own_modes_are_the_default() -> None:
    assert {"base", "lcm"} <= {mode for mode, _ in run._modes_with_steps(Settings())} <= set(evaluation.MODES)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": (9,)}, r"steps=\(9,\): no mode was made for these: choose from lcm 1-8"),
        ({"steps": ()}, "whole numbers from 1 on"),
        ({"prompts": 0}, "prompts=0"),
        ({"seeds": 0}, "seeds=0"),
        ({"guidance": {"turbo": 2.0}}, "guidance for turbo, which is not measured: modes are lcm"),
        ({"style": "fx"}, "flat, noto: choose one of these, or give the folder"),
        ({"guidance": {"lcm": 99.0}}, "guidance"),
        ({"modes": ("lmc",)}, "did you mean mode='lcm'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    place: Path, settings: Settings, change: dict[str, object], told: str
) -> None:
    with pytest.raises(RequestError, match=told):
        next(evaluation.evaluate(place, replace(settings, **change)))  # type: ignore[arg-type]


def many(names: int) -> list[Caption]:
    """So many names in two styles, the second picture of some a duplicate."""
    return [
        Caption(label=f"thing {i}", style=style, tags=(), hexcode=str(i))
        for i in range(names)
        for style in ("noto", "flat", "flat")
    ]


def test_prompts_are_drawn_without_replacement() -> None:
    found = evaluation.prompts(many(300), 200)
    assert len(set(found)) == 200
    assert found == evaluation.prompts(many(300), 200)
    assert found != evaluation.prompts(many(300), 200, seed=1)
    assert len(evaluation.prompts(many(300), 10_000)) == 600  # all there are
    assert found[0].text == f"{found[0].label}, {found[0].style} style"


def test_held_out_pairs_are_those_of_training() -> None:
    captions = many(300)
    held = {(one.label, one.style) for one in evaluation.prompts(captions, 600) if one.held}
    flags = zip(captions, held_out_pairs(captions), strict=True)
    assert held == {(caption.label, caption.style) for caption, out in flags if out}
    assert 0 < len(held) < 60
    alone = evaluation.prompts(captions, 600, held_out_only=True)
    assert {(one.label, one.style) for one in alone} == held


def test_prompts_of_ones_own_need_no_real_pictures(tmp_path: Path, settings: Settings) -> None:
    own = replace(settings, texts=("a red fox", "a hat, flat style", "an owl"), seeds=2)
    (row,) = evaluation.evaluate(tmp_path, own)
    assert (row.pictures, row.prompts) == (4, 2)  # at most two prompts
    assert all(map(math.isnan, (row.name_1, row.name_5, row.style_1, row.frechet)))
    assert row.rmse > 0
    assert row.feature_distance > 0
    assert row.diversity > 0
    assert row.sharpness > 0
