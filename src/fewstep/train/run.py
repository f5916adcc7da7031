"""Training on a user's own pictures: from a `TrainConfig` to files that `generate` and diffusers read.

    from fewstep.train.config import make_config
    from fewstep.train.run import run_training
    for step in run_training(make_config("lcm-lora", "pictures", "out", model="sdxl", steps=1000)): ...

The out folder gets the state (a run resumes from it), `losses.csv`, `run.json`, sample grids, and in the
end the result: a UNet's folder (lcm, add), a whole model (base), a LoRA (lcm-lora) or a VAE's folder (vae).
Under `accelerate launch` each process has a device; the main one alone encodes and writes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from fewstep import modes
from fewstep.architectures.text import TextEncoder
from fewstep.codec import Codec
from fewstep.devices import Placement
from fewstep.errors import RequestError
from fewstep.loading.parts import Parts, load_parts
from fewstep.noise_process import SDXL_SIGMAS, VariancePreserving
from fewstep.prompts import WINDOW
from fewstep.request.schema import EngineKey
from fewstep.train import add, encode, loop, pictures, stages
from fewstep.train.config import TrainConfig
from fewstep.train.encode import EncodedPictures, EncodingProgress
from fewstep.train.loop import Hyper, Progress
from fewstep.train.outputs import write_record
from fewstep.train.pictures import TrainingPicture

PATIENCE = timedelta(hours=24)  # for the main process, which encodes while the others wait
# What may change when a run goes on: places, how often is saved and drawn, and how memory is spared.
FREE = ("images", "out", "save_every", "grid_every", "prompts", "checkpointing")
_log = logging.getLogger("fewstep")


def run_training(order: TrainConfig) -> Iterator[EncodingProgress | Progress]:
    """Encode the pictures, train, write the result; yield after each picture and each step.

    Raises:
        RequestError: the pictures cannot be used, or the folder holds another run.
        ModelError: the model cannot be loaded.
        FewstepError: the loss is not a finite number.
    """
    devices = loop.process_state(timeout=PATIENCE)
    shown = pictures.find_pictures(order.images)
    facts = _run_facts(order, pictures.fingerprint(shown), len(shown))
    _require_same(order.out, facts)
    if devices.is_main_process:
        write_record(order.out, facts)
    place = _placement(order, devices.device)
    parts = _load_undistilled(order, place)
    _warn_of_long(shown, parts.text)
    if order.stage == "vae":
        job = stages.vae_run(order, parts, shown)
    else:
        path = order.out / encode.cache_name(facts["pictures"], parts.vae, order.size)
        source = yield from _latents_made_once(order, shown, Codec(parts.vae, place), path)
        job = stages.unet_run(order, parts, source, place)
    yield from _train_with_grids(order, job)
    if devices.is_main_process:
        job.write(order.out)
        write_record(order.out, {**facts, "finished": True})
    devices.wait_for_everyone()


def make_hyper(order: TrainConfig) -> Hyper:
    """How long and how fast, for the loop."""
    return Hyper(
        steps=order.steps,
        batch=order.batch,
        rate=order.rate,
        warmup=order.warmup,
        ema=order.ema,
        weight_decay=order.weight_decay,
        seed=order.seed,
        bf16=order.bf16,
        muon=order.muon,
        accumulate=order.accumulate,
        paces=add.HYPER.paces if order.stage == "add" else {},
    )


def _train_with_grids(order: TrainConfig, job: stages.StageRun) -> Iterator[Progress]:
    """The loop, with a sample grid every so many steps, and one at the end."""
    devices = loop.process_state()
    for progress in loop.train_task(job.task, make_hyper(order), order.out, every=order.save_every):
        due = order.grid_every and (progress.step % order.grid_every == 0 or progress.step == order.steps)
        if due and devices.is_main_process:
            with torch.autocast(devices.device.type, torch.bfloat16, enabled=order.bf16):
                job.draw().save(order.out / f"samples-{progress.step:06d}.png")
        yield progress


def _latents_made_once(
    order: TrainConfig, shown: Sequence[TrainingPicture], codec: Codec, path: Path
) -> Generator[EncodingProgress, None, EncodedPictures]:
    """The latents, which the main process makes where they are not there yet."""
    with loop.process_state().main_process_first():
        if not path.exists():
            yield from encode.encode_pictures(shown, codec, order.size, path)
    return encode.load_encoded(path, shown)


def _placement(order: TrainConfig, device: torch.device) -> Placement:
    """Everything on one device. An adapter's UNet does not learn: on a GPU it has half the bytes."""
    halved = order.stage == "lcm-lora" and order.bf16 and device.type == "cuda"
    return Placement(
        device=device,
        dtype=torch.bfloat16 if halved else torch.float32,
        vae_dtype=torch.float32,
        batch=0,
        channels_last=False,
        offload="none",
        tiling=False,
        threads=torch.get_num_threads(),
        reasons=(),
    )


def _load_undistilled(order: TrainConfig, place: Placement) -> Parts:
    """The undistilled model."""
    about, recipe = modes.choose_mode(order.model, "base")
    parts = load_parts(about, recipe, EngineKey.of("base", model=order.model), place)
    process = parts.process
    if not isinstance(process, VariancePreserving) or process.sigmas != SDXL_SIGMAS:
        raise RequestError(
            f"model={order.model!r} is {parts.noise.title} ({parts.noise.source}), and training is for "
            "the variance-preserving process with Stable Diffusion's betas alone: give another model="
        )
    return parts


def _warn_of_long(shown: Sequence[TrainingPicture], text: TextEncoder) -> None:
    """Captions are read in one window; whose end is not read is said."""
    captions = [picture.caption for picture in shown]
    lengths = [len(ids) for ids in text.tokenizers[0](captions, verbose=False).input_ids]
    long = [picture for picture, length in zip(shown, lengths, strict=True) if length > WINDOW]
    if long:
        _log.warning(
            "%d captions have more than %d tokens, and their ends are not read; the first is of %s",
            len(long), WINDOW, long[0].name,
        )  # fmt: skip


def _run_facts(order: TrainConfig, data: str, count: int) -> dict[str, Any]:
    """What `run.json` says."""
    settings = {**asdict(order), "images": str(order.images), "out": str(order.out)}
    return {
        "settings": settings,
        "pictures": data,
        "count": count,
        "processes": loop.process_state().num_processes,
        "finished": False,
    }


def _require_same(out: Path, facts: dict[str, Any]) -> None:
    """A folder holds one run: the same pictures, model and settings."""
    if not (out / loop.STATE).exists() or not (out / "run.json").exists():
        return
    before = json.loads((out / "run.json").read_text())
    now = json.loads(json.dumps(facts))  # lists for tuples, as they are read back
    had, asked = (
        {**one["settings"], "pictures": one["pictures"], "processes": one["processes"]}
        for one in (before, now)
    )
    other = [name for name in asked if name not in FREE and asked[name] != had.get(name)]
    if other:
        told = ", ".join(f"{name}={had.get(name)}, and asked is {asked[name]}" for name in other)
        raise RequestError(f"{out} holds a run with {told}: ask for the same, or for another folder")
