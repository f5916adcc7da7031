"""`fewstep eval`: quality and speed of the modes, measured here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fewstep.cli.arguments import NOT_GIVEN, add_command, typed, whole_number, with_weight
from fewstep.cli.streams import report_of_work, tell
from fewstep.errors import FewstepError, RequestError


def _words(text: str) -> tuple[str, ...]:
    """Return texts between commas: the type of `base,lcm`."""
    return tuple(word.strip() for word in text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    """Return whole numbers between commas: the type of `1,2,4`."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers, such as 1,2,4") from None


def _by_mode(text: str) -> tuple[str, float]:
    """Return a mode and a number: the type of `lcm=3`."""
    mode, _, scale = text.partition("=")
    try:
        return mode, float(scale)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a mode and a number, such as lcm=3") from None


def _prompts(text: str) -> int | tuple[str, ...]:
    """Return a number of prompts, or those of a file, a line each: the type of `500` and `prompts.txt`."""
    if text.isdecimal():
        return int(text)
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give a whole number, or a text file of prompts ({error})"
        ) from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise argparse.ArgumentTypeError(f"{text!r}: the file has no prompt: write one a line")
    return prompts


# Option → how the command line reads it; `fewstep.evaluation.Settings` has the defaults.
_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"help": "as in fewstep generate"},
    "modes": {"type": _words, "metavar": "MODE,...", "help": "which (all four that the model has)"},
    "steps": {"type": _counts, "metavar": "N,...", "help": "step counts; each mode takes those it allows"},
    "guidance": {
        "type": _by_mode, "action": "append", "metavar": "MODE=SCALE",
        "help": "other than a mode's default; several times",
    },
    "prompts": {"type": _prompts, "metavar": "N|FILE", "help": "how many at most (500), or a file of yours"},
    "seeds": {"type": whole_number, "help": "pictures of each prompt (3)"},
    "seed": {"type": whole_number, "help": "of the first picture (0)"},
    "style": {"help": "prompts of this style only"},
    "held-out": {"action": "store_true", "help": "only pairs that training never saw"},
    "data": {
        "type": Path, "action": "append", "metavar": "DIR",
        "help": "folder of real pictures (WORK/data); several times",
    },
    "lora": {
        "dest": "loras", "type": with_weight, "action": "append", "metavar": "PATH[:WEIGHT]",
        "help": "a LoRA beside every mode; several times",
    },
    "features": {"type": Path, "metavar": "FILE", "help": "the feature network (the bundled one)"},
    "repeats": {"type": whole_number, "help": "calls timed for each row (15)"},
    "device": {"help": "auto, cuda, cuda:1, mps or cpu"},
    "precision": {"help": "auto, fp32, fp16 or bf16"},
}  # fmt: skip


def add_evaluate(commands: Any) -> None:
    """Add the command."""
    evaluation = add_command(commands, "eval", _run_eval, "measure quality and speed of the modes")
    evaluation.add_argument(
        "--work", default="fewstep-train", type=Path,
        help="folder of `fewstep train data`; unfinished evaluations go on from it",
    )  # fmt: skip
    for name, keywords in _OPTIONS.items():
        evaluation.add_argument(f"--{name}", default=NOT_GIVEN, **keywords)
    evaluation.add_argument(
        "--workflow", action="store_true",
        help="instead: eight drafts in one step, the best refined, beside base in 50 steps",
    )  # fmt: skip
    evaluation.add_argument(
        "--judge", type=Path, metavar="FILE", help="of --workflow: another feature network"
    )
    evaluation.add_argument("--csv", type=Path, help="where rows are added (WORK/eval/rows.csv)")
    evaluation.add_argument("--plot", type=Path, help="PNG of quality against time to write")


def _run_eval(arguments: argparse.Namespace) -> int:
    try:
        return _measure(arguments)
    except ModuleNotFoundError as error:
        raise FewstepError(f"evaluation needs {error.name}: pip install 'fewstep[train]'") from error


def _measure(arguments: argparse.Namespace) -> int:
    """Print progress while rows are measured, then the table; draw the plot."""
    from fewstep.evaluation import Row, Settings, plot, report, table, watch

    if arguments.workflow:
        return _measure_workflow(arguments)
    if arguments.plot is not None:
        report.check_plot(arguments.plot)
    rows = []
    for event in watch(arguments.work, Settings(**_given_settings(arguments)), arguments.csv):
        if isinstance(event, Row):
            rows.append(event)
        else:
            tell(f"{event.mode} {event.steps}  picture {event.pictures} of {event.of}")
    if arguments.plot is not None:
        plot(rows, arguments.plot)
    with report_of_work():
        print(table(rows))
        if arguments.plot is not None:
            print(arguments.plot)
    return 0


def _measure_workflow(arguments: argparse.Namespace) -> int:
    """Print what drafts, the best of them, and that refined come to."""
    from fewstep.evaluation import Way, measure_workflow, workflow_table

    given = {name: getattr(arguments, name) for name in ("prompts", "seed", "repeats", "features", "judge")
             if getattr(arguments, name, None) is not None}  # fmt: skip
    if not isinstance(given.get("prompts", 1), int):
        raise RequestError("--workflow counts names, which prompts of your own have none of: give a number")
    rows = measure_workflow(arguments.work, Way(**given))
    with report_of_work():
        print(workflow_table(rows))
    return 0


def _given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, as `Settings` takes them."""
    names = [keywords.get("dest", name.replace("-", "_")) for name, keywords in _OPTIONS.items()]
    settings = typed(arguments, names)
    settings |= {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
    if isinstance(settings.get("prompts"), tuple):
        settings["texts"] = settings.pop("prompts")
    return settings | ({"guidance": dict(settings["guidance"])} if "guidance" in settings else {})
