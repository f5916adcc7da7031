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
from fewstep.evaluation.learning import train_features
from fewstep.train import (
    adapter,
    add,
    base,
    data,
    decoder,
    export,
    family,
    latents,
    lcm,
    loop,
    style,
    vae,
    vocabulary,
)
from fewstep.train.loop import Hyper, Progress, Task
from fewstep.train.order import BUNDLED, check_stage
from fewstep.train.record import read_record, record

Stage = Callable[[Path], Iterator[Progress]]


def make_data(work: Path) -> Iterator[Progress]:
    """Packages, sprites, vocabulary."""
    folder = work / "data"
    hashes = data.fetch(folder)
    data.build(folder)
    if not (work / "tokenizer" / "vocab.json").exists():
        vocabulary.build(data.captions(folder), work / "tokenizer")
    record(folder, {"packages": hashes, "sprites": data.sha256(folder / "sprites.safetensors")})
    yield Progress(1, 0.0, 0.0)


def train_vae(work: Path) -> Iterator[Progress]:
    """The autoencoder, its reconstruction figure, and the latents of every sprite."""
    task = family.vae_task(work)
    yield from loop.train(task, vae.HYPER, work / "vae")
    loop.restore(task.averages, work / "vae")
    network: Any = task.averages["vae"]
    if not (path := family.latents_path(work)).exists():
        yield from latents.encode(network, task.sprites, path)
    if not (path := family.latents_path(work, family.STYLE)).exists():
        sprites = data.load(work / "data", family.STYLE)[0]
        yield from latents.encode(network, sprites, path, like=family.pictures(work))
    psnr = vae.measure(vae.through(network), task.sprites)
    record(work / "vae", {"psnr_db": psnr, "hyper": asdict(vae.HYPER)})


def train_decoder(work: Path) -> Iterator[Progress]:
    """The tiny autoencoder and its reconstruction figure."""
    task = family.decoder_task(work)
    yield from loop.train(task, decoder.HYPER, work / "decoder")
    loop.restore(task.averages, work / "decoder")
    psnr = vae.measure(task.decoded, task.sprites)
    record(work / "decoder", {"psnr_db": psnr, "hyper": asdict(decoder.HYPER)})


def train_base(work: Path) -> Iterator[Progress]:
    """Text encoders and UNet."""
    yield from _run(family.base_task(work, compiled=True), base.HYPER, work / "base")


def train_lcm(work: Path) -> Iterator[Progress]:
    """The LCM UNet, from the finished base."""
    yield from _run(family.lcm_task(work, compiled=True), lcm.HYPER, work / "lcm")


def train_lora(work: Path) -> Iterator[Progress]:
    """The LCM adapter, from the finished base."""
    yield from _run(family.lora_task(work), lcm.LORA_HYPER, work / "lcm-lora")


def train_add(work: Path) -> Iterator[Progress]:
    """The turbo UNet, from the finished base and LCM."""
    yield from _run(family.add_task(work), add.HYPER, work / "add")


def train_style(work: Path) -> Iterator[Progress]:
    """The style LoRA, from the finished base."""
    yield from _run(family.style_task(work), style.HYPER, work / "style")


def write_bundle(work: Path) -> Iterator[Progress]:
    """The bundled folder, in `work/export`: everything that is finished, and its sums."""
    folder = work / "export"
    teacher, network = family.teacher(work), family.autoencoder(work)
    export.write_base(folder, teacher.unet, network, teacher.text, teacher.text.tokenizers[0])
    for stage in export.UNETS:
        if (task := _finished(stage, work)) is not None:
            export.write_network(folder / export.UNETS[stage], task.averages["unet"])
    for stage in export.LORAS:
        if (task := _finished(stage, work)) is not None:
            adapter.save(task.teacher.unet, task.averages["lora"], folder / export.LORAS[stage])
    if (task := _finished("decoder", work)) is not None:
        export.write_network(folder / "vae_tiny", task.averages["vae"])
    export.write_features(work, folder)
    export.write_sums(folder)
    records = {stage: read_record(work / stage) for stage in STAGES if stage != "export"}
    (folder / "training.json").write_text(json.dumps(records, indent=2) + "\n")
    yield Progress(1, 0.0, 0.0)


# What is left out of the bundle where it has not been trained.
_OPTIONAL: dict[str, Callable[[Path], Any]] = {
    "lcm": family.lcm_task, "add": family.add_task, "lcm-lora": family.lora_task,
    "style": family.style_task, "decoder": family.decoder_task,
}  # fmt: skip


def _finished(stage: str, work: Path) -> Any:
    """A stage's task with the averages that its run ended with; None where there was no run."""
    if not (work / stage / loop.STATE).exists():
        return None
    task = _OPTIONAL[stage](work)
    loop.restore(task.averages, work / stage)
    return task


def _run(task: Task, hyper: Hyper, folder: Path) -> Iterator[Progress]:
    """Train, and record with which settings."""
    yield from loop.train(task, hyper, folder)
    record(folder, {"hyper": asdict(hyper)})


STAGES: dict[str, Stage] = {
    "data": make_data, "vae": train_vae, "decoder": train_decoder, "base": train_base, "lcm": train_lcm,
    "lcm-lora": train_lora, "add": train_add, "style": train_style, "features": train_features,
    "export": write_bundle,
}  # fmt: skip


# What each stage starts from: the stage that makes it, and the file.
_NEEDS = {
    "vae": ("data", "data/sprites.safetensors"),
    "decoder": ("vae", family.LATENTS),
    "base": ("vae", family.LATENTS),
    "lcm": ("base", f"base/{loop.STATE}"),
    "lcm-lora": ("base", f"base/{loop.STATE}"),
    "add": ("lcm", f"lcm/{loop.STATE}"),
    "style": ("base", f"base/{loop.STATE}"),
    "features": ("data", "data/sprites.safetensors"),
    "export": ("base", f"base/{loop.STATE}"),
}


def run(stage: str, work: Path) -> Iterator[Progress]:
    """Run or resume one stage."""
    check_stage(stage, BUNDLED)
    if stage in _NEEDS:
        before, file = _NEEDS[stage]
        if not (work / file).exists():
            raise RequestError(
                f"stage={stage!r} needs {work / file}: type fewstep train {before} --work {work}"
            )
    return STAGES[stage](work)
