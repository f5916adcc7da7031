"""`fewstep batch`: a file of jobs becomes pictures."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fewstep.cli.arguments import NOT_GIVEN, add_command, number, typed, whole_number
from fewstep.cli.batch_report import BatchReport, describe_estimate, describe_status
from fewstep.cli.streams import report_of_work, tell
from fewstep.errors import RequestError

if TYPE_CHECKING:
    from fewstep.batch.settings import Settings

TERMINATED = 143  # exit code after SIGTERM, as shells count


def _shard(text: str) -> tuple[int, int]:
    """Return runner i of n: the type of `2/8`."""
    index, slash, count = text.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give i/n, such as 2/8")
    return int(index), int(count)


def _count_or_all(text: str) -> int | str:
    """Return a whole number or "all": the type of `--dynamic`."""
    return text if text == "all" else whole_number(text)


# Option → how the command line reads it; `fewstep.batch.settings.Settings` has the defaults.
_OPTIONS: dict[str, dict[str, Any]] = {
    "name": {"metavar": "TEMPLATE", "help": "of files, such as {mode}/{id}-{seed}.jpg ({id}.png)"},
    "set": {
        "action": "append", "metavar": "NAME=VALUE", "help": "an option of every line, over what it says",
    },
    "sweep": {
        "action": "append", "metavar": "NAME=VALUES",
        "help": "each line once for each value: seed=1..8, mode=lcm,turbo; several times",
    },
    "keep": {"action": "append", "metavar": "COLUMN", "help": "take a column along into metadata.jsonl"},
    "read-as": {"metavar": "KIND", "help": "jsonl, json, csv or txt, where the ending does not say it"},
    "dynamic": {
        "type": _count_or_all, "metavar": "N", "help": "make N prompts, or all, of {a|b} and __wildcard__",
    },
    "wildcards": {"type": Path, "metavar": "DIR", "help": "folder of wildcards"},
    "batch": {"type": whole_number, "metavar": "N", "help": "pictures of one call (up to 16, by their size)"},
    "window": {
        "type": whole_number, "metavar": "N",
        "help": "lines ordered together (all of a file, 1024 of a stream)",
    },
    "shard": {"type": _shard, "metavar": "I/N", "help": "be the I-th of N runners, as in a SLURM array"},
    "strict": {"action": "store_true", "help": "stop at the first line that cannot be done"},
    "tars": {"type": whole_number, "metavar": "N", "help": "write webdataset shards of N pictures or more"},
    "quality": {"type": whole_number, "help": "of JPEG and WebP, 1 to 100"},
    "sheet": {"type": Path, "metavar": "FILE", "help": "write a contact sheet, .png or .jpg, beside OUT"},
}  # fmt: skip


def add_batch(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, "batch", _run_batch, "draw a file of jobs, each picture exactly once")
    command.add_argument(
        "jobs", nargs="?", default="", metavar="JOBS", help=".jsonl, .json, .csv, .tsv, .txt, or -"
    )
    command.add_argument("-o", "--output", metavar="OUT", help="folder; what is in it already is kept")
    for name, keywords in _OPTIONS.items():
        command.add_argument(f"--{name}", default=NOT_GIVEN, **keywords)
    command.add_argument(
        "--ray", nargs="?", const="", default=None, metavar="ADDRESS",
        help="draw by the workers of a Ray cluster; without ADDRESS of one started here",
    )  # fmt: skip
    command.add_argument(
        "--workers", default=1, type=whole_number, metavar="N", help="with --ray: how many draw"
    )
    command.add_argument(
        "--gpus", default=0.0, type=number, metavar="N", help="with --ray: GPUs of each worker (0)"
    )
    command.add_argument("--plan", action="store_true", help="say what would be drawn; draw nothing")
    command.add_argument(
        "--measure", default=0, type=whole_number, metavar="N",
        help="with --plan: draw N calls to see how long they take, and keep nothing",
    )  # fmt: skip
    command.add_argument("--status", metavar="OUT", help="say how far the batch in a folder is")
    command.add_argument("--json", action="store_true", help="print an event a line, as JSON")
    command.add_argument("-q", "--quiet", action="store_true", help="print only what failed")


def _run_batch(arguments: argparse.Namespace) -> int:
    from fewstep import batch

    if arguments.status is not None:
        state = batch.status(arguments.status)
        print(json.dumps(state.to_dict()) if arguments.json else describe_status(state))
        return 0
    if not arguments.jobs:
        raise RequestError("the jobs are missing: type fewstep batch jobs.jsonl -o pictures")
    settings = _settings(arguments)
    if arguments.plan:
        return _plan(arguments, settings)
    if arguments.output is None:
        raise RequestError("the folder is missing: type -o pictures")
    return _draw(arguments, settings)


def _settings(arguments: argparse.Namespace) -> Settings:
    """Return what was given as the settings of a batch; raises `RequestError`."""
    from fewstep.batch.expand import read_assignment, read_sweep
    from fewstep.batch.settings import Settings

    names = [name.replace("-", "_") for name in _OPTIONS]
    options = typed(arguments, names)
    for name, read in (("set", read_assignment), ("sweep", read_sweep)):
        if name in options:
            options[name] = dict(map(read, options[name]))
    return Settings(**options)


def _plan(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print what would be drawn."""
    from fewstep.batch.estimate import estimate
    from fewstep.batch.sources import open_source

    source = open_source(arguments.jobs, settings.read_as, tuple(settings.keep))
    out = None if arguments.output is None else Path(arguments.output)
    planned = estimate(source, out, settings, measure=arguments.measure)
    print(json.dumps(planned.to_dict()) if arguments.json else describe_estimate(planned))
    return 1 if planned.failed else 0


def _draw(arguments: argparse.Namespace, settings: Settings) -> int:
    """Draw, and report each picture as it is recorded; returns the exit code."""
    from fewstep.batch.runner import Batch
    from fewstep.batch.sources import open_source

    source = open_source(arguments.jobs, settings.read_as, tuple(settings.keep))
    out = Path(arguments.output)
    if arguments.ray is None:
        batch = Batch(source, out, settings)
    else:
        from fewstep.batch.ray import Cluster, RayBatch

        batch = RayBatch(source, out, settings, Cluster(arguments.ray, arguments.workers, arguments.gpus))
    try:
        with (
            _sigterm_as_exit(),
            BatchReport(batch.totals, as_json=arguments.json, quiet=arguments.quiet) as report,
            closing(iter(batch)) as outcomes,
        ):
            for outcome in outcomes:
                report.add(outcome, tuple(source.notes))
    except (KeyboardInterrupt, SystemExit):
        tell("fewstep: stopped; what is drawn is kept, and the same command goes on from there")
        raise
    with report_of_work():
        report.end(arguments.output)
    return 1 if batch.totals.number("failed") else 0


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """End by SIGTERM in here as by Ctrl-C: tidily."""

    def stop(number: int, frame: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
