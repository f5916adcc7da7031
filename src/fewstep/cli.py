"""The command `fewstep`. Help and errors come without torch; pictures go to files, words to stderr."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fewstep
from fewstep.errors import FewstepError, OutputError

# Option of `generate` → how the command line reads it.
_OPTIONS: dict[str, dict[str, Any]] = {
    "steps": {"type": int, "help": "how many steps are run, exactly"},
    "mode": {"help": "how steps are saved; `fewstep modes` lists them"},
    "model": {"default": "tiny", "help": 'whose pictures: "tiny", "sdxl", a hub id or a folder'},
    "negative-prompt": {"default": "", "help": "what to keep away from"},
    "guidance": {"type": float, "help": "how closely to follow the prompt"},
    "guidance-rescale": {"type": float, "default": 0.0, "help": "in [0, 1], against overexposure"},
    "seed": {"type": int, "help": "picture i uses seed + i; drawn where left out"},
    "count": {"type": int, "default": 1, "help": "pictures per prompt"},
    "width": {"type": int, "help": "pixels, in eights"},
    "height": {"type": int, "help": "pixels, in eights"},
    "image": {"help": "picture to start from"},
    "mask": {"help": "white where the picture is to be made anew"},
    "strength": {"type": float, "help": "noise level to start from, in (0, 1]"},
    "scheduler": {"help": "which noise levels"},
    "sampler": {"help": "which step rule"},
    "eta": {"type": float, "help": "the sampler's share of fresh noise"},
    "timesteps": {"type": int, "nargs": "+", "help": "exactly these levels, falling"},
}
_PLACES: dict[str, dict[str, Any]] = {
    "accelerator": {"default": "", "help": "the mode's own weights, where not the usual ones"},
    "device": {"default": "auto", "help": "auto, cuda, mps or cpu"},
    "precision": {"default": "auto", "help": "auto, fp32, fp16 or bf16"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 usage, 73 cannot write, 130 interrupted."""
    parser = _parser()
    asked = parser.parse_args(argv)
    try:
        code: int = asked.run(asked)
    except FewstepError as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fewstep: interrupted", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fewstep", description="Fast few-step image generation.")
    parser.add_argument("--version", action="version", version=f"fewstep {fewstep.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = _command(commands, "generate", _generate, "make pictures")
    _add_options(generate, _OPTIONS | _PLACES)
    generate.add_argument("-o", "--output", default="fewstep.png", help="PNG to write (fewstep.png)")
    generate.add_argument("--overwrite", action="store_true", help="replace files that exist")
    generate.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")

    plan = _command(commands, "plan", _plan, "show what would run; loads no weights")
    _add_options(plan, _OPTIONS)

    _command(commands, "modes", _modes, "list the modes")

    train = commands.add_parser("train", help="train the bundled model (extra: fewstep[train])")
    train.add_argument("stage", help="data, vae, base, lcm or export, in this order")
    train.add_argument(
        "--work", default="fewstep-train", help="folder for data and state; runs resume from it"
    )
    train.set_defaults(run=_train)
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run)
    return command


def _add_options(command: argparse.ArgumentParser, options: dict[str, dict[str, Any]]) -> None:
    command.add_argument("prompt", nargs="+", help="what to draw; each argument is a prompt of its own")
    for name, how in options.items():
        command.add_argument(f"--{name}", **how)


def _given(asked: argparse.Namespace, options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    names = [name.replace("-", "_") for name in options]
    return {name: getattr(asked, name) for name in names}


def _generate(asked: argparse.Namespace) -> int:
    if not asked.overwrite and asked.count == len(asked.prompt) == 1 and Path(asked.output).exists():
        raise OutputError(f"{asked.output!r} exists: choose another name with -o, or add --overwrite")
    result = fewstep.generate(asked.prompt, **_given(asked, _OPTIONS | _PLACES))
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
    return 0


def _plan(asked: argparse.Namespace) -> int:
    given = _given(asked, _OPTIONS)
    plan = fewstep.plan(asked.prompt, given.pop("steps"), given.pop("mode"), **given)
    if asked.json:
        print(json.dumps(plan.to_dict()))
        return 0
    request = plan.request
    levels = ", ".join(f"{t:g}" for t in plan.schedule.timesteps)
    print(f"model      {request.model}, {request.width}x{request.height}, {len(request.prompts)} picture(s)")
    print(f"mode       {request.mode}: {request.steps} steps, {request.scheduler} levels, {request.sampler}")
    print(f"timesteps  {levels}")
    print(f"guidance   {plan.guidance}")
    for warning in plan.warnings:
        print(f"warning    {warning}")
    return 0


def _modes(asked: argparse.Namespace) -> int:
    from fewstep import backends

    recipes = [backends.recipe(name) for name in backends.modes()]
    if asked.json:
        print(json.dumps([asdict(recipe) for recipe in recipes]))
        return 0
    for recipe in recipes:
        steps, guidance = recipe.steps, recipe.guidance
        scale = (
            "" if guidance.kind == "none" else f" {guidance.low:g}-{guidance.high:g} ({guidance.default:g})"
        )
        print(f"{recipe.mode:10} {recipe.title}")
        print(f"{'':10} steps {steps.low}-{steps.high} ({steps.default}), guidance {guidance.kind}{scale}")
    return 0


def _train(asked: argparse.Namespace) -> int:
    try:
        from fewstep.train.stages import run

        for step in run(asked.stage, Path(asked.work)):
            if step.step % 25 == 0:
                print(f"step {step.step}  loss {step.loss:.4f}  rate {step.rate:.2e}", file=sys.stderr)
    except ModuleNotFoundError as error:
        raise FewstepError(f"training needs {error.name}: pip install 'fewstep[train]'") from error
    return 0
