"""`fewstep inspect`: what a model file is. `fewstep check`: what in a diffusers folder mars a mode."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fewstep.arguments import command, number, whole


def add(commands: Any) -> None:
    """The command."""
    inspect = command(commands, "inspect", _inspect, "say what a model file is; reads no weights")
    inspect.add_argument("path", help="a .safetensors file, or a folder")
    check = command(commands, "check", _check, "say what in a diffusers folder is wrong for a mode; mend it")
    check.add_argument("folder", help="a diffusers folder")
    check.add_argument("--mode", help="the mode it is to run in; the folder's own where left out")
    check.add_argument("--steps", type=whole, help="as it would be called")
    check.add_argument("--guidance", type=number, help="as it would be called")
    for each in (inspect, check):
        each.add_argument("--json", action="store_true", help="print JSON")


def _inspect(asked: argparse.Namespace) -> int:
    from fewstep.inspection import inspect

    found = inspect(asked.path)
    print(json.dumps(found.to_dict()) if asked.json else found)
    return 0


def _check(asked: argparse.Namespace) -> int:
    from fewstep.checking import check

    report = check(asked.folder, asked.mode, steps=asked.steps, guidance=asked.guidance)
    print(json.dumps(report.to_dict()) if asked.json else report)
    return 0 if report.ok else 1
