"""`fewstep generate` and `fewstep plan`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

import fewstep
from fewstep.cli.arguments import NOT_GIVEN, GuideAction, add_command, number, whole_number, with_weight
from fewstep.errors import GenerationError

if TYPE_CHECKING:
    from fewstep.result import Result

# Option of `generate` → how the command line reads it. What is not given is left to `generate`.
_PICTURED: dict[str, Any] = {"action": GuideAction, "nargs": 3, "metavar": ("MODEL", "IMAGE", "SCALE")}
_OPTIONS: dict[str, dict[str, Any]] = {
    "steps": {"type": whole_number, "help": "how many steps are run, exactly"},
    "mode": {"help": "how steps are saved; `fewstep modes` lists them"},
    "model": {"help": 'whose pictures: "tiny", "sdxl", a hub id, a folder or a file; `fewstep models`'},
    "prompt-2": {"help": "another prompt for the second text encoder"},
    "negative-prompt": {"help": "what to keep away from"},
    "long-prompt": {"help": "over 77 tokens: chunk, refuse or cut"},
    "guidance": {"type": number, "help": "how closely to follow the prompt"},
    "guidance-rescale": {"type": number, "help": "in [0, 1], against overexposure"},
    "seed": {"type": whole_number, "help": "picture i uses seed + i; drawn where left out"},
    "count": {"type": whole_number, "help": "pictures per prompt"},
    "width": {"type": whole_number, "help": "pixels, in eights"},
    "height": {"type": whole_number, "help": "pixels, in eights"},
    "image": {"help": "picture to start from"},
    "mask": {"help": "white where the picture is to be made anew"},
    "strength": {"type": number, "help": "noise level to start from, in (0, 1]"},
    "scheduler": {"help": "which noise levels"},
    "sampler": {"help": "which step rule"},
    "eta": {"type": number, "help": "the sampler's share of fresh noise"},
    "timesteps": {"type": whole_number, "nargs": "+", "help": "exactly these levels, falling"},
    "lora": {
        "dest": "loras", "type": with_weight, "action": "append", "metavar": "PATH[:WEIGHT]",
        "help": "a LoRA beside the model; may be given several times",
    },
    "control": {**_PICTURED, "help": "a ControlNet, its picture and its scale; several times"},
    "reference": {**_PICTURED, "help": "an IP-Adapter, its picture and its scale; several times"},
}  # fmt: skip
_PLACES: dict[str, dict[str, Any]] = {
    "accelerator": {"help": "the mode's own weights, where not the usual ones"},
    "vae": {"help": 'what decodes: "tiny" is fast; a folder, a file or a hub id'},
    "embedding": {
        "dest": "embeddings", "action": "append", "metavar": "PATH",
        "help": "a textual inversion; may be given several times",
    },
    "revision": {"help": "of a model on the hub, 40 hex digits"},
    "commercial": {"action": "store_true", "help": "refuse weights that may not be used commercially"},
    "device": {"help": "auto, cuda, cuda:1, mps or cpu"},
    "precision": {"help": "auto, fp32, fp16 or bf16"},
    "offload": {"help": "auto, none, model or sequential: weights wait in RAM"},
}  # fmt: skip


def add_generate(commands: Any) -> None:
    """Both commands."""
    generate = add_command(commands, "generate", _generate, "make pictures")
    _add_options(generate, _OPTIONS | _PLACES)
    generate.add_argument("-o", "--output", default="fewstep.png", help="PNG to write (fewstep.png)")
    generate.add_argument("--overwrite", action="store_true", help="replace files that exist")
    generate.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")

    plan = add_command(commands, "plan", _plan, "show what would run; loads no weights")
    _add_options(plan, _OPTIONS | _PLACES)


def _add_options(to: Any, options: dict[str, dict[str, Any]]) -> None:
    to.add_argument("prompt", nargs="*", help="what to draw; each argument is a prompt of its own")
    for name, how in options.items():
        to.add_argument(f"--{name}", default=NOT_GIVEN, **how)
    to.add_argument("--json", action="store_true", help="print JSON")


def _given_options(asked: argparse.Namespace, options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    names = [how.get("dest", name.replace("-", "_")) for name, how in options.items()]
    return {name: getattr(asked, name) for name in names if hasattr(asked, name)}


def _generate(asked: argparse.Namespace) -> int:
    from fewstep import metadata

    pictures = fewstep.plan(asked.prompt, **_given_options(asked, _OPTIONS | _PLACES)).request.prompts
    places = range(len(pictures)) if len(pictures) > 1 else ()
    metadata.targets(asked.output, places, overwrite=asked.overwrite)  # not after the work
    try:
        result = fewstep.generate(asked.prompt, **_given_options(asked, _OPTIONS | _PLACES))
    except GenerationError as error:
        if error.survivors is not None:
            _report(error.survivors, asked)
        raise
    _report(result, asked)
    return 0


def _report(result: Result, asked: argparse.Namespace) -> None:
    """Write the pictures, and say where."""
    paths = result.save(asked.output, overwrite=asked.overwrite)
    for warning in result.warnings:
        print(f"fewstep: warning: {warning}", file=sys.stderr)
    if asked.json:
        facts = [{"path": str(path), **result.facts(i)} for i, path in enumerate(paths)]
        print(
            json.dumps(
                {"pictures": facts, "timings": dict(result.timings), "warnings": list(result.warnings)}
            )
        )
    elif not asked.quiet:
        for path, seed in zip(paths, result.seeds, strict=True):
            print(f"{path}  (seed {seed})")
        print(
            f"{len(paths)} in {result.timings['total']:.2f} s, mode {result.plan.request.mode}",
            file=sys.stderr,
        )


def _plan(asked: argparse.Namespace) -> int:
    plan = fewstep.plan(asked.prompt, **_given_options(asked, _OPTIONS | _PLACES))
    if asked.json:
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
