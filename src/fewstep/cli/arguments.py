"""The words of a command line → arguments. Mistakes are told as everywhere: an error of one line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from fewstep.errors import RequestError

NOT_GIVEN = argparse.SUPPRESS  # as a default: what was not given is not there, and the callee's default holds


def whole_number(text: str) -> int:
    """Return a whole number: the type of options that count."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number") from None


def number(text: str) -> float:
    """Return a number: the type of options that measure."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number") from None


def with_weight(text: str) -> str | tuple[str, float]:
    """Return a path, or a path and a weight: the type of `PATH` and `PATH:WEIGHT`."""
    path, colon, weight = text.rpartition(":")
    if not colon or not path or os.path.exists(text):
        return text
    try:
        return path, float(weight)
    except ValueError:
        if os.path.exists(path):
            raise argparse.ArgumentTypeError(f"{weight!r} is no weight: type {path}:0.8") from None
        return text


def typed(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return those of these options that were typed."""
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


class GuideAction(argparse.Action):
    """The action of `MODEL IMAGE SCALE`: a list of (model, image, scale)."""

    def __call__(self, parser: Any, arguments: argparse.Namespace, values: Any, option: Any = None) -> None:  # noqa: ARG002
        model, image, scale = values
        try:
            guide = (model, image, number(scale))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(arguments, self.dest, [*getattr(arguments, self.dest, []), guide])


class Parser(argparse.ArgumentParser):
    """Of a program or one of its commands. `options` are the names it knows."""

    def __init__(self, **keywords: Any):
        self.options: list[str] = []
        super().__init__(**keywords, allow_abbrev=False)  # scripts outlive abbreviations

    def add_argument(self, *names: Any, **keywords: Any) -> argparse.Action:
        """Add an option as argparse does, and note its names."""
        action = super().add_argument(*names, **keywords)
        self.options += action.option_strings
        return action

    def error(self, message: str) -> NoReturn:
        """Raise `--steps 'abc': give a whole number; see fewstep generate --help`, without a usage block."""
        text = message.removeprefix("argument ").replace(": '", " '", 1)
        raise RequestError(f"{text}; see {self.prog} --help")

    def refuse(self, word: str, names: Sequence[str]) -> NoReturn:
        """Raise that no option or command has this name, with the nearest that there is."""
        undashed = {name.lstrip("-"): name for name in names}
        matches = [name for name in names if name.startswith(word)]
        matches += [undashed[name] for name in get_close_matches(word.lstrip("-"), undashed, n=1)]
        hint = f"did you mean {matches[0]}?" if matches else f"choose one of {', '.join(names)}"
        self.error(f"{word!r} is not known here: {hint}")


def add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> Parser:
    """Add one command; `run` answers it with its exit code."""
    command: Parser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def parse_words(parser: Parser, commands: Mapping[str, Parser], words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments that these words mean; unknown words are refused with the nearest known one."""
    if words and words[0] not in (*commands, *parser.options):
        if any(words[0] in command.options for command in commands.values()):
            parser.error(f"{words[0]} goes after a command: choose one of {', '.join(commands)}")
        parser.refuse(words[0], [*commands, *parser.options])
    arguments, unknown = parser.parse_known_args(words)
    for word in unknown:
        command = commands[words[0]]
        if word.startswith("-"):
            command.refuse(word.split("=")[0], command.options)
        advice = "stands apart from the prompts: give them together"
        command.error(f"{word!r} {advice if hasattr(arguments, 'prompt') else 'is a word too many'}")
    if not getattr(arguments, "prompt", True):
        commands[words[0]].error(f'the prompt is missing: type {commands[words[0]].prog} "a red fox"')
    return arguments
