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
    """One run, complete. `order` fills in what is not given."""

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


def check_stage(stage: str, known: tuple[str, ...] = STAGES) -> None:
    """Is there such a stage?"""
    if stage not in known:
        near = get_close_matches(stage, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
        raise RequestError(f"stage={stage!r} is not known: {hint}")


def make_config(
    stage: str, images: str | Path, out: str | Path, *, model: str | Path = "tiny", **given: Any
) -> TrainConfig:
    """Complete an order from its stage's presets for the model's family, and check it.

    `given` are fields of `TrainConfig`. `RequestError` says which is out of range; nothing is loaded.
    """
    check_stage(stage)
    names = {f.name for f in fields(TrainConfig)}
    for name in given:
        if name not in names:
            raise RequestError(f"{name} is no option of training: choose from {', '.join(sorted(names))}")
    about = describe_model(model)
    if "rank" in given and stage != LORA_STAGE:
        raise RequestError(f"rank={given['rank']!r}: stage {stage!r} has no adapter; leave rank out")
    if "guidance" in given and stage not in GUIDED_STAGES:
        raise RequestError(f"guidance={given['guidance']!r}: stage {stage!r} has no teacher; leave it out")
    preset = PRESETS["tiny" if about.family == "tiny" else "sdxl"][stage]
    full = {"size": about.size, **preset, **given}
    made = TrainConfig(stage=stage, images=Path(images), out=Path(out), model=str(model), **full)
    _check_config(made, about)
    return made


def _check_config(made: TrainConfig, about: Model) -> None:
    for name, (low, high) in _BOUNDS.items():
        _check_number(name, getattr(made, name), low, high)
    _check_guidance(made)
    _check_size(made, about)
    if not made.images.exists():
        raise RequestError(f"images={str(made.images)!r}: there is no such folder or .tar file")
    if made.out.resolve().is_relative_to(made.images.resolve()):
        raise RequestError(
            f"out={str(made.out)!r} is inside images={str(made.images)!r}: give another folder"
        )
    if made.out.exists() and not made.out.is_dir():
        raise RequestError(f"out={str(made.out)!r} is a file: give a folder")
    if about.carries and made.stage in GUIDED_STAGES:
        raise RequestError(
            f"model={made.model!r} is an LCM already: {made.stage} starts from an undistilled model"
        )
    if len(made.prompts) > MAX_PROMPTS:
        raise RequestError(f"a sample grid has {len(made.prompts)} prompts: at most {MAX_PROMPTS}")
    for prompt in made.prompts:
        check_prompt(prompt)


def _check_number(name: str, value: object, low: float, high: float) -> None:
    """Within its bounds, and whole where they are."""
    kind = int if isinstance(low, int) else (int, float)
    fits = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
    if not fits:
        what = "a whole number" if kind is int else "a number"
        raise RequestError(f"{name}={value!r}: give {what} from {low:g} to {high:g}")


def _check_guidance(made: TrainConfig) -> None:
    if not isinstance(made.guidance, tuple) or len(made.guidance) != 2:
        raise RequestError(f"guidance={made.guidance!r}: give the range as two numbers, such as (3.0, 15.0)")
    low, high = made.guidance
    if not (math.isfinite(low) and math.isfinite(high) and 1 <= low <= high <= 20):
        raise RequestError(f"guidance={low:g},{high:g}: give the range, such as 3,15, within 1 (off) to 20")
    if made.stage == "add" and low != high:
        raise RequestError(f"guidance={low:g},{high:g}: add learns from one; type guidance={high:g},{high:g}")


def _check_size(made: TrainConfig, about: Model) -> None:
    low, high = (32, about.size) if made.stage == "vae" else (about.size // 2, 2 * about.size)
    if type(made.size) is not int or made.size % 8 or not low <= made.size <= high:
        what = "crops for the VAE" if made.stage == "vae" else "this model"
        raise RequestError(
            f"size={made.size!r}: {what} may have {low} to {high} pixels, in multiples of 8; type "
            f"size={min(256, about.size) if made.stage == 'vae' else about.size}"
        )
