"""The stages that make the bundled family, in order, each resumable in a work folder.

    data      fetch the packages, render the sprites, learn the vocabulary
    vae       train the autoencoder, then encode every sprite
    decoder   distil the tiny autoencoder from it
    base      train text encoders and UNet
    lcm       distil the LCM UNet
    lcm-lora  distil the LCM adapter
    add       distil the turbo UNet
    style     train the style LoRA
    features  train the network that evaluation looks through
    export    write the folder that ships

`work/<stage>/run.json` records command line, hashes of the data, settings and versions;
`losses.csv` has every step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fewstep.errors import RequestError
from fewstep.train import add, base, lcm, loop, lora, vae
from fewstep.train.bundled import data, export, latents, tasks, tiny_vae, vocabulary
from fewstep.train.bundled.feature_training import train_features
from fewstep.train.config import BUNDLED_STAGES, check_stage
from fewstep.train.loop import Hyper, Progress, Task
from fewstep.train.outputs import read_record, write_record

Stage = Callable[[Path], Iterator[Progress]]


def make_data(work: Path) -> Iterator[Progress]:
    """Packages, sprites, vocabulary."""
    folder = work / "data"
    hashes = data.fetch_packages(folder)
    data.build_sprites(folder)
    if not (work / "tokenizer" / "vocab.json").exists():
        vocabulary.build_tokenizer(data.load_captions(folder), work / "tokenizer")
    write_record(folder, {"packages": hashes, "sprites": data.sha256(folder / "sprites.safetensors")})
    yield Progress(1, 0.0, 0.0)


def train_vae(work: Path) -> Iterator[Progress]:
    """The autoencoder, its reconstruction figure, and the latents of every sprite."""
    task = tasks.vae_task(work)
    yield from loop.train_task(task, vae.HYPER, work / "vae")
    loop.restore(task.averages, work / "vae")
    network: Any = task.averages["vae"]
    if not (path := tasks.latents_path(work)).exists():
        yield from latents.encode_sprites(network, task.sprites, path)
    if not (path := tasks.latents_path(work, tasks.STYLE_NAME)).exists():
        sprites = data.load_sprites(work / "data", tasks.STYLE_NAME)[0]
        yield from latents.encode_sprites(network, sprites, path, scaling=tasks.load_latents(work))
    psnr = vae.measure_psnr(vae.round_trip(network), task.sprites)
    write_record(work / "vae", {"psnr_db": psnr, "hyper": asdict(vae.HYPER)})


def train_decoder(work: Path) -> Iterator[Progress]:
    """The tiny autoencoder and its reconstruction figure."""
    task = tasks.decoder_task(work)
    yield from loop.train_task(task, tiny_vae.HYPER, work / "decoder")
    loop.restore(task.averages, work / "decoder")
    psnr = vae.measure_psnr(task.decoded, task.sprites)
    write_record(work / "decoder", {"psnr_db": psnr, "hyper": asdict(tiny_vae.HYPER)})


def train_base(work: Path) -> Iterator[Progress]:
    """Text encoders and UNet."""
    yield from _run_stage(tasks.base_task(work, compiled=True), base.HYPER, work / "base")


def train_lcm(work: Path) -> Iterator[Progress]:
    """The LCM UNet, from the finished base."""
    yield from _run_stage(tasks.lcm_task(work, compiled=True), lcm.HYPER, work / "lcm")


def train_lora(work: Path) -> Iterator[Progress]:
    """The LCM adapter, from the finished base."""
    yield from _run_stage(tasks.lora_task(work), lcm.LORA_HYPER, work / "lcm-lora")


def train_add(work: Path) -> Iterator[Progress]:
    """The turbo UNet, from the finished base and LCM."""
    yield from _run_stage(tasks.add_task(work), add.HYPER, work / "add")


def train_style(work: Path) -> Iterator[Progress]:
    """The style LoRA, from the finished base."""
    yield from _run_stage(tasks.style_task(work), lora.STYLE_HYPER, work / "style")


def write_bundle(work: Path) -> Iterator[Progress]:
    """The bundled folder, in `work/export`: everything that is finished, and its sums."""
    folder = work / "export"
    teacher, network = tasks.load_teacher(work), tasks.load_vae(work)
    export.write_base(folder, teacher.unet, network, teacher.text, teacher.text.tokenizers[0])
    for stage in export.UNET_FOLDERS:
        if (task := _finished_task(stage, work)) is not None:
            export.write_network(folder / export.UNET_FOLDERS[stage], task.averages["unet"])
    for stage in export.LORA_FOLDERS:
        if (task := _finished_task(stage, work)) is not None:
            lora.save_lora(task.teacher.unet, task.averages["lora"], folder / export.LORA_FOLDERS[stage])
    if (task := _finished_task("decoder", work)) is not None:
        export.write_network(folder / "vae_tiny", task.averages["vae"])
    export.write_features(work, folder)
    export.write_sums(folder)
    records = {stage: read_record(work / stage) for stage in STAGES if stage != "export"}
    (folder / "training.json").write_text(json.dumps(records, indent=2) + "\n")
    yield Progress(1, 0.0, 0.0)


# What is left out of the bundle where it has not been trained.
_OPTIONAL: dict[str, Callable[[Path], Any]] = {
    "lcm": tasks.lcm_task, "add": tasks.add_task, "lcm-lora": tasks.lora_task,
    "style": tasks.style_task, "decoder": tasks.decoder_task,
}  # fmt: skip


def _finished_task(stage: str, work: Path) -> Any:
    """A stage's task with the averages that its run ended with; None where there was no run."""
    if not (work / stage / loop.STATE).exists():
        return None
    task = _OPTIONAL[stage](work)
    loop.restore(task.averages, work / stage)
    return task


def _run_stage(task: Task, hyper: Hyper, folder: Path) -> Iterator[Progress]:
    """Train, and record with which settings."""
    yield from loop.train_task(task, hyper, folder)
    write_record(folder, {"hyper": asdict(hyper)})


STAGES: dict[str, Stage] = {
    "data": make_data, "vae": train_vae, "decoder": train_decoder, "base": train_base, "lcm": train_lcm,
    "lcm-lora": train_lora, "add": train_add, "style": train_style, "features": train_features,
    "export": write_bundle,
}  # fmt: skip


# What each stage starts from: the stage that makes it, and the file.
_NEEDS = {
    "vae": ("data", "data/sprites.safetensors"),
    "decoder": ("vae", tasks.LATENTS_FILE),
    "base": ("vae", tasks.LATENTS_FILE),
    "lcm": ("base", f"base/{loop.STATE}"),
    "lcm-lora": ("base", f"base/{loop.STATE}"),
    "add": ("lcm", f"lcm/{loop.STATE}"),
    "style": ("base", f"base/{loop.STATE}"),
    "features": ("data", "data/sprites.safetensors"),
    "export": ("base", f"base/{loop.STATE}"),
}


def run_stage(stage: str, work: Path) -> Iterator[Progress]:
    """Run or resume one stage."""
    check_stage(stage, BUNDLED_STAGES)
    if stage in _NEEDS:
        earlier_stage, file = _NEEDS[stage]
        if not (work / file).exists():
            raise RequestError(
                f"stage={stage!r} needs {work / file}: type fewstep train {earlier_stage} --work {work}"
            )
    return STAGES[stage](work)
