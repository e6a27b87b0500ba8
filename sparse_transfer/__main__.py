"""The command line: parse, call, print. Every decision is taken elsewhere."""

from __future__ import annotations

import os
import sys

# Imported for their verbs.
from sparse_transfer.commands import (  # noqa: F401
    catalogue,
    checkpoints,
    experiments,
    foreign,
    imports,
    tryout,
)
from sparse_transfer.commands.app import (
    EXIT_BAD_INPUT,
    EXIT_FAILED_RUN,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    app,
)
from sparse_transfer.commands.steps import complain, say
from sparse_transfer.errors import StopRequested, UserError

INTERRUPTED = "Interrupted. What is finished is kept; run the same command again to go on."


def main() -> None:
    """Entry point: every expected error is a message and an exit code, never a traceback."""
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False) or 0
        if code == EXIT_INTERRUPTED:  # the parser turns Ctrl-C into a code of its own
            say(INTERRUPTED)
        sys.exit(code)
    except UserError as error:
        if debug:
            raise
        complain(error)
        sys.exit(EXIT_BAD_INPUT)
    except StopRequested as stop:
        say(f"Stopped by {stop}. Run the same command again to go on from what is finished.")
        sys.exit(EXIT_STOPPED)
    except KeyboardInterrupt:
        say(INTERRUPTED)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the parser, whichever click it is
            error.show()  # type: ignore[attr-defined]
            sys.exit(EXIT_BAD_INPUT)
        if debug:
            raise
        say(f"error: {type(error).__name__}: {error}")
        say("This is a mistake of the program. Run it again with --debug for the traceback.")
        sys.exit(EXIT_FAILED_RUN)


if __name__ == "__main__":
    main()
