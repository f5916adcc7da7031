"""`fewstep train`: on a user's own pictures, or the way to the bundled model."""

from __future__ import annotations

import argparse
import os
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from fewstep.cli.arguments import NOT_GIVEN, add_command, number, typed, whole_number
from fewstep.cli.streams import report_of_work, tell
from fewstep.errors import FewstepError, RequestError
from fewstep.train.config import BUNDLED_STAGES, TrainConfig, check_stage, make_config

_TEXT = """\
train a model, an accelerator or an adapter (extra: fewstep[train])

With --images PATH on your own pictures, in --out DIR:
  vae       the decoder of a model's autoencoder
  base      a model's UNet: a plain fine-tune
  lcm       a UNet for 1 to 8 steps, from a model's (arXiv:2310.04378)
  lcm-lora  the same as a LoRA for models of its kind (arXiv:2311.05556)
  add       a UNet for 1 to 4 steps, adversarially (arXiv:2311.17042)

PATH is a folder with metadata.jsonl or metadata.csv (file_name, text) or with a .txt beside each
picture, or webdataset .tar files. Several devices: accelerate launch -m fewstep train ...

Without --images the stages of the bundled model, in --work DIR:
  """ + ", ".join(BUNDLED_STAGES)

# Option → how the command line reads it; `fewstep.train.config` has the defaults.
_OPTIONS: dict[str, dict[str, Any]] = {
    "out": {"type": Path, "metavar": "DIR", "help": "state, losses.csv, samples and result; resumed from"},
    "model": {"help": 'as in fewstep generate: "tiny", "sdxl", a folder, a .safetensors file (tiny)'},
    "size": {"type": whole_number, "help": "pixels, both sides (the model's own; vae: its crops')"},
    "steps": {"type": whole_number, "help": "of the optimiser"},
    "batch": {"type": whole_number, "help": "pictures at a time, on each device"},
    "accumulate": {"type": whole_number, "help": "batches to a step (1)"},
    "rate": {"type": number, "help": "learning rate at its peak"},
    "warmup": {"type": whole_number, "help": "steps up to it (100)"},
    "ema": {"type": number, "help": "of the average of the weights, which is the result"},
    "weight-decay": {"type": number, "help": "(0; base 0.01)"},
    "rank": {"type": whole_number, "help": "of lcm-lora's adapter (64; tiny 8)"},
    "guidance": {"metavar": "LOW,HIGH", "help": "range of the teacher's (lcm: 3,15; tiny 1,6)"},
    "seed": {"type": whole_number, "help": "of everything random (0)"},
    "save-every": {"type": whole_number, "metavar": "N", "help": "steps between states (100)"},
    "grid-every": {
        "type": whole_number, "metavar": "N", "help": "steps between sample grids, 0 for none (500)",
    },
    "prompt": {
        "dest": "prompts", "action": "append", "metavar": "TEXT",
        "help": "of the sample grid; several times (the first captions)",
    },
    "checkpointing": {"action": "store_true", "help": "recompute activations: less memory, more time"},
    "fp32": {"dest": "bf16", "action": "store_false", "help": "no bf16"},
    "muon": {"action": "store_true", "help": "Muon for matrices, AdamW for the rest"},
    "dry-run": {"action": "store_true", "help": "print what memory it would take, and train nothing"},
}  # fmt: skip
_OFTEN = 25  # steps to a line


def add_train(commands: Any) -> None:
    """Add the command."""
    train = add_command(commands, "train", _run_train, "train on your pictures, or the bundled model")
    train.description, train.formatter_class = _TEXT, RawDescriptionHelpFormatter
    train.add_argument("stage", metavar="STAGE", help="one of the above")
    train.add_argument(
        "--images", default=NOT_GIVEN, type=Path, metavar="PATH", help="your pictures, with captions"
    )
    for name, keywords in _OPTIONS.items():
        train.add_argument(f"--{name}", default=NOT_GIVEN, **keywords)
    train.add_argument(
        "--work", default=NOT_GIVEN, type=Path, metavar="DIR",
        help="of the bundled model: data and state; resumed from (fewstep-train)",
    )  # fmt: skip


def _run_train(arguments: argparse.Namespace) -> int:
    options = typed(arguments, (field.name for field in fields(TrainConfig)))
    has_images = hasattr(arguments, "images")
    check_stage(arguments.stage, *([] if has_images else [BUNDLED_STAGES]))  # before torch is imported
    if has_images and hasattr(arguments, "work"):
        raise RequestError("--work is of the bundled model's stages: with --images give --out DIR")
    if not has_images and (len(options) > 1 or hasattr(arguments, "dry_run")):
        raise RequestError("these options are of training on your own pictures: give --images PATH as well")
    try:
        if not has_images:
            return _bundled(arguments.stage, getattr(arguments, "work", Path("fewstep-train")))
        return _train_on_images(_training_config(options), dry=hasattr(arguments, "dry_run"))
    except ModuleNotFoundError as error:
        raise FewstepError(f"training needs {error.name}: pip install 'fewstep[train]'") from error


def _training_config(options: dict[str, Any]) -> TrainConfig:
    """Return the options as a training configuration; raises `RequestError`."""
    if "out" not in options:
        raise RequestError("--out is missing: give a folder for state and result, such as --out trained")
    if "guidance" in options:
        options["guidance"] = _range(options["guidance"])
    if "prompts" in options:
        options["prompts"] = tuple(options["prompts"])
    return make_config(**options)


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition(",")
    try:
        return float(low), float(high or low)
    except ValueError:
        raise RequestError(f"--guidance {text!r}: give one number or two, such as 3,15") from None


def _train_on_images(config: TrainConfig, *, dry: bool) -> int:
    if dry:
        from fewstep.train.estimate import estimate

        print(estimate(config))
        return 0
    from fewstep.train.run import run_training

    return _follow(run_training(config), config.steps, config.out)


def _bundled(stage: str, work: Path) -> int:
    from fewstep.train.bundled.stages import run_stage

    return _follow(run_stage(stage, work), 0, work)


def _follow(progress: Iterable[Any], steps: int, out: Path) -> int:
    """Follow a run on stderr; one that is interrupted can be gone on with."""
    main, done, start = os.environ.get("RANK", "0") == "0", 0, time.monotonic()
    of_steps = f" of {steps}" if steps else ""
    try:
        for event in progress:
            if not main:
                continue
            if not hasattr(event, "step"):
                if event.done % 100 == 0 or event.done == event.of:
                    tell(f"picture {event.done} of {event.of} encoded")
                continue
            done = event.step
            if done % _OFTEN == 0 or done in (1, steps):
                pace = f"{time.monotonic() - start:.0f} s"
                tell(f"step {done}{of_steps}  loss {event.loss:.4f}  rate {event.rate:.2e}  {pace}")
    except KeyboardInterrupt:
        tell(f"fewstep: interrupted after step {done}; the same command goes on from the state in {out}")
        return 130
    if steps and main:
        with report_of_work():
            print(out)
    return 0
