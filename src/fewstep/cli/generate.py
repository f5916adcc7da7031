"""`fewstep generate` and `fewstep plan`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import fewstep
from fewstep.cli.arguments import (
    NOT_GIVEN,
    GuideAction,
    add_command,
    number,
    typed,
    whole_number,
    with_weight,
)
from fewstep.cli.saving import add_saving_options, check_output, save_or_rescue, saving_options
from fewstep.cli.streams import report_of_work, tell
from fewstep.errors import GenerationError
from fewstep.request.options import OPTIONS, File, Guide

if TYPE_CHECKING:
    from fewstep.result import Result

# How the command line reads a value, by its type in the table. What is not given is left to `generate`.
_GUIDE: dict[str, Any] = {"action": GuideAction, "nargs": 3, "metavar": ("MODEL", "IMAGE", "SCALE")}
_READ: dict[Any, dict[str, Any]] = {
    int: {"type": whole_number},
    float: {"type": number},
    bool: {"action": "store_true"},
    Sequence[int]: {"type": whole_number, "nargs": "+"},
    Sequence[File | tuple[File, float]]: {
        "type": with_weight, "action": "append", "metavar": "PATH[:WEIGHT]",
    },
    Sequence[File]: {"action": "append", "metavar": "PATH"},
    Sequence[Guide]: _GUIDE,
}  # fmt: skip
CALL_OPTIONS = ("steps", "mode", *OPTIONS)  # what may be typed beside the prompt


def add_generate(commands: Any) -> None:
    """Add both commands."""
    generate = add_command(commands, "generate", _run_generate, "make pictures")
    _add_options(generate)
    add_saving_options(generate)
    generate.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")

    plan = add_command(commands, "plan", _run_plan, "show what would run; loads no weights")
    _add_options(plan)


def _add_options(command: Any) -> None:
    """Add the prompt, and a flag for each option of the table."""
    command.add_argument("prompt", nargs="*", help="what to draw; each argument is a prompt of its own")
    add_option_flags(command)
    command.add_argument("--json", action="store_true", help="print JSON")


def add_option_flags(command: Any, without: Sequence[str] = ()) -> None:
    """Add steps and mode, and a flag for each option of the table but these."""
    command.add_argument(
        "--steps", default=NOT_GIVEN, type=whole_number, help="how many steps are run, exactly"
    )
    command.add_argument("--mode", default=NOT_GIVEN, help="how steps are saved; `fewstep modes` lists them")
    for option in (option for option in OPTIONS.values() if option.name not in without):
        flag = f"--{(option.flag or option.name).replace('_', '-')}"
        command.add_argument(
            flag, dest=option.name, default=NOT_GIVEN, help=option.help, **_argparse_type(option.type)
        )


def _argparse_type(option_type: Any) -> dict[str, Any]:
    """Return argparse's words for a type; a number, or a list of numbers, counts as the one."""
    if option_type in _READ:
        return _READ[option_type]
    return next((_READ[member] for member in get_args(option_type) if member in _READ), {})


def _run_generate(arguments: argparse.Namespace) -> int:
    check_output(
        arguments.output,
        fewstep.plan(arguments.prompt, **typed(arguments, CALL_OPTIONS)),
        overwrite=arguments.overwrite,
        format=arguments.format,
        quality=arguments.quality,
    )
    try:
        result = fewstep.generate(arguments.prompt, **typed(arguments, CALL_OPTIONS))
    except GenerationError as error:
        if error.survivors is not None:
            _report(error.survivors, arguments)
        raise
    _report(result, arguments)
    return 0


def _report(result: Result, arguments: argparse.Namespace) -> None:
    """Write the pictures, and say where."""
    paths = save_or_rescue(
        result, arguments.output, overwrite=arguments.overwrite, **saving_options(arguments)
    )
    with report_of_work():
        for warning in result.warnings:
            tell(f"fewstep: warning: {warning}")
        write = tell if arguments.output == "-" else print
        if arguments.json:
            facts = [{"path": path, **result.facts(index)} for index, path in enumerate(paths)]
            write(
                json.dumps(
                    {"pictures": facts, "timings": dict(result.timings), "warnings": list(result.warnings)}
                )
            )
        elif not arguments.quiet:
            for path, seed in zip(paths, result.seeds, strict=True):
                write(f"{path}  (seed {seed})")
            tell(f"{len(paths)} in {result.timings['total']:.2f} s, mode {result.plan.request.mode}")


def _run_plan(arguments: argparse.Namespace) -> int:
    plan = fewstep.plan(arguments.prompt, **typed(arguments, CALL_OPTIONS))
    if arguments.json:
        print(json.dumps(plan.to_dict()))
        return 0
    request = plan.request
    levels = ", ".join(f"{t:g}" for t in plan.schedule.timesteps)
    print(f"model      {request.model}, {request.width}x{request.height}, {len(request.prompts)} picture(s)")
    print(f"mode       {request.mode}: {request.steps} steps, {request.scheduler} levels, {request.sampler}")
    print(f"timesteps  {levels}")
    print(f"guidance   {plan.guidance}")
    for name in ("loras", "control", "reference"):
        for source, scale in getattr(request, name):
            print(f"{name:10} {source}, {scale:g}")
    for warning in plan.warnings:
        print(f"warning    {warning}")
    return 0
