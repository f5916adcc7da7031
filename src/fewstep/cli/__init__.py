"""The command `fewstep`. Help and errors come without torch; pictures go to files, words to stderr.

Each module has one or more functions that add their commands to the parser.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import fewstep
from fewstep.cli.arguments import Parser, parse_words
from fewstep.cli.evaluate import add_evaluate
from fewstep.cli.generate import add_generate
from fewstep.cli.inspect import add_inspections
from fewstep.cli.models import add_models
from fewstep.cli.modes import add_modes
from fewstep.cli.train import add_train
from fewstep.errors import FewstepError

COMMANDS = (add_generate, add_modes, add_models, add_inspections, add_train, add_evaluate)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    0 done, 1 failed, 2 usage, 73 cannot write, 130 interrupted, 141 its output is no longer read.
    """
    try:
        with _warnings_shown():
            try:
                asked = parse_words(*_parser(), sys.argv[1:] if argv is None else argv)
                code: int = asked.run(asked)
            finally:
                sys.stdout.flush()  # that nobody reads it is learned here, and not at Python's exit
    except FewstepError as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fewstep: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `fewstep modes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at exit
        return 141
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
    for add in COMMANDS:
        add(commands)
    return parser, commands.choices


def _help(parser: Parser, asked: argparse.Namespace) -> int:
    """`fewstep` alone."""
    parser.print_help()
    return 0
