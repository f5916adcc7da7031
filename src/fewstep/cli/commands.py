"""The parser of `fewstep` and its commands, and how one of them is run.

Each module beside has one or more functions that add their commands to the parser.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import fewstep
from fewstep.cli.arguments import Parser, parse_words
from fewstep.cli.batch import add_batch
from fewstep.cli.bench import add_bench
from fewstep.cli.compare import add_compare
from fewstep.cli.evaluate import add_evaluate
from fewstep.cli.generate import add_generate
from fewstep.cli.inspect import add_inspections
from fewstep.cli.models import add_models
from fewstep.cli.modes import add_modes
from fewstep.cli.refine import add_refinements
from fewstep.cli.replay import add_replay
from fewstep.cli.streams import flush_stdout
from fewstep.cli.train import add_train

COMMANDS = (
    add_generate, add_batch, add_refinements, add_compare, add_modes, add_models, add_replay, add_inspections,
    add_train, add_evaluate, add_bench,
)  # fmt: skip


def run_words(words: Sequence[str]) -> int:
    """Run the command that these words ask for; returns its exit code."""
    with _warnings_shown():
        try:
            arguments = parse_words(*make_parser(), words)
            code: int = arguments.run(arguments)
        finally:
            flush_stdout()
    return code


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Print the library's warnings to stderr in here, like all words of the command."""
    log, handler = logging.getLogger("fewstep"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("fewstep: warning: %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser, and those of its commands by their names."""
    parser = Parser(prog="fewstep", description="Fast few-step image generation.")
    parser.add_argument("--version", action="version", version=f"fewstep {fewstep.__version__}")
    parser.set_defaults(run=partial(_help, parser))
    commands = parser.add_subparsers(metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser, commands.choices


def _help(parser: Parser, arguments: argparse.Namespace) -> int:
    """Print the help, for `fewstep` alone."""
    parser.print_help()
    return 0
