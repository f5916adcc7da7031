"""The table of the modes, pinned; and modes and models that do not fit each other.

Every number of `TABLE` is typed from the papers and model cards that the recipes name, not computed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fewstep
from fewstep import Engine, RequestError, cli, modes
from fewstep.errors import ModelNotFoundError

Load = Callable[..., Engine]

# diffusers 0.42.1's timesteps.
TRAILING = {
    1: [999], 2: [999, 499], 4: [999, 749, 499, 249], 8: [999, 874, 749, 624, 499, 374, 249, 124],
}  # fmt: skip
LCM = {
    1: [999], 2: [999, 499], 3: [999, 679, 339], 4: [999, 759, 499, 259],
    6: [999, 839, 679, 499, 339, 179], 8: [999, 879, 759, 639, 499, 379, 259, 139],
}  # fmt: skip
TRAILING_12 = {12: [999, 916, 832, 749, 666, 582, 499, 416, 332, 249, 166, 82]}
TRAILING_16 = {
    16: [999, 937, 874, 811, 749, 687, 624, 561, 499, 437, 374, 311, 249, 187, 124, 61],
}  # fmt: skip


class Row(NamedTuple):
    """What a mode is said to be."""

    weights: str  # how they attach, and where they are
    levels: dict[int, list[int]]  # timesteps by number of steps
    default: int
    guidance: tuple[str, float, float, float]  # kind, low, default, high
    scheduler: str
    sampler: str
    eta: float = 0.0
    prediction: str = ""
    licence: str = "openrail++"


OFF = ("none", 1, 1, 1)
LIGHTNING = "ByteDance/SDXL-Lightning/sdxl_lightning_"
HYPER = "ByteDance/Hyper-SD/Hyper-SDXL-"
PCM = "wangfuyun/PCM_Weights/sdxl/pcm_sdxl_"
KARRAS = {5: [999, 786, 427, 59, 0]}  # the sigmas of arXiv:2206.00364, eq. 5, rounded to timesteps

TABLE = {
    "base": Row("", {k: TRAILING[k] for k in TRAILING}, 30, ("cfg", 1, 5, 20), "trailing", "euler",
                licence="the model's own"),
    "turbo": Row("checkpoint stabilityai/sdxl-turbo/", {k: TRAILING[k] for k in (1, 2, 4)}, 1, OFF,
                 "trailing", "euler_ancestral", 1.0, licence="sai-nc-community"),
    "lcm": Row("unet latent-consistency/lcm-sdxl/", LCM, 4, ("embedded", 3, 8, 13), "lcm", "lcm"),
    "lcm-lora": Row("adapter latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.safetensors",
                    {k: LCM[k] for k in (2, 3, 4, 6, 8)}, 4, ("cfg", 1, 1, 2), "lcm", "lcm"),
    "lightning": Row(f"unet {LIGHTNING}{{steps}}step_unet.safetensors",
                     {k: TRAILING[k] for k in (2, 4, 8)}, 4, OFF, "trailing", "euler"),
    "lightning-lora": Row(f"adapter {LIGHTNING}{{steps}}step_lora.safetensors",
                          {k: TRAILING[k] for k in (2, 4, 8)}, 4, OFF, "trailing", "euler"),
    "lightning-1step": Row(f"unet {LIGHTNING}1step_unet_x0.safetensors", {1: [999]}, 1, OFF,
                           "trailing", "euler", prediction="sample"),
    "hyper": Row(f"adapter {HYPER}{{steps}}steps-lora.safetensors", {k: TRAILING[k] for k in (2, 4, 8)}, 4,
                 OFF, "trailing", "ddim", licence="hyper-sd"),
    "hyper-unified": Row(f"adapter {HYPER}1step-lora.safetensors", LCM, 4, OFF, "lcm", "tcd", 1.0,
                         licence="hyper-sd"),
    "hyper-1step": Row(f"unet {HYPER}1step-Unet.safetensors", {1: [800]}, 1, OFF, "fixed", "lcm",
                       licence="hyper-sd"),
    "hyper-cfg": Row(f"adapter {HYPER}{{steps}}steps-CFG-lora.safetensors", {8: TRAILING[8]} | TRAILING_12,
                     8, ("cfg", 5, 5, 8), "trailing", "ddim", licence="hyper-sd"),
    "dmd2": Row("adapter tianweiy/DMD2/dmd2_sdxl_4step_lora_fp16.safetensors",
                {k: TRAILING[k] for k in (4, 8)}, 4, ("cfg", 1, 1, 1.8), "fixed", "lcm",
                licence="cc-by-nc-4.0"),
    "dmd2-1step": Row("unet tianweiy/DMD2/dmd2_sdxl_1step_unet_fp16.bin", {1: [399]}, 1, OFF, "fixed",
                      "lcm", licence="cc-by-nc-4.0"),
    "tcd": Row("adapter h1t/TCD-SDXL-LoRA/pytorch_lora_weights.safetensors", {k: LCM[k] for k in (4, 6, 8)},
               4, OFF, "lcm", "tcd", 0.3, licence="MIT"),
    "pcm": Row(f"adapter {PCM}smallcfg_{{steps}}step_converted.safetensors",
               {k: TRAILING[k] for k in (2, 4, 8)} | TRAILING_16, 4, OFF, "trailing", "tcd",
               licence="unknown"),
    "pcm-normal": Row(f"adapter {PCM}normalcfg_{{steps}}step_converted.safetensors",
                      {k: TRAILING[k] for k in (4, 8)} | TRAILING_16, 4, ("cfg", 1, 7.5, 10), "trailing",
                      "tcd", licence="unknown"),
    "pcm-lcm": Row(f"adapter {PCM}lcmlike_lora_converted.safetensors", {k: LCM[k] for k in (4, 6, 8)}, 4,
                   OFF, "lcm", "lcm", licence="unknown"),
    "flash": Row("adapter jasperai/flash-sdxl/pytorch_lora_weights.safetensors", {4: [999, 749, 499, 249]},
                 4, OFF, "trailing", "lcm", licence="cc-by-nc-nd-4.0"),
    "merge": Row("checkpoint /", KARRAS, 5, ("cfg", 1, 1.5, 2), "karras", "dpmpp_sde", 1.0,
                 licence="the model's own"),
}  # fmt: skip
# Mode → every legal number of steps.
COUNTS = {
    "base": range(1, 201), "turbo": range(1, 5), "lcm": range(1, 9), "lcm-lora": range(2, 9),
    "lightning": (2, 4, 8), "lightning-lora": (2, 4, 8), "lightning-1step": (1,), "hyper": (2, 4, 8),
    "hyper-unified": range(1, 9), "hyper-1step": (1,), "hyper-cfg": (8, 12), "dmd2": range(4, 9),
    "dmd2-1step": (1,), "tcd": range(4, 21), "pcm": (2, 4, 8, 16), "pcm-normal": (4, 8, 16),
    "pcm-lcm": range(4, 17), "flash": (4,), "merge": range(3, 9),
}  # fmt: skip


@pytest.fixture
def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `fewstep modes --json` prints, by mode."""
    assert cli.main(["modes", "--json"]) == 0
    return {mode["mode"]: mode for mode in json.loads(capsys.readouterr().out)}


def test_all_modes_are_in_the_table(listed: dict[str, Any]) -> None:
    assert sorted(listed) == sorted(TABLE) == sorted(COUNTS)


@pytest.mark.parametrize("mode", TABLE)
def test_a_mode_is_what_its_authors_say(mode: str, listed: dict[str, Any]) -> None:
    row, said = TABLE[mode], listed[mode]
    own = said["weights"].get("sdxl", {})
    assert "{attach} {source}/{file}".format(**own) == row.weights if own else row.weights == ""
    assert tuple(said["guidance"].values()) == row.guidance
    assert (said["schedulers"][0], said["samplers"][0]) == (row.scheduler, row.sampler)
    assert (said["eta"], said["prediction"], said["licence"]) == (row.eta, row.prediction, row.licence)
    assert said["steps"]["default"] == row.default
    for steps, levels in row.levels.items():
        assert [round(t) for t in said["timesteps"][str(steps)]] == levels


@pytest.mark.parametrize("mode", TABLE)
def test_levels_are_told_for_every_legal_number_of_steps(mode: str, listed: dict[str, Any]) -> None:
    said = listed[mode]
    legal = said["steps"]["only"] or range(said["steps"]["low"], said["steps"]["high"] + 1)
    assert [*legal] == [*COUNTS[mode]]
    assert [*said["timesteps"]] == [str(n) for n in COUNTS[mode] if n <= 16]


@pytest.mark.parametrize(
    ("mode", "accelerator", "style"),
    [("lcm-lora", 1.0, 0.8), ("tcd", 1.0, 1.0), ("flash", 1.0, 1.0), ("hyper", 1.0, 1.0), ("dmd2", 1.0, 1.0)],
)
def test_weights_beside_a_style(mode: str, accelerator: float, style: float, listed: dict[str, Any]) -> None:
    assert (listed[mode]["weights"]["sdxl"]["scale"], listed[mode]["style_scale"]) == (accelerator, style)


def test_the_other_grid_of_turbo() -> None:
    """The official demo's."""
    for steps, levels in ((1, (999,)), (2, (999, 899)), (3, (999, 899, 799)), (4, (999, 899, 799, 699))):
        plan = fewstep.plan("a fox", steps, "turbo", model="sdxl", scheduler="turbo")
        assert plan.schedule.timesteps == levels


# --- weights for certain numbers of steps


@pytest.mark.parametrize("mode", [mode for mode, row in TABLE.items() if "{steps}" in row.weights])
def test_each_number_of_steps_has_its_file(mode: str) -> None:
    attach, path = TABLE[mode].weights.split(" ")
    for steps in (None, *COUNTS[mode]):
        count = TABLE[mode].default if steps is None else steps
        _, recipe = modes.choose_mode("sdxl", mode, steps)
        own = recipe.weights["sdxl"]
        assert (own.attach, f"{own.source}/{own.file}") == (attach, path.replace("{steps}", str(count)))
        assert (recipe.steps.low, recipe.steps.default, recipe.steps.high) == (count, count, count)
        assert recipe.counts() == (count,)
        assert recipe.for_steps(99) is recipe  # narrowed already


def test_other_modes_are_not_narrowed() -> None:
    _, recipe = modes.choose_mode("sdxl", "lcm-lora", 3)
    assert recipe == modes.find_recipe("lcm-lora")


@pytest.mark.parametrize("steps", [3, 0, -1, 16, True, "4", 4.0])
def test_a_number_without_weights(steps: Any) -> None:
    with pytest.raises(RequestError) as caught:
        modes.choose_mode("sdxl", "lightning", steps)
    assert str(caught.value) == (
        f"steps={steps!r}: mode 'lightning' has weights for 2, 4 or 8 steps; type steps=4"
    )


def asked(mode: str, steps: int | None = None, loaded: int | None = None, **options: Any) -> None:
    """Ask for pictures of an engine that was loaded for `loaded` steps."""
    from fewstep.request import resolve_job

    about, recipe = modes.choose_mode("sdxl", mode, loaded)
    resolve_job(about, recipe, "a fox", steps, options)  # type: ignore[arg-type]


def test_another_number_than_was_loaded() -> None:
    with pytest.raises(RequestError) as caught:
        asked("lightning", 8, loaded=4)
    assert str(caught.value) == (
        "steps=8 is not what these weights of mode 'lightning' were made for: exactly 4; "
        "type steps=4, or load others by load(..., steps=8)"
    )
    with pytest.raises(RequestError, match=r"exactly 4; type steps=4$"):
        asked("lightning", 3, loaded=4)
    with pytest.raises(RequestError, match=r"exactly 4; type steps=4$"):
        asked("flash", 8)


# --- what a mode was not made for


@pytest.mark.parametrize("mode", TABLE)
def test_wrong_steps_name_the_legal_ones(mode: str) -> None:
    low, high = COUNTS[mode][0], COUNTS[mode][-1]
    for steps in (low - 1, high + 1):
        if steps == 0:
            continue  # no request has none; its type says so
        with pytest.raises(RequestError) as caught:
            asked(mode, steps, loaded=steps)
        said = str(caught.value)
        assert f"steps={steps}" in said
        assert f"type steps={TABLE[mode].default}" in said
        assert str(low) in said
        assert str(high) in said


@pytest.mark.parametrize("mode", TABLE)
def test_wrong_guidance_names_the_legal_one(mode: str) -> None:
    kind, low, default, high = TABLE[mode].guidance
    if kind == "none":
        asked(mode, guidance=0)  # as the cards write it
        wrong, says = [7.0, 1.5], "was distilled without; leave guidance out"
    else:
        wrong, says = [high + 1, low - 0.5], f"type guidance={default:g}"
        asked(mode, guidance=low)
        asked(mode, guidance=high)
    for guidance in wrong:
        with pytest.raises(RequestError) as caught:
            asked(mode, guidance=guidance)
        assert f"guidance={guidance:g}" in str(caught.value)
        assert says in str(caught.value)
        assert ("(1 is off)" in str(caught.value)) == (kind == "cfg" and low == 1)


@pytest.mark.parametrize("mode", TABLE)
def test_a_negative_prompt_that_cannot_act(mode: str) -> None:
    kind, _, default, _ = TABLE[mode].guidance
    if kind == "cfg" and default > 1:
        asked(mode, negative_prompt="sun")
        return
    with pytest.raises(RequestError, match="negative_prompt cannot act"):
        asked(mode, negative_prompt="sun")


# --- modes and models


def load(model: Path | str, mode: str | None = None, accelerator: Path | str = "") -> Engine:
    return fewstep.load(model, mode, accelerator=accelerator, device="cpu", precision="fp32")


def test_lcm_on_a_plain_folder(sdxl_folder: Path) -> None:
    with pytest.raises(RequestError, match="use mode='lcm-lora', or give the UNet's folder as accelerator="):
        load(sdxl_folder, "lcm")


def test_lcm_with_a_plain_unet(sdxl_folder: Path) -> None:
    with pytest.raises(RequestError, match="whose UNet has no guidance embedding: give another"):
        load(sdxl_folder, "lcm", sdxl_folder / "unet")


@pytest.mark.parametrize("mode", ["base", "turbo", "lcm-lora"])
def test_an_lcm_folder_is_for_lcm(mode: str, lcm_folder: Path, lora_file: Path) -> None:
    accelerator = lora_file if mode == "lcm-lora" else ""
    with pytest.raises(RequestError, match="has a guidance embedding: use mode='lcm'"):
        load(lcm_folder, mode, accelerator)


def test_base_has_no_accelerator(sdxl_folder: Path, lora_file: Path) -> None:
    """What was typed is used or refused, never passed over."""
    with pytest.raises(RequestError, match="accelerator="):
        load(sdxl_folder, "base", lora_file)


def test_an_unknown_mode(sdxl_folder: Path) -> None:
    with pytest.raises(RequestError, match="did you mean mode='turbo'"):
        load(sdxl_folder, "trubo")


def test_weights_that_are_a_pickle() -> None:
    with pytest.raises(ModelNotFoundError, match=r"dmd2_sdxl_1step_unet_fp16.bin, a pickle.*mode='dmd2'$"):
        load("sdxl", "dmd2-1step")


def test_merge_needs_a_merge() -> None:
    with pytest.raises(RequestError, match="give such a file, folder or hub id as model="):
        load("sdxl", "merge")


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("turbo", {"guidance": 5}, "distilled without; leave guidance out"),
        ("turbo", {"negative_prompt": "sun"}, "use mode='base', or mode='lcm-lora' with guidance=1.5"),
        ("turbo", {"steps": 5}, "1 to 4; type steps=1"),
        ("turbo", {"steps": 0}, "steps"),
        ("turbo", {"scheduler": "lcm"}, "choose one of trailing, turbo"),
        ("turbo", {"width": 1024}, "multiples of 8 from 48 to 192"),
        ("turbo", {"width": 100}, "multiples of 8 from 48 to 192"),
        ("lcm", {"guidance": 1}, "3 to 13 .* cannot be off.*; type guidance=8"),
        ("lcm", {"negative_prompt": "sun"}, "cannot act in mode 'lcm'"),
        ("lcm", {"sampler": "euler"}, "choose one of lcm"),
        ("lcm", {"eta": 0.5}, "leave eta out"),
        ("lcm-lora", {"negative_prompt": "sun"}, "raise guidance"),
        ("lcm-lora", {"steps": 1}, "2 to 8; type steps=4"),
        ("lcm-lora", {"guidance": 7}, r"1 to 2 \(1 is off\); type guidance=1"),
        ("base", {"guidance": 0}, r"1 to 20 \(1 is off\); type guidance=5"),
        ("base", {"strength": 0.5}, "give image="),
        ("base", {"seed": -1}, "from 0 to"),
        ("base", {"wdith": 64}, "did you mean width"),
    ],
)
def test_what_a_mode_was_not_made_for(mode: str, options: dict[str, Any], message: str, engine: Load) -> None:
    with pytest.raises(RequestError, match=message):
        engine(mode).generate("a fox", **options)
