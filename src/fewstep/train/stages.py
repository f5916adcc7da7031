"""The stages that make the bundled model, in order, each resumable in a work folder.

    data   fetch the packages, render the sprites, learn the vocabulary
    vae    train the autoencoder, then encode every sprite
    base   train text encoders and UNet
    lcm    distil the LCM UNet
    export write the SDXL-format folders

`work/<stage>/run.json` records command line, hashes of the data, settings and versions;
`losses.csv` has every step.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from fewstep.errors import RequestError
from fewstep.text import TextEncoder
from fewstep.train import base, data, export, latents, lcm, loop, vae, vocabulary
from fewstep.train.loop import Hyper, Progress, Task

Stage = Callable[[Path], Iterator[Progress]]


def make_data(work: Path) -> Iterator[Progress]:
    """Packages, sprites, vocabulary."""
    folder = work / "data"
    hashes = data.fetch(folder)
    data.build(folder)
    if not (work / "tokenizer" / "vocab.json").exists():
        vocabulary.build(data.load(folder)[1], work / "tokenizer")
    _record(folder, {"packages": hashes, "sprites": data.sha256(folder / "sprites.safetensors")})
    yield Progress(1, 0.0, 0.0)


def train_vae(work: Path) -> Iterator[Progress]:
    """The autoencoder, its reconstruction figure, and the latents of every sprite."""
    task = vae_task(work)
    yield from _logged(task, vae.HYPER, work / "vae")
    loop.restore(task, work / "vae")
    autoencoder: Any = task.averages["vae"]
    path = work / "latents.safetensors"
    if not path.exists():
        yield from latents.encode(autoencoder, task.sprites, path)
    psnr = vae.measure(autoencoder, task.sprites)
    _record(work / "vae", {"psnr_db": psnr, "hyper": asdict(vae.HYPER)})


def train_base(work: Path) -> Iterator[Progress]:
    """Text encoders and UNet."""
    task = base_task(work, compiled=True)
    yield from _logged(task, base.HYPER, work / "base")
    _record(work / "base", {"hyper": asdict(base.HYPER)})


def train_lcm(work: Path) -> Iterator[Progress]:
    """The LCM UNet, from the finished base."""
    task = lcm_task(work)
    yield from _logged(task, lcm.HYPER, work / "lcm")
    _record(work / "lcm", {"hyper": asdict(lcm.HYPER), "guidance": lcm.GUIDANCE})


def write_bundle(work: Path) -> Iterator[Progress]:
    """The bundled folder, in `work/export`: base model, LCM UNet, sums."""
    folder = work / "export"
    task = base_task(work)
    loop.restore(task, work / "base")
    loop.restore(autoencoder := vae_task(work), work / "vae")
    vae_network: Any = autoencoder.averages["vae"]
    export.set_scaling(vae_network, task.latents.mean.tolist(), task.latents.std.tolist())
    first, second = (task.averages[name] for name in ("text_encoder", "text_encoder_2"))
    text = TextEncoder(task.text.tokenizers, (first, second))
    unet: Any = task.averages["unet"]
    export.write_base(folder, unet, vae_network, text, task.text.tokenizers[0])
    if (work / "lcm" / "state.safetensors").exists():
        distilled = lcm_task(work)
        loop.restore(distilled, work / "lcm")
        export.write_network(folder / "unet_lcm", distilled.averages["unet"])
    export.write_sums(folder)
    records = {stage: _read_record(work / stage) for stage in ("data", "vae", "base", "lcm")}
    (folder / "training.json").write_text(json.dumps(records, indent=2) + "\n")
    yield Progress(1, 0.0, 0.0)


def vae_task(work: Path) -> vae.VaeTask:
    """The autoencoder's task, freshly initialised."""
    torch.manual_seed(vae.HYPER.seed)
    return vae.VaeTask(data.load(work / "data")[0], vae.HYPER.batch)


def base_task(work: Path, *, compiled: bool = False) -> base.BaseTask:
    """The base task on the work folder's data, freshly initialised."""
    captions = data.load(work / "data")[1]
    torch.manual_seed(base.HYPER.seed)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    stored = latents.load(work / "latents.safetensors", captions)
    return base.BaseTask(stored, tokenizer, base.HYPER.batch, compiled=compiled)


def lcm_task(work: Path) -> lcm.LcmTask:
    """The LCM task over the base run's averaged weights."""
    teacher = base_task(work)
    loop.restore(teacher, work / "base")
    for name in ("text_encoder", "text_encoder_2"):
        teacher.modules[name].load_state_dict(teacher.averages[name].state_dict())
    unet: Any = teacher.averages["unet"]
    return lcm.LcmTask(teacher.latents, unet, teacher.text, lcm.HYPER.batch)


def _logged(task: Task, hyper: Hyper, folder: Path) -> Iterator[Progress]:
    """Train, with every step in `losses.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "losses.csv").open("a", buffering=1) as log:
        for progress in loop.train(task, hyper, folder):
            log.write(f"{progress.step},{progress.loss:.6f},{progress.rate:.3e},{time.time():.1f}\n")
            yield progress


def _record(folder: Path, facts: dict[str, object]) -> None:
    """Write `run.json`: what was run, on what, with which versions."""
    versions = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    about = {
        "command": ["fewstep", *sys.argv[1:]],
        "versions": versions,
        "machine": platform.machine(),
        **facts,
    }
    (folder / "run.json").write_text(json.dumps(about, indent=2) + "\n")


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


STAGES: dict[str, Stage] = {
    "data": make_data, "vae": train_vae, "base": train_base, "lcm": train_lcm, "export": write_bundle
}  # fmt: skip


# What each stage starts from: the stage that makes it, and the file.
_NEEDS = {
    "vae": ("data", "data/sprites.safetensors"),
    "base": ("vae", "latents.safetensors"),
    "lcm": ("base", "base/state.safetensors"),
    "export": ("base", "base/state.safetensors"),
}


def run(stage: str, work: Path) -> Iterator[Progress]:
    """Run or resume one stage."""
    if stage not in STAGES:
        raise RequestError(f"stage={stage!r}: choose one of {', '.join(STAGES)}, in this order")
    if stage in _NEEDS:
        before, file = _NEEDS[stage]
        if not (work / file).exists():
            raise RequestError(
                f"stage={stage!r} needs {work / file}: type fewstep train {before} --work {work}"
            )
    return STAGES[stage](work)
