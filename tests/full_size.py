"""Full-size SDXL with random weights, loaded in every layout: `python -m tests.full_size FOLDER`.

Writes 19 GB into FOLDER once (2.6 B parameters of UNet in bf16: as a diffusers folder, as one original
file, as a UNet file), then loads each in a process of its own, takes one turbo step at 512 x 512, and
prints time to load and to step, peak memory and whether the latents are the same bits. diffusers
loads beside it, for the same loop (`Engine.from_pipe`).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fewstep
from fewstep import Engine
from fewstep.bench import random_weights
from tests.loading import original

PROMPT = "a red fox in the snow, highly detailed"


def write(root: Path) -> None:
    """All layouts of the same weights; what is there already is left."""
    folder = random_weights.write_model("random-sdxl", root / "sdxl")
    unet = _mapped(folder / "unet")
    if not (root / "unet.safetensors").exists():
        named = original.unet_names(unet)
        save_file({f"model.diffusion_model.{n}": t for n, t in named.items()}, root / "unet.safetensors")
    if not (root / "sdxl.safetensors").exists():
        others = [_mapped(folder / part) for part in ("vae", "text_encoder", "text_encoder_2")]
        save_file(original.checkpoint(unet, *others), root / "sdxl.safetensors")


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
