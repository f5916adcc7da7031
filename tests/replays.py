"""Sixty pictures of all tasks, modes and formats saved and drawn again, twenty of them tampered with.

    python -m tests.replays [--work DIR]

Prints a line for each picture that is not the same, for each tampered one what was named, and the counts.
The bundled model draws most; small random models of SDXL's architecture stand for folders, single weights,
ControlNets and IP-Adapters. tests/test_replay.py runs a part of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from sd_parsers import ParserManager

import fewstep
from fewstep.errors import FewstepError
from fewstep.metadata.containers import read_container, write_container
from fewstep.metadata.formats import ENDINGS, Encoding
from fewstep.metadata.story import dump_story, load_story, pack_pictures, unpack_pictures
from tests import picture_hashes
from tests.metadata.hostile import TEXTS

FORMATS = ("png", "jpg", "webp")
PLACE: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


class Case(NamedTuple):
    """A call, and which of its pictures is replayed."""

    name: str
    call: dict[str, Any]
    place: int = 0  # in its call


def picture(shift: int = 0, side: int = 128) -> Image.Image:
    return picture_hashes.picture(shift, side)


def bundled(work: Path) -> Iterator[Case]:
    """Cases of the bundled model."""
    modes = {"base": 3, "turbo": 1, "lcm": 2, "lcm-lora": 2}
    for mode, steps in modes.items():
        call = {"prompt": "a red heart, flat style", "mode": mode, "steps": steps}
        yield Case(f"text {mode}", {**call, "seed": 3})
        yield Case(f"large seed {mode}", {**call, "seed": 2**40 + 3})
        yield Case(f"image {mode}", {**call, "seed": 4, "image": picture(), "strength": 0.6})
        yield Case(f"inpaint {mode}", {**call, "seed": 4, "image": picture(), "mask": picture_hashes.mask()})
        yield Case(f"LoRA {mode}", {**call, "seed": 6, "loras": [("fx", 0.7)]})
        yield Case(f"batch {mode}", {**call, "prompt": ["a cat", "an owl", "a sun"], "seed": 9}, 1)
    for sampler, scheduler in (
        ("euler", "karras"), ("dpmpp_2m", "exponential"), ("dpmpp_sde", "trailing"), ("ddim", "leading"),
        ("euler_ancestral", "ays"),
    ):  # fmt: skip
        rules = {"sampler": sampler, "scheduler": scheduler, "mode": "base", "steps": 3, "seed": 5}
        yield Case(f"{sampler} {scheduler}", {"prompt": "a cat", **rules})
    base = {"prompt": "a sun", "mode": "base", "steps": 3, "seed": 2}
    yield Case("negative prompt", {**base, "negative_prompt": "a heart", "guidance": 6})
    yield Case("rescaled", {**base, "guidance": 8, "guidance_rescale": 0.7})
    yield Case("timesteps", {"prompt": "a sun", "mode": "base", "timesteps": [900, 600, 20], "seed": 6})
    yield Case("timesteps of an image", {"prompt": "a sun", "mode": "base", "timesteps": [600, 20], "seed": 6,
                                         "image": picture(30)})  # fmt: skip
    yield Case("eta", {**base, "sampler": "ddim", "eta": 0.5})
    lcm = {"mode": "lcm", "steps": 2, "seed": 1}
    yield Case("size", {**lcm, "prompt": "a cat", "width": 96, "height": 160})
    yield Case("tiny VAE", {**lcm, "prompt": "a cat", "vae": "tiny"})
    yield Case("second prompt", {**lcm, "prompt": "a heart", "prompt_2": "a rocket"})
    yield Case("weighted prompt", {**lcm, "prompt": "a (red:1.4) heart, (snow:0.3)"})
    yield Case("long prompt", {**lcm, "prompt": "a red fox in the snow, " * 30})
    yield Case("cut prompt", {**lcm, "prompt": "a red fox, " * 30, "long_prompt": "cut"})
    yield Case("hostile prompt", {**lcm, "prompt": TEXTS[18]})
    yield Case("no prompt", {**lcm, "prompt": ""})
    picture(60).save(work / "given.png")
    yield Case("image of a file", {**lcm, "prompt": "a cat", "image": work / "given.png", "strength": 0.5})
    tall = picture(side=300).resize((150, 250))
    yield Case("inpaint any size", {**lcm, "prompt": "a cat", "image": tall, "mask": tall.convert("L")})
    yield Case(
        "image scaled", {**lcm, "prompt": "a cat", "image": picture(side=300), "width": 128, "height": 128}
    )
    word = {
        "clip_l": torch.linspace(-1, 1, 64).view(1, 64),
        "clip_g": torch.linspace(1, -1, 128).view(1, 128),
    }
    save_file(word, work / "sks.safetensors")
    yield Case("learned word", {**lcm, "prompt": "a sks cat", "embeddings": [work / "sks.safetensors"]})
    yield Case("more steps", {"prompt": "a cat", "mode": "base", "steps": 9, "seed": 8})
    yield Case("a list of seeds", {**lcm, "prompt": "an owl", "count": 3, "seed": [5, 1, 5]}, 2)
    yield Case("two LoRAs", {**lcm, "prompt": "a cat", "loras": ["fx", ("fx", -0.3)]})


def folders(work: Path) -> Iterator[Case]:
    """Cases of a small model's folder and files."""
    from diffusers import ControlNetModel

    root, lcm, net = work / "model", work / "lcm", work / "net"
    pipe = picture_hashes.pipeline()
    pipe.save_pretrained(root)
    picture_hashes.small_parts(32)["unet"].save_pretrained(lcm)
    style = picture_hashes.lora(pipe.unet, work / "style.safetensors", kohya=True)
    mode_lora = picture_hashes.lora(pipe.unet, work / "mode.safetensors", kohya=False)
    control = ControlNetModel.from_unet(pipe.unet)
    with torch.no_grad():
        for block in (*control.controlnet_down_blocks, control.controlnet_mid_block):
            block.weight.copy_(torch.linspace(-0.2, 0.2, block.weight.numel()).view_as(block.weight))
    control.save_pretrained(net)
    adapter = ip_adapter(pipe.unet, work / "ip")
    where: dict[str, Any] = {"model": root, "prompt": "a red fox", "seed": 1, "width": 96, "height": 96}
    edges = picture(side=96)
    yield Case("folder base", {**where, "mode": "base", "steps": 3, "negative_prompt": "sun"})
    yield Case("folder turbo", {**where, "mode": "turbo", "steps": 2})
    yield Case("folder merge", {**where, "mode": "merge", "steps": 4})
    yield Case("LoRA of a file", {**where, "mode": "turbo", "steps": 2, "loras": [(style, -0.5)]})
    yield Case("control", {**where, "mode": "turbo", "steps": 2, "control": [(net, edges, 0.7)]})
    both = [(net, edges, 0.3), (net, ImageOps.mirror(edges), 0.4)]
    yield Case("two controls", {**where, "mode": "turbo", "steps": 2, "control": both})
    yield Case(
        "reference", {**where, "mode": "turbo", "steps": 2, "reference": [(adapter, picture(40), 0.8)]}
    )
    for mode, steps in (("lcm", 3), ("lcm-lora", 2), ("tcd", 4)):
        accelerator = lcm if mode == "lcm" else mode_lora
        yield Case(f"accelerator {mode}", {**where, "mode": mode, "steps": steps, "accelerator": accelerator})
    weaker = {"accelerator": mode_lora, "accelerator_weight": 0.6}
    yield Case("weaker accelerator", {**where, "mode": "lcm-lora", "steps": 2, **weaker})


def ip_adapter(unet: Any, root: Path) -> Path:
    """An IP-Adapter in its published layout, with a small encoder beside it."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    context, draw = unet.config.cross_attention_dim, torch.Generator().manual_seed(9)
    config = CLIPVisionConfig(
        hidden_size=48, intermediate_size=64, projection_dim=40, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8, hidden_act="gelu", initializer_factor=3.0,
    )  # fmt: skip
    torch.manual_seed(4)
    CLIPVisionModelWithProjection(config).save_pretrained(root / "sdxl_models" / "image_encoder")
    shapes = {
        "image_proj.proj.weight": (4 * context, 40), "image_proj.proj.bias": (4 * context,),
        "image_proj.norm.weight": (context,), "image_proj.norm.bias": (context,),
    }  # fmt: skip
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).inner_dim
            shapes |= {f"ip_adapter.{number}.to_{part}_ip.weight": (width, context) for part in "kv"}
    tensors = {name: torch.randn(shape, generator=draw) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    path = root / "sdxl_models" / "ip-adapter_sdxl.safetensors"
    save_file(tensors, path)
    return path


def save_all(cases: Sequence[Case], folder: Path) -> list[Path]:
    """Draw and save each, in one format after another; a case's picture only."""
    paths = []
    for number, case in enumerate(cases):
        result = fewstep.generate(**case.call, **PLACE)
        path = folder / f"{number:02} {case.name}.{FORMATS[number % 3]}"
        path.write_bytes(result.bytes(case.place, FORMATS[number % 3]))
        paths.append(path)
    return paths


def count_same(paths: Sequence[Path]) -> int:
    """Return how many come out with the same bits; says of the others what differs."""
    same = 0
    for path in paths:
        try:
            compared = fewstep.replay(path).compared
            told, alike = str(compared), compared.same_bits and not compared.differences
        except FewstepError as error:
            told, alike = str(error), False
        same += alike
        if not alike:
            print(f"NOT THE SAME {path.name}: {told}")
    return same


def count_read(paths: Sequence[Path]) -> int:
    """Return of how many sd-parsers reads sampler, seed, steps, guidance, model and LoRA hashes, rightly."""
    right = 0
    for path in paths:
        facts = fewstep.metadata.read(path)
        with Image.open(path) as image:
            image.load()
            info = ParserManager().parse(image)
        assert info is not None
        (sampler,) = info.samplers
        hashes, parameters = info.metadata["Hashes"], sampler.parameters
        expected = {
            "steps": str(facts["steps"]),
            "seed": str(facts["seeds"][0]),
            "cfg_scale": f"{facts['guidance']:g}",
        }
        loras = {entry["tensors"][:12] for entry in facts["weights"] if "tensors" in entry}
        alike = expected.items() <= parameters.items() and sampler.name and sampler.model is not None
        alike = alike and sampler.model.hash == hashes["model"]  # type: ignore[union-attr]
        alike = alike and loras == {digest for name, digest in hashes.items() if name.startswith("lora:")}
        right += bool(alike)
        if not alike:
            print(f"NOT READ {path.name}: {sampler} {hashes} {loras}")
    return right


# --- tampering


def edit_facts(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a file's JSON, and nothing else in it, as by an editor of metadata."""

    def edited(text: str) -> str:
        story = json.loads(text)
        change(story)
        return json.dumps(story)

    rewrite(path, edited)


def restate_facts(path: Path, **facts: Any) -> None:
    """Write other facts, as a picture of another machine or version would have them."""
    rewrite(path, lambda text: dump_story({**load_story(text)[0], **facts}))


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    payload = read_container(path.read_bytes())
    with Image.open(path) as image:
        image.load()
    changed = replace(payload, facts=change(payload.facts))
    path.write_bytes(
        write_container(
            image, changed, Encoding(format=ENDINGS[path.suffix], quality=100 * (path.suffix == ".webp"))
        )
    )


def edit_given(path: Path, option: str, change: Callable[[Image.Image], Image.Image]) -> None:
    """Change a picture that is in the file."""
    import io

    payload = read_container(path.read_bytes())
    pictures: dict[str, list[Image.Image]] = {
        name: [Image.open(io.BytesIO(file)) for file in files]
        for name, files in unpack_pictures(payload.embedded).items()
    }
    pictures[option][0] = change(pictures[option][0])
    with Image.open(path) as image:
        image.load()
    content = write_container(
        image, replace(payload, embedded=pack_pictures(pictures)), Encoding(format=ENDINGS[path.suffix])
    )
    path.write_bytes(content)


def edit_pixels(path: Path) -> None:
    payload = read_container(path.read_bytes())
    with Image.open(path) as image:
        image.putpixel((5, 5), (1, 2, 3))
        path.write_bytes(write_container(image, payload, Encoding()))


def edit_weights(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel() > 8)
    save_file({**tensors, name: tensors[name] * 1.5 + 0.1}, path, metadata={"format": "pt"})


Change = Callable[[Path, Path], object]  # of (the picture's file, the folder of models)


class Tampering(NamedTuple):
    """What is done to a picture, or to what it was made from, and what has to be named."""

    name: str
    case: str  # whose picture
    change: Change
    named: str  # a kind of `Difference`, or words of the error


def set_fact(name: str, value: Any) -> Change:
    return lambda path, _work: edit_facts(path, lambda story: story.update({name: value}))


def move(name: str) -> Change:
    return lambda _path, work: shutil.move(work / name, work / f"{name}.elsewhere")


def given(option: str, change: Callable[[Image.Image], Image.Image]) -> Change:
    return lambda path, _work: edit_given(path, option, change)


def weights(*names: str) -> Change:
    return lambda _path, work: edit_weights(work.joinpath(*names))


def state(**facts: Any) -> Change:
    return lambda path, _work: restate_facts(path, **facts)


NETWORK = "diffusion_pytorch_model.safetensors"
TAMPERINGS = (
    Tampering("prompt", "text lcm", set_fact("prompts", ["a blue heart"]), "prompt"),
    Tampering("prompt in a JPEG", "large seed turbo", set_fact("prompts", ["an owl"]), "prompt"),
    Tampering("negative prompt", "negative prompt", set_fact("negative_prompt", "a sun"), "negative_prompt"),
    Tampering("seed", "text turbo", set_fact("seeds", [4]), "seeds"),
    Tampering("steps", "text lcm-lora", set_fact("steps", 3), "steps"),
    Tampering("LoRA's weight", "LoRA lcm", set_fact("loras", [["fx", 0.1]]), "loras"),
    Tampering("a fact emptied", "image turbo", set_fact("strength", 1.0), "strength"),
    Tampering("given image", "image lcm", given("image", ImageOps.mirror), "input"),
    Tampering("given mask", "inpaint lcm", given("mask", ImageOps.invert), "input"),
    Tampering("control's picture", "control", given("control", ImageOps.flip), "input"),
    Tampering(
        "image's file", "image of a file", lambda _path, work: picture(10).save(work / "given.png"), "input"
    ),
    Tampering("image's file gone", "image of a file", move("given.png"), "given.png"),
    Tampering("pixels", "two LoRAs", lambda path, _work: edit_pixels(path), "file"),
    Tampering("LoRA's file", "LoRA of a file", weights("style.safetensors"), "weights"),
    Tampering("LoRA's file gone", "LoRA of a file", move("style.safetensors"), "style.safetensors"),
    Tampering("learned word's file", "learned word", weights("sks.safetensors"), "weights"),
    Tampering("mode's own LoRA", "accelerator lcm-lora", weights("mode.safetensors"), "weights"),
    Tampering("ControlNet's weights", "control", weights("net", NETWORK), "weights"),
    Tampering("model's weights", "folder turbo", weights("model", "vae", NETWORK), "weights"),
    Tampering("torch's version", "text base", state(versions={"torch": "2.0.1"}), "version"),
    Tampering("processor", "large seed lcm", state(processor="Z80"), "processor"),
)


def name_of_difference(tampering: Tampering, saved: Path, work: Path) -> tuple[bool, str]:
    """Tamper with a copy of a picture, or with what it was made from, which is put right after it."""
    path = saved.with_name(f"tampered {saved.name}")
    shutil.copyfile(saved, path)
    kept = {
        file: file.read_bytes() for file in work.rglob("*") if file.is_file() and file.stat().st_size < 2**24
    }
    tampering.change(path, work)
    try:
        compared = fewstep.replay(path).compared
        named, told = any(d.kind == tampering.named for d in compared.differences), str(compared)
    except FewstepError as error:
        named, told = tampering.named in str(error), str(error)
    finally:
        for file, content in kept.items():
            if not file.is_file() or file.read_bytes() != content:
                file.write_bytes(content)
        path.unlink()
    return named, told


def count_named(cases: Sequence[Case], paths: Sequence[Path], work: Path) -> int:
    by_name = {case.name: path for case, path in zip(cases, paths, strict=True)}
    count = 0
    for tampering in TAMPERINGS:
        named, told = name_of_difference(tampering, by_name[tampering.case], work)
        count += named
        print(f"{'named' if named else 'NOT NAMED'}: {tampering.name}: {told[:300]}")
    return count


def count_harmless(folder: Path) -> int:
    """Return how many hostile texts come back unchanged from ours, and leave theirs the settings."""
    harmless = 0
    image = picture(side=64)
    result = fewstep.generate("a fox", 1, "turbo", seed=1, **PLACE)
    for text in TEXTS:
        alike = True
        for ending in FORMATS:
            facts = {**result.facts(), "prompts": [text]}
            path = folder / f"hostile.{ending}"
            path.write_bytes(
                fewstep.metadata.encode(
                    image, facts, edited=False, encoding=Encoding(format=ENDINGS[f".{ending}"])
                )
            )
            alike &= fewstep.metadata.read(path) == facts
            with Image.open(path) as opened:
                opened.load()
                info = ParserManager().parse(opened)
            alike &= info is not None and info.samplers[0].parameters["seed"] == "1"
        harmless += alike
    return harmless


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, help="where models and pictures are written (a temporary folder)"
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work, pictures = given.work or Path(temporary), (given.work or Path(temporary)) / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        cases = [*bundled(work), *folders(work)]
        paths = save_all(cases, pictures)
        print(f"same bits: {count_same(paths)} of {len(paths)}")
        print(f"read by sd-parsers: {count_read(paths)} of {len(paths)}")
        print(f"named: {count_named(cases, paths, work)} of {len(TAMPERINGS)}")
        print(f"hostile texts: {count_harmless(work)} of {len(TEXTS)}")
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
