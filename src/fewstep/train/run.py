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
from fewstep.torch_state import TrainingTorchState
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


@TrainingTorchState()
def run_training(config: TrainConfig) -> Iterator[EncodingProgress | Progress]:
    """Encode the pictures, train, write the result; yield after each picture and each step.

    Raises:
        RequestError: the pictures cannot be used, or the folder holds another run.
        ModelError: the model cannot be loaded.
        FewstepError: the loss is not a finite number.
    """
    devices = loop.process_state(timeout=PATIENCE)
    examples = pictures.find_pictures(config.images)
    facts = _run_facts(config, pictures.fingerprint(examples), len(examples))
    _require_same(config.out, facts)
    if devices.is_main_process:
        write_record(config.out, facts)
    place = _placement(config, devices.device)
    parts = _load_undistilled(config, place)
    _warn_of_long(examples, parts.text)
    if config.stage == "vae":
        job = stages.vae_run(config, parts, examples)
    else:
        path = config.out / encode.cache_name(facts["pictures"], parts.vae, config.size)
        source = yield from _latents_made_once(config, examples, Codec(parts.vae, place), path)
        job = stages.unet_run(config, parts, source, place)
    yield from _train_with_grids(config, job)
    if devices.is_main_process:
        job.write(config.out)
        write_record(config.out, {**facts, "finished": True})
    devices.wait_for_everyone()


def make_hyper(config: TrainConfig) -> Hyper:
    """How long and how fast, for the loop."""
    return Hyper(
        steps=config.steps,
        batch=config.batch,
        rate=config.rate,
        warmup=config.warmup,
        ema=config.ema,
        weight_decay=config.weight_decay,
        seed=config.seed,
        bf16=config.bf16,
        muon=config.muon,
        accumulate=config.accumulate,
        paces=add.HYPER.paces if config.stage == "add" else {},
    )


def _train_with_grids(config: TrainConfig, job: stages.StageRun) -> Iterator[Progress]:
    """The loop, with a sample grid every so many steps, and one at the end."""
    devices = loop.process_state()
    for progress in loop.train_task(job.task, make_hyper(config), config.out, every=config.save_every):
        due = config.grid_every and (progress.step % config.grid_every == 0 or progress.step == config.steps)
        if due and devices.is_main_process:
            with loop.bf16_autocast(devices.device, enabled=config.bf16):
                job.draw().save(config.out / f"samples-{progress.step:06d}.png")
        yield progress


def _latents_made_once(
    config: TrainConfig, examples: Sequence[TrainingPicture], codec: Codec, path: Path
) -> Generator[EncodingProgress, None, EncodedPictures]:
    """The latents, which the main process makes where they are not there yet."""
    with loop.process_state().main_process_first():
        if not path.exists():
            yield from encode.encode_pictures(examples, codec, config.size, path)
    return encode.load_encoded(path, examples)


def _placement(config: TrainConfig, device: torch.device) -> Placement:
    """Everything on one device. An adapter's UNet does not learn: on a GPU it has half the bytes."""
    halved = config.stage == "lcm-lora" and config.bf16 and device.type == "cuda"
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


def _load_undistilled(config: TrainConfig, place: Placement) -> Parts:
    """The undistilled model."""
    model, recipe = modes.choose_mode(config.model, "base")
    parts = load_parts(model, recipe, EngineKey.of("base", model=config.model), place)
    process = parts.process
    if not isinstance(process, VariancePreserving) or process.sigmas != SDXL_SIGMAS:
        raise RequestError(
            f"model={config.model!r} is {parts.noise.title} ({parts.noise.source}), and training is for "
            "the variance-preserving process with Stable Diffusion's betas alone: give another model="
        )
    return parts


def _warn_of_long(examples: Sequence[TrainingPicture], text: TextEncoder) -> None:
    """Warn of captions that are longer than one window: their ends are not read."""
    captions = [picture.caption for picture in examples]
    lengths = [len(ids) for ids in text.tokenizers[0](captions, verbose=False).input_ids]
    long = [picture for picture, length in zip(examples, lengths, strict=True) if length > WINDOW]
    if long:
        _log.warning(
            "%d captions have more than %d tokens, and their ends are not read; the first is of %s",
            len(long), WINDOW, long[0].name,
        )  # fmt: skip


def _run_facts(config: TrainConfig, data: str, count: int) -> dict[str, Any]:
    """What `run.json` says."""
    settings = {**asdict(config), "images": str(config.images), "out": str(config.out)}
    return {
        "settings": settings,
        "pictures": data,
        "count": count,
        "processes": loop.process_state().num_processes,
        "finished": False,
    }


def _require_same(out: Path, facts: dict[str, Any]) -> None:
    """Check that a folder holds no run of other pictures, another model or other settings."""
    if not (out / loop.STATE).exists() or not (out / "run.json").exists():
        return
    stored = json.loads((out / "run.json").read_text())
    current = json.loads(json.dumps(facts))  # lists for tuples, as they are read back
    stored_settings, current_settings = (
        {**record["settings"], "pictures": record["pictures"], "processes": record["processes"]}
        for record in (stored, current)
    )
    changed = [
        name
        for name in current_settings
        if name not in FREE and current_settings[name] != stored_settings.get(name)
    ]
    if changed:
        differences = ", ".join(
            f"{name}={stored_settings.get(name)}, and asked is {current_settings[name]}" for name in changed
        )
        raise RequestError(f"{out} holds a run with {differences}: ask for the same, or for another folder")
