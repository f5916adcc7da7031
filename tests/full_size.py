"""Full-size SDXL with random weights, loaded in every layout: `python -m tests.full_size FOLDER`.

Writes 19 GB into FOLDER once (2.6 B parameters of UNet in bf16: as a diffusers folder, as one original
file, as a UNet file), then loads each in a process of its own, takes one turbo step at 512 x 512, and
prints time to load and to step, peak memory and whether the latents are the same bits. diffusers
loads beside it, for the same loop (`Engine.from_pipe`).
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import fewstep
from fewstep import Engine
from fewstep.loading import tokenizers
from tests.conftest import SCHEDULER
from tests.loading import original

# stabilityai/stable-diffusion-xl-base-1.0: unet, vae, text_encoder and text_encoder_2, config.json.
UNET: dict[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
    "sample_size": 1024, "scaling_factor": 0.13025,
}  # fmt: skip
CLIP_L: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip
BIG_G: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
INDEX = {
    "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True,
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
}  # fmt: skip
PROMPT = "a red fox in the snow, highly detailed"


def write(root: Path) -> None:
    """All layouts of the same weights; what is there already is left."""
    folder = root / "sdxl"
    if not (folder / "model_index.json").exists():
        _write_folder(folder)
    unet = _mapped(folder / "unet")
    if not (root / "unet.safetensors").exists():
        named = original.unet_names(unet)
        save_file({f"model.diffusion_model.{n}": t for n, t in named.items()}, root / "unet.safetensors")
    if not (root / "sdxl.safetensors").exists():
        others = [_mapped(folder / part) for part in ("vae", "text_encoder", "text_encoder_2")]
        save_file(original.checkpoint(unet, *others), root / "sdxl.safetensors")


def _write_folder(folder: Path) -> None:
    torch.manual_seed(0)
    clip: dict[str, Any] = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    builders: dict[str, tuple[dict[str, Any], Callable[[], nn.Module]]] = {
        "vae": (VAE, lambda: AutoencoderKL.from_config(VAE)),
        "text_encoder": (CLIP_L | clip, lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L, **clip))),
        "text_encoder_2": (
            BIG_G | clip, lambda: CLIPTextModelWithProjection(CLIPTextConfig(**BIG_G, **clip))
        ),
        "unet": (UNET, lambda: UNet2DConditionModel.from_config(UNET)),
    }  # fmt: skip
    for part, (config, build) in builders.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        with torch.device("meta"):
            shapes = {name: weight.shape for name, weight in build().named_parameters()}
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        prefix = "text_model." if part == "text_encoder" else ""  # as files have it; see networks._named_as
        _write_shards(folder / part, stem, {prefix + n.removeprefix(prefix): s for n, s in shapes.items()})
    for part, tokenizer in zip(
        ("tokenizer", "tokenizer_2"),
        (tokenizers.clip_tokenizer(pads_with_end=end) for end in (True, False)),
        strict=True,
    ):
        tokenizer.save_pretrained(folder / part)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(INDEX))


def _write_shards(folder: Path, stem: str, shapes: Mapping[str, torch.Size]) -> None:
    """The UNet in two files with an index, smaller networks in one."""
    names, most = list(shapes), 1400
    parts = [names[start : start + most] for start in range(0, len(names), most)]
    files = [f"{stem}-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    files = files if len(parts) > 1 else [f"{stem}.safetensors"]
    for file, part in zip(files, parts, strict=True):
        save_file({name: _random(name, shapes[name]) for name in part}, folder / file, {"format": "pt"})
    if len(parts) > 1:
        places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        index = {"metadata": {}, "weight_map": places}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def _random(name: str, shape: torch.Size) -> Tensor:
    """As torch starts layers, so that numbers stay finite through all of them."""
    if len(shape) == 1:
        weight = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        return weight.bfloat16()
    reach = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape, dtype=torch.bfloat16).uniform_(-reach, reach)


def _mapped(folder: Path) -> dict[str, Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def measure(root: Path, way: str) -> dict[str, Any]:
    """Load one way and take a turbo step, in this process."""
    torch.zeros(1)  # nobody pays for torch's own start
    started, before = time.perf_counter(), _peak()
    engine = _diffusers(root, way) if way.startswith("diffusers") else _fewstep(root, way)
    loaded = time.perf_counter()
    with engine:
        (step,) = engine.stream(PROMPT, 1, seed=7, width=512, height=512)
    ended, peak = time.perf_counter(), _peak() - before
    bits = hashlib.sha256(step.latents.numpy().tobytes()).hexdigest()[:16]
    spread = float(step.latents.std())
    return {"load": loaded - started, "step": ended - loaded, "peak": peak, "bits": bits, "std": spread}


def _fewstep(root: Path, way: str) -> Engine:
    ways: dict[str, tuple[str, str | Path]] = {
        "folder": ("sdxl", ""),
        "single file": ("sdxl.safetensors", ""),
        "folder + UNet file": ("sdxl", root / "unet.safetensors"),
    }
    model, own = ways[way]
    return fewstep.load(root / model, "turbo", accelerator=own, device="cpu", precision="bf16")


def _diffusers(root: Path, way: str) -> Engine:
    """Loaded by diffusers; its single-file loader is given the folder's configurations, to stay offline."""
    from diffusers import StableDiffusionXLPipeline

    if way.endswith("from_pretrained"):
        pipe = StableDiffusionXLPipeline.from_pretrained(root / "sdxl", torch_dtype=torch.bfloat16)
    else:
        pipe = StableDiffusionXLPipeline.from_single_file(
            str(root / "sdxl.safetensors"), config=str(root / "sdxl"), torch_dtype=torch.bfloat16,
            local_files_only=True,
        )  # fmt: skip
    return Engine.from_pipe(pipe, "turbo")


def _peak() -> int:
    """Bytes: the most memory so far, pages mapped from files among it (Linux)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


WAYS = (
    "folder", "single file", "folder + UNet file", "diffusers from_pretrained", "diffusers from_single_file",
)  # fmt: skip


def main() -> int:
    root = Path(sys.argv[1])
    if len(sys.argv) == 3:
        print(json.dumps(measure(root, sys.argv[2])))
        return 0
    write(root)
    weights = sum(path.stat().st_size for path in (root / "sdxl").rglob("*.safetensors"))
    print(f"weights: {weights / 1e9:.2f} GB in bf16")
    found = {}
    for way in (WAYS[0], *WAYS):  # the first time brings files into the system's cache
        command = [sys.executable, "-m", "tests.full_size", str(root), way]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode:
            print(f"{way:28} failed: {said.stderr.splitlines()[-1]}")
            continue
        got = json.loads(said.stdout.splitlines()[-1])
        print(
            f"{way:28} load {got['load']:5.1f} s, first step {got['step']:5.1f} s   "
            f"peak {got['peak'] / 1e9:5.2f} GB, {got['peak'] / weights:.2f} of the weights   "
            f"latents {got['bits']}, std {got['std']:.3f}"
        )
        found[way] = got["bits"]
    ours = {found[way] for way in found if not way.startswith("diffusers")}
    print("latents of ours: the same bits" if len(ours) == 1 else "latents differ")
    return 0 if len(ours) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
