"""`fewstep env`, `inspect` and `check`: of this machine, of a model file, of a diffusers folder."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fewstep.cli.arguments import add_command, number, whole_number


def add_inspections(commands: Any) -> None:
    """Add the three commands."""
    env = add_command(commands, "env", _run_env, "show this machine, where models would run on it, and why")
    inspect = add_command(commands, "inspect", _run_inspect, "say what a model file is; reads no weights")
    inspect.add_argument("path", help="a .safetensors file, or a folder")
    check = add_command(
        commands, "check", _run_check, "say what in a diffusers folder is wrong for a mode; mend it"
    )
    check.add_argument("folder", help="a diffusers folder")
    check.add_argument("--mode", help="the mode it is to run in; the folder's own where left out")
    check.add_argument("--steps", type=whole_number, help="as it would be called")
    check.add_argument("--guidance", type=number, help="as it would be called")
    for command in (env, inspect, check):
        command.add_argument("--json", action="store_true", help="print JSON")


def _run_env(arguments: argparse.Namespace) -> int:
    from fewstep.catalog.models import describe_model
    from fewstep.devices import probe
    from fewstep.devices.report import device_report, report_as_text
    from fewstep.loading.footprint import measure_model

    report = device_report(probe(), {name: measure_model(describe_model(name)) for name in ("tiny", "sdxl")})
    print(json.dumps(report) if arguments.json else report_as_text(report))
    return 0


def _run_inspect(arguments: argparse.Namespace) -> int:
    from fewstep.inspection import inspect

    inspection = inspect(arguments.path)
    print(json.dumps(inspection.to_dict()) if arguments.json else inspection)
    return 0


def _run_check(arguments: argparse.Namespace) -> int:
    from fewstep.checking import check

    report = check(arguments.folder, arguments.mode, steps=arguments.steps, guidance=arguments.guidance)
    print(json.dumps(report.to_dict()) if arguments.json else report)
    return 0 if report.ok else 1
