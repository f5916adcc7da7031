"""What a user is told of a model file: which modes it serves, which one is its own, and what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fewstep
from fewstep import inspection
from fewstep.catalog.models import TINY
from fewstep.errors import BackendError, CorruptModelError, ModelNotFoundError, RequestError
from fewstep.inspection import AS_IT_IS, AT_WORD, BESIDE, OWN, STYLE, Inspection, inspect
from fewstep.loading import build, single_file
from fewstep.modes import base, lcm, lcm_lora, turbo
from fewstep.recipe import Recipe, Weights
from tests.files import headers as made

ADAPTER = Weights(attach="adapter", source="h1t/TCD-SDXL-LoRA", file="pytorch_lora_weights.safetensors")
LIGHTNING = Weights(
    attach="unet", source="ByteDance/SDXL-Lightning", file="sdxl_lightning_{steps}step_unet.safetensors"
)
RECIPES: dict[str, Recipe] = {
    "base": base.RECIPE,
    "lcm": lcm.RECIPE,
    "lcm-lora": lcm_lora.RECIPE,
    "turbo": turbo.RECIPE,
    "tcd": replace(turbo.RECIPE, mode="tcd", weights={"sdxl": ADAPTER}),
    "lightning": replace(turbo.RECIPE, mode="lightning", weights={"sdxl": LIGHTNING}),
    "merge": replace(turbo.RECIPE, mode="merge", weights={"sdxl": Weights(attach="checkpoint", source="")}),
}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """These modes and no others, one of them broken."""

    def recipe(mode: str) -> Recipe:
        if mode == "broken":
            raise BackendError("a plug-in")
        return RECIPES[mode]

    monkeypatch.setattr(inspection, "mode_names", lambda: sorted([*RECIPES, "broken"]))
    monkeypatch.setattr(inspection, "find_recipe", recipe)


def seen(path: Path, shapes: made.Shapes, metadata: object = None) -> Inspection:
    path.parent.mkdir(parents=True, exist_ok=True)
    return inspect(made.write(path, shapes, metadata))


def lora(name: str = "sdxl") -> made.Shapes:
    return made.adapter(made.modules(name), "unet.{}", 4, made.PEFT)


def everything_but(*modes: str) -> dict[str, str]:
    return {mode: STYLE for mode in sorted(RECIPES) if mode not in modes}


# --- which modes


def test_a_checkpoint(tmp_path: Path) -> None:
    found = seen(tmp_path / "mine.safetensors", made.checkpoint())
    wanted = {"base": AS_IT_IS, "lcm-lora": BESIDE, "tcd": BESIDE, "turbo": AT_WORD, "merge": AT_WORD}
    assert dict(found.modes) == wanted
    assert (found.mode, found.notes, found.parameters, found.dtypes) == ("base", (), 3_468_837_945, ("F16",))


def test_a_unet(tmp_path: Path) -> None:
    found = seen(tmp_path / "mine.safetensors", made.unet("sdxl"))
    assert found.modes["lightning"] == AT_WORD
    assert found.mode == "base"
    assert found.notes == ("a UNet on its own: give it as accelerator=, over a whole model",)


def test_a_guidance_embedding_proves_lcm(tmp_path: Path) -> None:
    """Whatever the file is called."""
    found = seen(tmp_path / "turbo.safetensors", made.unet("lcm"))
    assert dict(found.modes) == {"lcm": "its UNet has a guidance embedding, 256 wide"}
    assert found.mode == "lcm"


def test_ssd_1b_has_modes_of_its_own(tmp_path: Path) -> None:
    found = seen(tmp_path / "mine.safetensors", made.unet("ssd-1b"))
    assert dict(found.modes) == {"base": AS_IT_IS, "lcm-lora": BESIDE}


def test_a_style(tmp_path: Path) -> None:
    found = seen(tmp_path / "style.safetensors", lora())
    assert (dict(found.modes), found.mode, found.notes) == (everything_but(), "", ())


# Path → shapes, and the mode that its name proves.
PUBLISHED: dict[str, tuple[Callable[[], made.Shapes], str]] = {
    "sdxl_lightning_4step_unet.safetensors": (lambda: made.unet("sdxl"), "lightning"),
    "sdxl-turbo/unet/diffusion_pytorch_model.safetensors": (lambda: made.unet("sdxl"), "base"),
    "models--h1t--TCD-SDXL-LoRA/snapshots/1/pytorch_lora_weights.safetensors": (lora, "tcd"),
    "TCD-SDXL-LoRA/pytorch_lora_weights.safetensors": (lora, "tcd"),
    "lcm-lora-sdxl/pytorch_lora_weights.safetensors": (lora, "lcm-lora"),
    "lcm-lora-ssd-1b/pytorch_lora_weights.safetensors": (lambda: lora("ssd-1b"), "lcm-lora"),
    "lcm-lora-sdxl/mine.safetensors": (lora, ""),
    "mine/pytorch_lora_weights.safetensors": (lora, ""),
    "sdxl_lightning_4step_lora.safetensors": (lora, ""),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_name_proves_a_mode(name: str, tmp_path: Path) -> None:
    build, mode = PUBLISHED[name]
    found = seen(tmp_path / name, build())
    assert found.mode == mode
    assert [m for m, why in found.modes.items() if OWN in why] == [m for m in [mode] if m not in ("", "base")]


@pytest.mark.parametrize(
    ("name", "metadata", "word", "modes"),
    [
        ("DreamShaperXL_v21TurboDPMSDE", {}, "turbo", "base, merge, turbo"),
        ("turbo_visionxl_v4", {}, "turbo", "base, merge, turbo"),
        ("juggernautXL_v9Rdphoto2Lightning", {}, "lightning", "base, merge"),
        ("mine-lcm", {}, "lcm", "base, merge"),
        ("mine", {"modelspec.title": "Mine LCM"}, "lcm", "base, merge"),
        ("mine", {"ss_output_name": "mine_turbo"}, "turbo", "base, merge, turbo"),
    ],
)
def test_a_name_that_proves_nothing(
    name: str, metadata: dict[str, str], word: str, modes: str, tmp_path: Path
) -> None:
    found = seen(tmp_path / f"{name}.safetensors", made.checkpoint(), metadata)
    typed = " or ".join(f"mode={mode!r}" for mode in modes.split(", ")[1:])
    assert (found.mode, found.notes) == ("base", (found.doubt,))
    assert found.doubt == (
        f"its name or metadata says {word}, which proves nothing: it is run in mode 'base' unless you "
        f"type {typed}"
    )


def test_a_folder_speaks_for_what_has_everybodys_name(tmp_path: Path) -> None:
    found = seen(tmp_path / "my-turbo" / "diffusion_pytorch_model.safetensors", made.unet("sdxl"))
    assert found.mode == inspect(tmp_path / "my-turbo").mode == "base"
    assert "says turbo" in found.notes[-1]


@pytest.mark.parametrize("name", ["realvis", "calcmix", "xlcmx", "base", "broke"])
def test_names_that_say_nothing(name: str, tmp_path: Path) -> None:
    assert seen(tmp_path / f"{name}.safetensors", made.checkpoint()).mode == "base"


# --- what is wrong

NOTES: dict[str, tuple[Callable[[], made.Shapes], str]] = {
    "refiner": (
        lambda: made.unet("sdxl-refiner"), "a unet of SDXL's refiner; fewstep draws with SDXL, SSD-1B and SD"
    ),
    "inpainting": (lambda: made.unet("sdxl-inpaint"), "9 input channels"),
    "a VAE": (made.vae, "a VAE on its own"),
    "CLIP": (lambda: made.clip(768, 1), "a text encoder on its own"),
    "words": (lambda: {"clip_g": (4, 1280), "clip_l": (4, 768)}, "it is for SDXL"),
    "ControlNet": (made.controlnet, "give it, a picture and a scale as control=; it is for SDXL"),
    "words for SD 1.x": (lambda: {"emb_params": (4, 768)}, "; it is for SD 1.x"),
    "parts in one file": (
        lambda: made.parts_in_one_file("sdxl"),
        "its parts have diffusers' names: fewstep reads those from a diffusers folder",
    ),
    "no text encoders": (
        lambda: {name: s for name, s in made.checkpoint().items() if not name.startswith("conditioner.")},
        "it holds no text_encoder and no text_encoder_2: choose one that holds all",
    ),
    "IP-Adapter": (lambda: {"image_proj.proj.weight": (8, 8)}, "an IP-Adapter: give it, a picture"),
    "Flux": (
        lambda: {"double_blocks.0.img_attn.qkv.weight": (9, 3)}, "knows; it is for Flux, for which",
    ),
    "OFT v2": (
        lambda: {"unet.mid_block.x.oft_R.weight": (8, 6)},
        "an adapter of kind OFT v2 (PEFT's) cannot be put on: choose one of kind LoRA, LoCon, LoHa",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTES)
def test_what_cannot_be_used_is_said(case: str, tmp_path: Path) -> None:
    build, note = NOTES[case]
    found = seen(tmp_path / "turbo.safetensors", build())
    assert (dict(found.modes), found.mode) == ({}, "")
    assert note in "\n".join(found.notes)
    assert not any("name the mode" in note for note in found.notes)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    shapes = {n: s for n, s in made.checkpoint().items() if not n.startswith("first_stage_model.")}
    found = seen(tmp_path / "mine.safetensors", shapes | {"v_pred": ()})
    assert found.mode == "base"
    assert found.notes == ("it holds no VAE: the usual one takes its place",)
    assert found.noise == "variance-preserving, v_prediction (tensor v_pred)"


def test_a_lora_that_could_be_for_anything(tmp_path: Path) -> None:
    little = made.kohya({"up_blocks.1.resnets.0.conv1": (640, 1280, 3, 3)})
    found = seen(tmp_path / "little.safetensors", little)
    assert (dict(found.modes), len(found.notes)) == (everything_but(), 1)
    assert "cannot be told" in found.notes[0]


# --- folders


def test_the_bundled_model() -> None:
    found = inspect(TINY)
    assert (found.what, found.family, found.layout) == ("checkpoint", "tiny", "diffusers")
    assert found.targets == ("unet", "text_encoder", "text_encoder_2", "vae")
    assert (dict(found.modes), found.mode, found.notes) == (
        {"base": AS_IT_IS, "lcm-lora": BESIDE}, "base", (),
    )  # fmt: skip
    assert inspect(str(TINY / "unet_lcm")).mode == "lcm"
    assert inspect(str(TINY / "unet_turbo")).mode == "turbo"
    assert inspect(TINY / "lcm_lora").mode == "lcm-lora"
    for name in ("lcm_lora", "style_fx"):
        found = inspect(TINY / name)
        assert (found.what, found.family, found.layout) == ("lora", "tiny", "diffusers")
    for name in ("vae", "vae_tiny"):
        assert (inspect(TINY / name).what, inspect(TINY / name).family) == ("vae", "tiny")


@pytest.mark.parametrize(("side", "said"), [(16, "1 KB"), (160, "51 KB"), (1600, "5 MB"), (24_000, "1.2 GB")])
def test_sizes_are_told_in_fitting_units(side: int, said: str, tmp_path: Path) -> None:
    """Of a weight whose data is a hole in the file."""
    found = seen(tmp_path / "odd.safetensors", {"odd.weight": (side, side)})
    assert f" {said}, " in str(found)


@pytest.mark.parametrize("name", ["sdxl-turbo", "models--stabilityai--sdxl-turbo/snapshots/1"])
def test_a_published_folder(name: str, tmp_path: Path) -> None:
    made_of = {"unet": made.unet("sdxl"), "text_encoder": made.clip(768, 1), "vae": made.vae()}
    made_of["text_encoder_2"] = made.clip(1280, 1)
    for part, shapes in made_of.items():
        (tmp_path / name / part).mkdir(parents=True)
        made.write(tmp_path / name / part / "diffusion_pytorch_model.safetensors", shapes)
    found = inspect(tmp_path / name)
    assert (found.what, found.mode, found.modes["turbo"]) == ("checkpoint", "turbo", OWN)


def test_shards_are_one(tmp_path: Path) -> None:
    shapes = list(made.unet("sdxl").items())
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, part in zip(names, (shapes[::2], shapes[1::2]), strict=True):
        made.write(tmp_path / name, dict(part))
    places = {tensor: names[i % 2] for i, (tensor, _) in enumerate(shapes)}
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    for path in (tmp_path, index):
        found = inspect(path)
        assert (found.what, found.family, found.parameters) == ("unet", "sdxl", 2_567_463_684)
        assert found.bytes == sum((tmp_path / name).stat().st_size for name in names)


def test_a_folder_with_a_lora(tmp_path: Path) -> None:
    found = seen(tmp_path / "pytorch_lora_weights.safetensors", lora())
    assert inspect(tmp_path) == found


@pytest.mark.parametrize(
    "content", [[], ["model.bin"], ["unet/diffusion_pytorch_model.bin"], ["mine.safetensors"]]
)
def test_a_folder_with_no_model(content: list[str], tmp_path: Path) -> None:
    for name in content:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ModelNotFoundError, match="holds no model: give a diffusers folder"):
        inspect(tmp_path)


def test_a_folder_with_a_fifo(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "m")
    (tmp_path / "m" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    os.mkfifo(tmp_path / "m" / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CorruptModelError, match="no regular file"):
        inspect(tmp_path / "m")


@pytest.mark.parametrize("path", [None, 5, "", b"m.safetensors"])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(RequestError, match=r"path=.*give a \.safetensors file, or a folder"):
        inspect(path)


@pytest.mark.parametrize("path", ["nowhere", "a\0b", "~nobody/m"])
def test_what_is_missing(path: str) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no such file"):
        inspect(path)


# --- what is shown


def test_it_is_plain_data(tmp_path: Path) -> None:
    found = seen(tmp_path / "mine.safetensors", made.kohya(made.modules("sdxl")), {"a": "b"})
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["path"] == str(tmp_path / "mine.safetensors")
    assert (data["what"], data["rank"], data["targets"], data["metadata"]) == (
        "lora",
        8,
        ["unet"],
        {"a": "b"},
    )
    assert data["modes"] == everything_but()


def test_metadata_is_cut_for_display(tmp_path: Path) -> None:
    long = {f"{i:03}": "x" * 10_000 for i in range(500)} | {"000": "\x1b[2J\r\n"}
    found = seen(tmp_path / "mine.safetensors", lora(), long)
    assert len(found.metadata) == 40
    assert max(map(len, found.metadata.values())) == 200
    assert found.metadata["000"] == " [2J  "


def test_a_few_lines(tmp_path: Path) -> None:
    found = seen(tmp_path / "mine.safetensors", made.kohya(made.modules("sdxl"), rank=4))
    first, *rest = str(found).split("\n")
    assert first.startswith(f"{tmp_path}/mine.safetensors: lora of SDXL, kohya layout, 22 MB, ")
    assert rest == [
        "  variety lora, rank 4, alpha 0; changes attention",
        "  networks: unet",
        f"  any mode: {STYLE}",
    ]
    assert str(inspect(TINY)).split("\n")[1:] == [
        "  networks: unet, text_encoder, text_encoder_2, vae",
        "  noise process: variance-preserving, v_prediction (EulerDiscreteScheduler's configuration)",
        "  mode: base",
        f"  base: {AS_IT_IS}",
        f"  lcm-lora: {BESIDE}",
    ]


def test_nothing_hostile_is_shown(tmp_path: Path) -> None:
    """Names and metadata of a file never reach the terminal as they are."""
    found = seen(
        tmp_path / "a\x1b[2J\n.safetensors", {"\x7f\u202e.weight": (2,)}, {"modelspec.title": "\x1b"}
    )
    assert all(line.isprintable() for line in str(found).split("\n"))


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("owner/dreamshaper-xl-lightning", "base, merge"),
        ("owner/My_Turbo_v2", "base, merge, turbo"),
        ("owner/realistic-vision", ""), ("RunDiffusionPhoto", ""),
    ],
)  # fmt: skip
def test_a_name_that_speaks_of_a_mode_says_what_to_type(name: str, modes: str) -> None:
    doubt = inspection.name_doubt(name)
    typed = " or ".join(f"mode={mode!r}" for mode in modes.split(", ")[1:])
    assert doubt.endswith(f"unless you type {typed}") if modes else doubt == ""


def test_a_hub_id_that_speaks_of_a_mode_warns() -> None:
    plan = fewstep.plan("a fox", model="owner/x-turbo")
    assert plan.request.mode == "base"
    assert "owner/x-turbo" in plan.warnings[0]
    assert "mode='turbo'" in plan.warnings[0]
    assert fewstep.plan("a fox", 2, "turbo", model="owner/x-turbo").request.mode == "turbo"
    assert fewstep.plan("a fox", model="stabilityai/sdxl-turbo").request.mode == "turbo"


# --- one judge


def scaled(shapes: made.Shapes) -> made.Shapes:
    """As fp8 checkpoints have it."""
    return shapes | {"scaled_fp8": (2,), "model.diffusion_model.input_blocks.0.0.scale_weight": ()}


def pruned(name: str) -> made.Shapes:
    """A whole model with this UNet in the place of SDXL's; kept in diffusers' names, which load reads too."""
    rest = {n: s for n, s in made.checkpoint().items() if not n.startswith("model.diffusion_model.")}
    return made.under("model.diffusion_model.", made.unet(name)) | rest


KOALA = {**made.SDXL, "layers_per_block": 1, "transformer_layers_per_block": (1, 2, 6)}
WHOLE: dict[str, Callable[[], made.Shapes]] = {
    "sdxl": made.checkpoint,
    "lcm": lambda: made.checkpoint("lcm"),
    "sd-1.x": lambda: made.checkpoint("sd-1.x"),
    "ssd-1b": lambda: pruned("ssd-1b"),
    "vega": lambda: pruned("vega"),
    "koala": lambda: pruned("koala"),
    "kolors": lambda: pruned("kolors"),
    "inpainting": lambda: made.checkpoint("sdxl-inpaint"),
    "refiner": lambda: pruned("sdxl-refiner"),
    "scaled fp8": lambda: scaled(made.checkpoint()),
    "parts in one file": lambda: made.parts_in_one_file("sdxl"),
    "no text": lambda: {n: s for n, s in made.checkpoint().items() if not n.startswith("conditioner.")},
    "a unet": lambda: made.unet("sdxl"),
    "a vae": made.vae,
    "v": lambda: made.checkpoint() | {"v_pred": (), "ztsnr": ()},
    "playground": lambda: made.checkpoint() | {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)},
}


@pytest.mark.parametrize("name", WHOLE)
def test_inspect_plan_and_load_agree(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What inspect lists a mode for is planned, and its weights have the places that loading needs."""
    monkeypatch.setitem(made.UNETS, "koala", KOALA)
    path = made.write(tmp_path / "mine.safetensors", WHOLE[name]())
    inspected = inspect(path)
    promised = inspected.what == "checkpoint" and bool(inspected.modes)
    assert promised == (name in ("sdxl", "lcm", "sd-1.x", "ssd-1b", "v", "playground"))
    if not promised:
        for door in (fewstep.plan, fewstep.generate):
            with pytest.raises(fewstep.FewstepError, match="not a whole model that fewstep draws with"):
                door("a fox", model=path)
        return
    assert fewstep.plan("a fox", model=path, mode=inspected.mode).request.mode == inspected.mode
    for blueprint in single_file.read_single_file(path).parts.values():
        if blueprint.kind.startswith(("CLIP", "UNet")):
            build.require_buildable(blueprint)
