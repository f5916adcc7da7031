"""Two hundred pictures and their hashes, to hold one commit against another bit for bit.

    python tests/picture_hashes.py OUT.json [--work DIR]

Public names only, so that the file runs on any commit. The bundled model draws most; small random models
of SDXL's architecture stand for folders, single UNets, LoRAs, ControlNets, IP-Adapters and pipelines.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

import fewstep

Case = tuple[str, dict[str, Any]]  # name, arguments of generate


def picture(shift: int = 0, side: int = 128) -> Image.Image:
    """Ramps with an edge in them."""
    red = Image.linear_gradient("L").resize((side, side)).rotate(shift)
    return Image.merge("RGB", (red, red.rotate(90), red.point(lambda v: 200 if v > 128 else 40)))


def mask() -> Image.Image:
    return Image.radial_gradient("L").resize((128, 128))


def bundled(work: Path) -> Iterator[Case]:
    """Tasks, modes, steps, samplers, schedulers, sizes, batches and add-ons of the bundled model."""
    modes = {"base": 6, "turbo": 1, "lcm": 4, "lcm-lora": 4}
    for (mode, steps), seed in itertools.product(modes.items(), (0, 7, 2**40 + 3)):
        yield f"text/{mode}/{seed}", {"steps": steps, "mode": mode, "seed": seed}
    for mode, counts in {
        "turbo": (2, 3, 4),
        "lcm": (1, 2, 8),
        "lcm-lora": (2, 3, 8),
        "base": (1, 3, 12),
    }.items():
        for steps in counts:
            yield f"steps/{mode}/{steps}", {"steps": steps, "mode": mode, "seed": 3}
    samplers = ("euler", "dpmpp_2m", "dpmpp_sde", "ddim", "euler_ancestral")
    schedulers = ("trailing", "leading", "karras", "exponential", "ays")
    for sampler, scheduler in itertools.product(samplers, schedulers):
        yield (
            f"levels/{sampler}/{scheduler}",
            {"steps": 4, "mode": "base", "sampler": sampler, "scheduler": scheduler, "seed": 5},
        )
    for mode, scheduler in (("turbo", "turbo"), ("lcm", "trailing"), ("lcm-lora", "trailing")):
        yield f"levels/{mode}/{scheduler}", {"steps": 3, "mode": mode, "scheduler": scheduler, "seed": 5}
    for eta in (0.0, 0.5, 1.0):
        yield f"eta/{eta}", {"steps": 3, "mode": "turbo", "eta": eta, "seed": 2}
        yield f"eta/ddim/{eta}", {"steps": 4, "mode": "base", "sampler": "ddim", "eta": eta, "seed": 2}
    for guidance in (1, 2.5, 6, 12):
        yield f"guidance/base/{guidance}", {"steps": 4, "mode": "base", "guidance": guidance, "seed": 2}
    for guidance in (1, 3, 6):
        yield f"guidance/lcm/{guidance}", {"steps": 2, "mode": "lcm", "guidance": guidance, "seed": 2}
    negative = {"steps": 4, "mode": "base", "negative_prompt": "a red heart", "seed": 2}
    yield "negative/base", negative
    yield "negative/rescale", {**negative, "guidance": 8, "guidance_rescale": 0.7}
    yield "negative/lora", {**negative, "mode": "lcm-lora", "guidance": 1.5}
    for mode, strength in itertools.product(modes, (0.3, 0.6, 1.0)):
        how = {
            "steps": min(4, modes[mode] + 1),
            "mode": mode,
            "seed": 4,
            "image": picture(),
            "strength": strength,
        }
        yield f"image/{mode}/{strength}", how
        yield f"inpaint/{mode}/{strength}", {**how, "mask": mask()}
    for width, height in ((64, 64), (128, 96), (96, 160), (72, 136), (192, 128)):
        yield (
            f"size/{width}x{height}",
            {"steps": 2, "mode": "lcm", "width": width, "height": height, "seed": 1},
        )
        yield (
            f"size/tiny-vae/{width}x{height}",
            {"steps": 1, "mode": "turbo", "vae": "tiny", "width": width, "height": height, "seed": 1},
        )
    yield (
        "batch/list",
        {"prompt": ["a cat", "an owl", "the sun " * 40, ""], "steps": 2, "mode": "lcm", "seed": 9},
    )
    yield (
        "batch/guided",
        {
            "prompt": ["a cat", "an owl " * 60],
            "steps": 3,
            "mode": "base",
            "seed": 9,
            "negative_prompt": "sun " * 90,
        },
    )
    yield "batch/count", {"steps": 1, "mode": "turbo", "count": 5, "seed": 20}
    yield "batch/seeds", {"steps": 1, "mode": "turbo", "count": 3, "seed": [5, 1, 5]}
    yield "batch/image", {"steps": 2, "mode": "lcm", "count": 2, "seed": 3, "image": picture(30)}
    for long in ("chunk", "cut"):
        yield (
            f"prompt/{long}",
            {
                "prompt": "a red fox in the snow, " * 30,
                "long_prompt": long,
                "steps": 2,
                "mode": "lcm",
                "seed": 1,
            },
        )
    for prompt in ("a (red:1.4) heart", "an owl (in the snow:0.6), (sun:1.2)", "a (cat:0)"):
        yield f"prompt/{prompt}", {"prompt": prompt, "steps": 2, "mode": "lcm", "seed": 1}
    yield (
        "prompt/second",
        {"prompt": "a heart", "prompt_2": "a rocket", "steps": 2, "mode": "turbo", "seed": 1},
    )
    for levels in ([999], [999, 499], [900, 600, 300, 100], [400, 20]):
        yield f"timesteps/{levels}", {"timesteps": levels, "mode": "base", "seed": 6}
    for mode, weight in itertools.product(modes, (0.5, 1.0, -0.7)):
        yield (
            f"lora/{mode}/{weight}",
            {"prompt": "a rocket, fx style", "steps": 2, "mode": mode, "seed": 6, "loras": [("fx", weight)]},
        )
    yield "lora/twice", {"steps": 2, "mode": "lcm", "seed": 6, "loras": ["fx", ("fx", 0.3)]}
    yield "lora/gone", {"steps": 2, "mode": "lcm", "seed": 6}
    word = work / "sks.safetensors"
    vectors = {
        "clip_l": torch.linspace(-1, 1, 128).view(2, 64),
        "clip_g": torch.linspace(1, -1, 256).view(2, 128),
    }
    save_file({name: tensor.contiguous() for name, tensor in vectors.items()}, word)
    for mode in ("turbo", "lcm"):
        yield (
            f"word/{mode}",
            {"prompt": "a sks cat", "steps": 2, "mode": mode, "seed": 6, "embeddings": [word]},
        )


def small_parts(width: int | None = None) -> dict[str, Any]:
    """Random networks of SDXL's architecture, by one seed."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    words, _ = tokenizers()
    torch.manual_seed(3)

    def clip(wide: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=3500, hidden_size=wide, projection_dim=wide, intermediate_size=2 * wide,
            num_hidden_layers=2, num_attention_heads=2,
            bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
            pad_token_id=words.eos_token_id, initializer_factor=3.0,
        )  # fmt: skip

    unet = UNet2DConditionModel(
        sample_size=12, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 64), layers_per_block=1, transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 4), norm_num_groups=16,
        cross_attention_dim=80, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=48 + 48, time_cond_proj_dim=width,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 32, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8,
        sample_size=96, scaling_factor=0.13025,
    )  # fmt: skip
    return {
        "unet": unet, "vae": vae, "text_encoder": CLIPTextModel(clip(32)),
        "text_encoder_2": CLIPTextModelWithProjection(clip(48)),
    }  # fmt: skip


def tokenizers() -> list[Any]:
    """The bundled model's, of 3,200 tokens at most."""
    from transformers import CLIPTokenizer

    tiny = next(Path(fewstep.__file__).parent.rglob("tiny"))
    return [CLIPTokenizer.from_pretrained(tiny / name) for name in ("tokenizer", "tokenizer_2")]


def pipeline(width: int | None = None) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    return StableDiffusionXLPipeline(
        **small_parts(width), **dict(zip(("tokenizer", "tokenizer_2"), tokenizers(), strict=True)),
        scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip


def lora(unet: Any, path: Path, *, kohya: bool) -> Path:
    """Factors for attention and convolutions, made of each layer's own shape."""
    generator, tensors = torch.Generator().manual_seed(8), dict[str, torch.Tensor]()
    for name, weight in unet.named_parameters():
        layer = name.removesuffix(".weight")
        if not name.endswith((".to_q.weight", ".to_k.weight", ".to_out.0.weight", ".conv1.weight")):
            continue
        down = 0.3 * torch.randn(4, *weight.shape[1:], generator=generator)
        up = 0.3 * torch.randn(weight.shape[0], 4, *(1,) * (weight.ndim - 2), generator=generator)
        base = f"lora_unet_{layer.replace('.', '_')}" if kohya else f"unet.{layer}"
        ends = (".lora_down.weight", ".lora_up.weight") if kohya else (".lora_A.weight", ".lora_B.weight")
        tensors |= {base + ends[0]: down, base + ends[1]: up}
        if kohya:
            tensors[f"{base}.alpha"] = torch.tensor(3.0)
    save_file(tensors, path)
    return path


def folders(work: Path) -> Iterator[Case]:
    """Modes of real checkpoints on a small folder, with weights of the user's in their places."""
    from diffusers import ControlNetModel

    root, lcm, other = work / "model", work / "lcm", work / "unet"
    pipe = pipeline()
    pipe.save_pretrained(root)
    small_parts(32)["unet"].save_pretrained(lcm)
    pipe.unet.save_pretrained(other)
    adapters = {
        kind: lora(pipe.unet, work / f"{kind}.safetensors", kohya=kind == "kohya")
        for kind in ("kohya", "diffusers")
    }
    where = {"model": root, "prompt": "a red fox"}
    for size, seed in itertools.product(((96, 96), (64, 96), (72, 88)), (1, 2)):
        box = {"width": size[0], "height": size[1], "seed": seed}
        yield f"folder/base/{box}", {**where, **box, "steps": 4, "mode": "base", "negative_prompt": "sun"}
        yield f"folder/turbo/{box}", {**where, **box, "steps": 2, "mode": "turbo"}
        yield f"folder/lcm/{box}", {**where, **box, "steps": 4, "mode": "lcm", "accelerator": lcm}
        yield f"folder/merge/{box}", {**where, **box, "steps": 4, "mode": "merge"}
    for mode, steps in (
        ("lcm-lora", 4),
        ("hyper", 4),
        ("hyper-unified", 1),
        ("hyper-cfg", 8),
        ("lightning-lora", 4),
        ("dmd2", 4),
        ("tcd", 4),
        ("pcm", 4),
        ("pcm-normal", 4),
        ("pcm-lcm", 4),
        ("flash", 4),
    ):
        for kind, path in adapters.items():
            yield (
                f"adapter/{mode}/{kind}",
                {**where, "steps": steps, "mode": mode, "accelerator": path, "seed": 1},
            )
    for mode, steps in (("lightning", 4), ("lightning-1step", 1), ("hyper-1step", 1), ("dmd2-1step", 1)):
        yield f"unet/{mode}", {**where, "steps": steps, "mode": mode, "accelerator": other, "seed": 1}
    for weight in (0.8, -0.5):
        yield (
            f"style/{weight}",
            {**where, "steps": 2, "mode": "turbo", "loras": [(adapters["kohya"], weight)], "seed": 1},
        )
    net = ControlNetModel.from_unet(pipe.unet)
    with torch.no_grad():
        for index, weight in enumerate(net.parameters()):
            if not weight.any():  # the zero convolutions
                weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)))
    net.save_pretrained(work / "net")
    for scale in (0.4, 1.0):
        control = {"control": [(work / "net", picture(side=96), scale)], "seed": 1}
        yield f"control/turbo/{scale}", {**where, **control, "steps": 2, "mode": "turbo"}
        yield f"control/base/{scale}", {**where, **control, "steps": 3, "mode": "base"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, help="where models are written (a temporary folder)")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.work is not None:
        asked.work.mkdir(parents=True, exist_ok=True)
        write_hashes(asked.out, asked.work)
        return
    with tempfile.TemporaryDirectory() as work:  # not in the clone, where it would be committed
        write_hashes(asked.out, Path(work))


def write_hashes(out: Path, work: Path) -> None:
    """Draw all, and write their hashes."""
    started, hashes = time.monotonic(), dict[str, str]()
    for name, how in itertools.chain(bundled(work), folders(work)):
        call = {"prompt": "a cat face, 3d style", "device": "cpu", "precision": "fp32", **how}
        images = fewstep.generate(**call)
        data = b"".join(repr(image.size).encode() + image.tobytes() for image in images)
        hashes[f"{name} x{len(images)}"] = hashlib.sha256(data).hexdigest()
    with fewstep.Engine.from_pipe(pipeline(), "turbo") as engine:
        for seed in range(4):
            image = engine.generate("a fox", 2, seed=seed)[0]
            hashes[f"pipe/{seed} x1"] = hashlib.sha256(image.tobytes()).hexdigest()
    out.write_text(json.dumps(hashes, indent=1))
    pictures = sum(int(name.rpartition("x")[2]) for name in hashes)
    print(f"{len(hashes)} calls, {pictures} pictures in {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
