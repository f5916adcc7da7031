"""A user's own training run as plain data, checked before torch is imported.

The settings for SDXL are those of published runs where there are any, which `PRESETS` names; the others
are starting points. A run that is interrupted goes on when the same is ordered again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewstep.catalog.models import Model, describe_model
from fewstep.errors import RequestError
from fewstep.request.limits import check_prompt

STAGES = ("vae", "base", "lcm", "lcm-lora", "add")  # on pictures of the user's
# Of the bundled model, in the order in which they are run.
BUNDLED_STAGES = (
    "data", "vae", "decoder", "base", "lcm", "lcm-lora", "add", "style", "features", "export",
)  # fmt: skip
LORA_STAGE = "lcm-lora"  # the only stage that has a rank
GUIDED_STAGES = ("lcm", "lcm-lora", "add")  # a teacher with guidance is learnt from


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run, complete. `make_config` fills in what is not given."""

    stage: str  # one of STAGES
    images: Path  # a folder, or a .tar file
    out: Path  # where state and result go; a run resumes from it
    model: str  # as in `fewstep.generate`
    size: int  # pixels, both sides, of what is trained on
    steps: int
    batch: int  # pictures at a time, on each device
    accumulate: int = 1  # batches to a step
    rate: float
    warmup: int = 100  # steps
    ema: float = 0.95  # of the average, which is the result
    weight_decay: float = 0.0
    muon: bool = False
    bf16: bool = True  # autocast, where the device has it; weights that learn are fp32
    checkpointing: bool = False  # less memory, a third more time
    rank: int = 64  # of the adapter
    guidance: tuple[float, float] = (1.0, 1.0)  # range of the teacher's, 1 is off
    seed: int = 0
    save_every: int = 100  # steps
    grid_every: int = 500  # steps; 0 is never
    prompts: tuple[str, ...] = ()  # of the sample grid; none: the first captions


# The SDXL rows of lcm and lcm-lora are diffusers' examples/consistency_distillation/README_sdxl.md: rates,
# batch, steps, rank, average of 0.95, no weight decay, and 1 + w in [3, 15], which its script draws from. A
# LoRA is told no guidance: it learns one, the default of mode "lcm". base: the rate of diffusers'
# examples/text_to_image/README_sdxl.md. vae and add have no published settings.
PRESETS: MappingProxyType[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "sdxl": {
            "vae": {"steps": 2000, "batch": 4, "rate": 1e-5, "ema": 0.999, "size": 256},
            "base": {"steps": 10_000, "batch": 4, "rate": 1e-6, "ema": 0.999, "weight_decay": 0.01},
            "lcm": {"steps": 1000, "batch": 12, "rate": 1e-6, "guidance": (3.0, 15.0)},
            "lcm-lora": {"steps": 1000, "batch": 12, "rate": 1e-4, "guidance": (8.0, 8.0)},
            "add": {"steps": 2000, "batch": 4, "rate": 1e-5, "guidance": (5.0, 5.0)},
        },
        # The tiny model's own stages, shorter; rates as for a fine-tune.
        "tiny": {
            "vae": {"steps": 500, "batch": 8, "rate": 2e-4, "ema": 0.99, "size": 96},
            "base": {"steps": 500, "batch": 16, "rate": 1e-4, "ema": 0.99},
            "lcm": {"steps": 300, "batch": 16, "rate": 4e-4, "guidance": (1.0, 6.0)},
            "lcm-lora": {"steps": 300, "batch": 16, "rate": 1e-3, "rank": 8, "guidance": (3.0, 3.0)},
            "add": {"steps": 300, "batch": 16, "rate": 2e-4, "guidance": (3.0, 3.0)},
        },
    }
)
# Option → the least and the most, inclusive.
_BOUNDS: dict[str, tuple[float, float]] = {
    "steps": (1, 10_000_000), "batch": (1, 4096), "accumulate": (1, 4096), "warmup": (0, 1_000_000),
    "rank": (1, 1024), "seed": (0, 2**32 - 1), "save_every": (1, 1_000_000), "grid_every": (0, 1_000_000),
    "rate": (1e-10, 1.0), "ema": (0.0, 0.999999), "weight_decay": (0.0, 1.0),
}  # fmt: skip
MAX_PROMPTS = 16  # pictures of a grid


def check_stage(stage: str, stages: tuple[str, ...] = STAGES) -> None:
    """Check that there is such a stage; raises `RequestError`."""
    if stage not in stages:
        near = get_close_matches(stage, stages, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(stages)}"
        raise RequestError(f"stage={stage!r} is not known: {hint}")


def make_config(
    stage: str, images: str | Path, out: str | Path, *, model: str | Path = "tiny", **options: Any
) -> TrainConfig:
    """Complete a run's options from its stage's presets for the model's family, and check them.

    `options` are fields of `TrainConfig`. `RequestError` says which is out of range; nothing is loaded.
    """
    check_stage(stage)
    names = {f.name for f in fields(TrainConfig)}
    for name in options:
        if name not in names:
            raise RequestError(f"{name} is no option of training: choose from {', '.join(sorted(names))}")
    described = describe_model(model)
    if "rank" in options and stage != LORA_STAGE:
        raise RequestError(f"rank={options['rank']!r}: stage {stage!r} has no adapter; leave rank out")
    if "guidance" in options and stage not in GUIDED_STAGES:
        raise RequestError(f"guidance={options['guidance']!r}: stage {stage!r} has no teacher; leave it out")
    preset = PRESETS["tiny" if described.family == "tiny" else "sdxl"][stage]
    full = {"size": described.size, **preset, **options}
    config = TrainConfig(stage=stage, images=Path(images), out=Path(out), model=str(model), **full)
    _check_config(config, described)
    return config


def _check_config(config: TrainConfig, model: Model) -> None:
    for name, (low, high) in _BOUNDS.items():
        _check_number(name, getattr(config, name), low, high)
    _check_guidance(config)
    _check_size(config, model)
    if not config.images.exists():
        raise RequestError(f"images={str(config.images)!r}: there is no such folder or .tar file")
    if config.out.resolve().is_relative_to(config.images.resolve()):
        raise RequestError(
            f"out={str(config.out)!r} is inside images={str(config.images)!r}: give another folder"
        )
    if config.out.exists() and not config.out.is_dir():
        raise RequestError(f"out={str(config.out)!r} is a file: give a folder")
    if model.carries and config.stage in GUIDED_STAGES:
        raise RequestError(
            f"model={config.model!r} is an LCM already: {config.stage} starts from an undistilled model"
        )
    if len(config.prompts) > MAX_PROMPTS:
        raise RequestError(f"a sample grid has {len(config.prompts)} prompts: at most {MAX_PROMPTS}")
    for prompt in config.prompts:
        check_prompt(prompt)


def _check_number(name: str, value: object, low: float, high: float) -> None:
    """Check that a number is within its bounds, and whole where they are."""
    kind = int if isinstance(low, int) else (int, float)
    fits = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
    if not fits:
        expected = "a whole number" if kind is int else "a number"
        raise RequestError(f"{name}={value!r}: give {expected} from {low:g} to {high:g}")


def _check_guidance(config: TrainConfig) -> None:
    if not isinstance(config.guidance, tuple) or len(config.guidance) != 2:
        raise RequestError(
            f"guidance={config.guidance!r}: give the range as two numbers, such as (3.0, 15.0)"
        )
    low, high = config.guidance
    if not (math.isfinite(low) and math.isfinite(high) and 1 <= low <= high <= 20):
        raise RequestError(f"guidance={low:g},{high:g}: give the range, such as 3,15, within 1 (off) to 20")
    if config.stage == "add" and low != high:
        raise RequestError(f"guidance={low:g},{high:g}: add learns from one; type guidance={high:g},{high:g}")


def _check_size(config: TrainConfig, model: Model) -> None:
    low, high = (32, model.size) if config.stage == "vae" else (model.size // 2, 2 * model.size)
    if type(config.size) is not int or config.size % 8 or not low <= config.size <= high:
        subject = "crops for the VAE" if config.stage == "vae" else "this model"
        raise RequestError(
            f"size={config.size!r}: {subject} may have {low} to {high} pixels, in multiples of 8; type "
            f"size={min(256, model.size) if config.stage == 'vae' else model.size}"
        )
