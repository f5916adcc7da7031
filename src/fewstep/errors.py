"""Everything fewstep raises.

    FewstepError                 catch this to catch all
    ├── RequestError             what was asked cannot be done; also a ValueError
    ├── ModelError               the model's files
    │   ├── ModelNotFoundError   they are not here; says what to fetch
    │   └── CorruptModelError    they are damaged, or not what they should be
    ├── GenerationError          the picture could not be made
    └── OutputError              a file could not be written; also an OSError

Each message is one line: what was given, what is allowed, what to type.
"""

from __future__ import annotations


class FewstepError(Exception):
    """The root of the tree. `exit_code` is what the command line ends with."""

    exit_code = 1


class RequestError(FewstepError, ValueError):
    """What was asked cannot be done."""

    exit_code = 2


class ModelError(FewstepError):
    """Something is wrong with a model's files."""


class ModelNotFoundError(ModelError):
    """The model's files are not on this machine."""


class CorruptModelError(ModelError):
    """The model's files are damaged, or are not what they should be."""


class GenerationError(FewstepError):
    """The picture could not be made."""


class OutputError(FewstepError, OSError):
    """A file could not be written."""

    exit_code = 73
