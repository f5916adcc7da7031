"""`fewstep replay`: saved pictures drawn again from their own files, and whether they are the same."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fewstep.cli.arguments import add_command
from fewstep.cli.streams import report_of_work
from fewstep.errors import FewstepError, GenerationCancelledError

if TYPE_CHECKING:
    from fewstep.reproduction import Replay


def add_replay(commands: Any) -> None:
    """Add the command."""
    text = "draw saved pictures again from their own files; say whether they are the same"
    replay = add_command(commands, "replay", _run_replay, text)
    replay.add_argument("files", nargs="+", help="pictures, as fewstep or another tool saved them")
    replay.add_argument(
        "--search", action="append", default=[], metavar="FOLDER",
        help="where else to look for weights and given pictures; several times",
    )  # fmt: skip
    replay.add_argument("--model", help="in place of the one that a file names")
    replay.add_argument("-o", "--output", help="a folder to put what was drawn into, by the files' names")
    replay.add_argument("--json", action="store_true", help="print a line of JSON for each")


def _run_replay(arguments: argparse.Namespace) -> int:
    """Print a line for each file; 0 where all are the same, 1 where one differs or cannot be drawn."""
    same = True
    for path in arguments.files:
        replayed: Replay | None = None
        message = ""
        try:
            replayed = _replay(path, arguments)
        except GenerationCancelledError:
            raise
        except FewstepError as error:
            message = str(error)
        same &= replayed is not None and replayed.compared.same
        with report_of_work():
            print(_line(path, replayed, message, as_json=arguments.json), flush=True)
    return 0 if same else 1


def _replay(path: str, arguments: argparse.Namespace) -> Replay:
    from pathlib import Path

    from fewstep.reproduction import replay

    options = {} if arguments.model is None else {"model": arguments.model}
    replayed = replay(path, search=arguments.search, **options)
    if arguments.output is not None:
        Path(arguments.output).mkdir(parents=True, exist_ok=True)
        replayed.save(Path(arguments.output) / f"{Path(path).stem}.png")
    return replayed


def _line(path: str, replayed: Replay | None, message: str, *, as_json: bool) -> str:
    if not as_json:
        return f"{path}: {message or (replayed and replayed.compared)}"
    if replayed is None:
        return json.dumps({"path": path, "error": message})
    return json.dumps({"path": path, "same": replayed.compared.same, **asdict(replayed.compared)})
