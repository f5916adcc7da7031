"""`fewstep train`: the way to the bundled model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fewstep.arguments import command
from fewstep.errors import FewstepError


def add(commands: Any) -> None:
    """The command."""
    train = command(commands, "train", _train, "train the bundled model (extra: fewstep[train])")
    train.add_argument("stage", help="data, vae, base, lcm or export, in this order")
    train.add_argument(
        "--work", default="fewstep-train", help="folder for data and state; runs resume from it"
    )


def _train(asked: argparse.Namespace) -> int:
    try:
        from fewstep.train.stages import run

        for step in run(asked.stage, Path(asked.work)):
            if step.step % 25 == 0:
                print(f"step {step.step}  loss {step.loss:.4f}  rate {step.rate:.2e}", file=sys.stderr)
    except ModuleNotFoundError as error:
        raise FewstepError(f"training needs {error.name}: pip install 'fewstep[train]'") from error
    return 0
