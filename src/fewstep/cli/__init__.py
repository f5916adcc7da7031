"""The command `fewstep`. Help and errors come without torch; pictures go to files, words to stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fewstep.cli.streams import escaping_streams, silence, tell
from fewstep.errors import FewstepError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    0 done, 1 failed, 2 usage, 73 cannot write, 130 interrupted, 141 its output is no longer read.
    """
    with escaping_streams():
        try:
            # Here, so that Ctrl-C while they are imported has its one line too.
            from fewstep.cli.commands import run_words

            return run_words(sys.argv[1:] if argv is None else argv)
        except FewstepError as error:
            tell(f"fewstep: {error}")
            return error.exit_code
        except KeyboardInterrupt:
            tell("fewstep: interrupted")
            return 130
        except BrokenPipeError:  # as in `fewstep modes | head`
            silence(sys.stdout)
            return 141
        except OSError as error:  # a full disk under stdout
            silence(sys.stdout)
            tell(f"fewstep: cannot write: {error.strerror or error}")
            return 73
