"""The command `fewstep`. Help and errors come without torch; pictures go to files, words to stderr."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fewstep
from fewstep.arguments import Parser, number, read, whole
from fewstep.errors import BackendError, FewstepError, GenerationError

if TYPE_CHECKING:
    from fewstep.result import Result

# Option of `generate` → how the command line reads it.
_OPTIONS: dict[str, dict[str, Any]] = {
    "steps": {"type": whole, "help": "how many steps are run, exactly"},
    "mode": {"help": "how steps are saved; `fewstep modes` lists them"},
    "model": {"default": "tiny", "help": 'whose pictures: "tiny", "sdxl", a hub id or a folder'},
    "prompt-2": {"help": "another prompt for the second text encoder"},
    "negative-prompt": {"default": "", "help": "what to keep away from"},
    "long-prompt": {"default": "chunk", "help": "over 77 tokens: chunk, refuse or cut"},
    "guidance": {"type": number, "help": "how closely to follow the prompt"},
    "guidance-rescale": {"type": number, "default": 0.0, "help": "in [0, 1], against overexposure"},
    "seed": {"type": whole, "help": "picture i uses seed + i; drawn where left out"},
    "count": {"type": whole, "default": 1, "help": "pictures per prompt"},
    "width": {"type": whole, "help": "pixels, in eights"},
    "height": {"type": whole, "help": "pixels, in eights"},
    "image": {"help": "picture to start from"},
    "mask": {"help": "white where the picture is to be made anew"},
    "strength": {"type": number, "help": "noise level to start from, in (0, 1]"},
    "scheduler": {"help": "which noise levels"},
    "sampler": {"help": "which step rule"},
    "eta": {"type": number, "help": "the sampler's share of fresh noise"},
    "timesteps": {"type": whole, "nargs": "+", "help": "exactly these levels, falling"},
}
_PLACES: dict[str, dict[str, Any]] = {
    "accelerator": {"default": "", "help": "the mode's own weights, where not the usual ones"},
    "device": {"default": "auto", "help": "auto, cuda, cuda:1, mps or cpu"},
    "precision": {"default": "auto", "help": "auto, fp32, fp16 or bf16"},
    "offload": {"default": "auto", "help": "auto, none, model or sequential: weights wait in RAM"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 usage, 73 cannot write, 130 interrupted."""
    try:
        with _warnings_shown():
            asked = read(*_parser(), sys.argv[1:] if argv is None else argv)
            code: int = asked.run(asked)
    except FewstepError as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fewstep: interrupted", file=sys.stderr)
        return 130
    return code


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """What the library has to say goes to stderr, like all words of the command."""
    log, handler = logging.getLogger("fewstep"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("fewstep: warning: %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of its commands."""
    parser = Parser(prog="fewstep", description="Fast few-step image generation.")
    parser.add_argument("--version", action="version", version=f"fewstep {fewstep.__version__}")
    parser.set_defaults(run=partial(_help, parser))
    commands = parser.add_subparsers(metavar="COMMAND")

    generate = _command(commands, "generate", _generate, "make pictures")
    _add_options(generate, _OPTIONS | _PLACES)
    generate.add_argument("-o", "--output", default="fewstep.png", help="PNG to write (fewstep.png)")
    generate.add_argument("--overwrite", action="store_true", help="replace files that exist")
    generate.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")

    plan = _command(commands, "plan", _plan, "show what would run; loads no weights")
    _add_options(plan, _OPTIONS)

    modes = _command(commands, "modes", _modes, "list the modes, and what is wrong with broken ones")

    env = _command(commands, "env", _env, "show this machine, where models would run on it, and why")

    for command in (generate, plan, modes, env):
        command.add_argument("--json", action="store_true", help="print JSON")

    train = _command(commands, "train", _train, "train the bundled model (extra: fewstep[train])")
    train.add_argument("stage", help="data, vae, base, lcm or export, in this order")
    train.add_argument(
        "--work", default="fewstep-train", help="folder for data and state; runs resume from it"
    )
    return parser, commands.choices


def _command(commands: Any, name: str, run: Any, text: str) -> Parser:
    command: Parser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _add_options(command: Parser, options: dict[str, dict[str, Any]]) -> None:
    command.add_argument("prompt", nargs="*", help="what to draw; each argument is a prompt of its own")
    for name, how in options.items():
        command.add_argument(f"--{name}", **how)


def _given(asked: argparse.Namespace, options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    names = [name.replace("-", "_") for name in options]
    return {name: getattr(asked, name) for name in names}


def _help(parser: Parser, asked: argparse.Namespace) -> int:
    """`fewstep` alone."""
    parser.print_help()
    return 0


def _generate(asked: argparse.Namespace) -> int:
    from fewstep import metadata

    pictures = fewstep.plan(asked.prompt, **_given(asked, _OPTIONS)).request.prompts
    places = range(len(pictures)) if len(pictures) > 1 else ()
    metadata.targets(asked.output, places, overwrite=asked.overwrite)  # not after the work
    try:
        result = fewstep.generate(asked.prompt, **_given(asked, _OPTIONS | _PLACES))
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
    plan = fewstep.plan(asked.prompt, **_given(asked, _OPTIONS))
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

    listed = [_mode(name) for name in backends.modes()]
    if asked.json:
        print(json.dumps(listed))
        return 0
    for mode in listed:
        print(f"{mode['mode']:10} {mode.get('title', 'broken')}")
        if "broken" in mode:
            print(f"{'':10} {mode['broken']}")
            continue
        steps = "steps {low}-{high} ({default})".format(**mode["steps"])
        scale = "" if mode["guidance"]["kind"] == "none" else " {low:g}-{high:g} ({default:g})"
        print(f"{'':10} {steps}, guidance {mode['guidance']['kind']}{scale.format(**mode['guidance'])}")
    return 0


def _mode(name: str) -> dict[str, Any]:
    """A mode as plain data, or what is wrong with it."""
    from fewstep import backends

    try:
        return backends.recipe(name).to_dict()
    except BackendError as error:
        return {"mode": name, "broken": str(error)}


def _env(asked: argparse.Namespace) -> int:
    from fewstep.devices import probe
    from fewstep.devices.report import as_text, report
    from fewstep.models.catalog import describe
    from fewstep.models.need import need_of

    found = report(probe(), {name: need_of(describe(name)) for name in ("tiny", "sdxl")})
    print(json.dumps(found) if asked.json else as_text(found))
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
