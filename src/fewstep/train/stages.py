"""What each stage of a user's run trains, how its samples are drawn, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from fewstep.catalog.models import describe_model
from fewstep.codec import Codec
from fewstep.denoiser import Network
from fewstep.devices import Placement
from fewstep.errors import RequestError
from fewstep.loading.parts import Parts
from fewstep.loop import Networks
from fewstep.runtimes.batching import Turns
from fewstep.runtimes.eager import eager_network
from fewstep.train import add, base, grids, lcm, lora
from fewstep.train.bundled import export
from fewstep.train.config import TrainConfig
from fewstep.train.grids import GridSettings
from fewstep.train.loop import Draw, Task
from fewstep.train.pictures import TrainingPicture
from fewstep.train.source import Source, Teacher
from fewstep.train.vae import VaeDecoderTask

GUIDANCE_WIDTH = 256  # of SDXL's embedding of guidance (lcm-sdxl's config.json, time_cond_proj_dim)
SHOWN = 4  # captions in a grid where no prompts are given


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """A task, a look at what it has learnt, and its result."""

    task: Task
    draw: Callable[[], Image.Image]
    write: Callable[[Path], None]


def vae_run(config: TrainConfig, parts: Parts, examples: Sequence[TrainingPicture]) -> StageRun:
    """A VAE's decoder, on crops of pictures."""
    if not hasattr(parts.vae, "quant_conv"):
        raise RequestError(f"model={config.model!r} has a tiny autoencoder: only a full one can be trained")
    side = max(config.size, describe_model(config.model).size)
    task = VaeDecoderTask(examples, parts.vae, config.batch, crop=config.size, side=side)
    if config.checkpointing:
        parts.vae.enable_gradient_checkpointing()
    average: Any = task.averages["vae"]

    @torch.no_grad()
    def draw() -> Image.Image:
        fixed = Draw.of(config.seed, 0)
        real = torch.cat([task.crop(fixed) for _ in range(SHOWN)])
        latents = average.encode(real.to(average.device)).latent_dist.mode()
        return grids.comparison_grid(average.decode(latents).sample, real)

    return StageRun(task=task, draw=draw, write=lambda folder: export.write_network(folder / "vae", average))


def unet_run(config: TrainConfig, parts: Parts, source: Source, place: Placement) -> StageRun:
    """A UNet, or an adapter on one, on latents and captions."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # of what starts at random: an adapter's first factors, and heads
        task, unet, width = make_task(config, parts, source)
    networks = Networks(
        text=parts.text, network=unet, codec=Codec(parts.vae, place), runtime="eager", process=parts.process,
        guidance_width=width, placement=place, turns=Turns(parts.lock), lock=parts.lock,
    )  # fmt: skip
    settings = _grid_settings(config, networks, source)
    _frozen_to_bf16(config, parts)

    def write(folder: Path) -> None:
        if config.stage == "lcm-lora":
            lora.save_lora(parts.unet, cast(lora.LoraFactors, task.averages["lora"]), folder)
        elif config.stage == "base":
            _write_model(folder, parts, task.averages["unet"])
        else:
            export.write_network(folder / "unet", task.averages["unet"])

    return StageRun(task=task, draw=lambda: grids.draw_grid(settings), write=write)


def make_task(config: TrainConfig, parts: Parts, source: Source) -> tuple[Task, Network, int]:
    """What is trained, its averaged network, and the width of its guidance embedding."""
    teacher = Teacher(unet=parts.unet, text=parts.text, process=parts.process)
    if config.checkpointing:
        parts.unet.enable_gradient_checkpointing()  # what is copied from it does the same
    match config.stage:
        case "lcm":
            width = GUIDANCE_WIDTH if describe_model(config.model).family != "tiny" else lcm.GUIDANCE_WIDTH
            full_task = lcm.lcm_task(source, teacher, config.batch, width=width, guidance=config.guidance)
            if config.checkpointing:
                cast(Any, full_task.modules["unet"]).enable_gradient_checkpointing()
            return full_task, full_task.target, width
        case "lcm-lora":
            lora_task = lcm.lcm_lora_task(
                source, teacher, config.batch, rank=config.rank, guidance=config.guidance
            )
            return lora_task, lora_task.target, 0
        case "add":
            add_task = replace(
                add.add_task(source, teacher, parts.unet, config.batch), guidance=config.guidance[0]
            )
            return add_task, eager_network(cast(Any, add_task.averages["unet"])), 0
    parts.unet.requires_grad_(True)
    base_task = base.BaseTask(source, parts.unet, parts.text, config.batch, process=parts.process)
    return base_task, eager_network(base_task.averages["unet"]), 0


def _frozen_to_bf16(config: TrainConfig, parts: Parts) -> None:
    """On a GPU, what does not learn has bf16."""
    if not config.bf16 or parts.unet.device.type != "cuda":
        return
    teachers = [parts.unet] if config.stage in ("lcm", "add") else []
    for network in (*parts.text.encoders, *teachers):
        network.to(torch.bfloat16)


def _grid_settings(config: TrainConfig, networks: Networks, source: Source) -> GridSettings:
    recipe = grids.stage_recipe(config.stage, describe_model(config.model).family)
    default, (low, high) = recipe.guidance.default, config.guidance
    embedded = networks.guidance_width > 0  # an embedded one, in this range
    captions: Sequence[str] = getattr(source, "captions", [""])
    return GridSettings(
        networks=networks,
        recipe=recipe,
        guidance=min(max(default, low), high) if embedded else default,
        prompts=config.prompts or tuple(captions[:SHOWN]),
        size=source.size,
    )


def _write_model(folder: Path, parts: Parts, unet: Any) -> None:
    """A whole model in diffusers' layout, with this UNet; `fewstep.generate(model=folder)` reads it."""
    text = parts.text
    export.write_base(folder, unet, parts.vae, text, text.tokenizers[0])
    text.tokenizers[1].save_pretrained(folder / "tokenizer_2")
    configs = {
        "scheduler/scheduler_config.json": {
            **export.SCHEDULER_CONFIG,
            "prediction_type": parts.process.prediction,
        },
        "model_index.json": {**export.MODEL_INDEX, "force_zeros_for_empty_prompt": text.zero_empty},
    }
    for name, content in configs.items():
        export.write_json(folder / name, content)
