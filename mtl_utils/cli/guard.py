"""How a command ends: with a status, and with one sentence where the user made a mistake."""

import io
import sys
from collections.abc import Callable

from mtl_utils.files import UserError

FAILED = 1
STOPPED = 130  # what a shell reports of a process that Ctrl-C ended: 128 + SIGINT


def guarded(function: Callable[[], int | None], after_stop: str = "") -> int:
    """Run a command and return its exit status; a UserError ends in one sentence on stderr, not in a traceback.

    after_stop: what a user who pressed Ctrl-C should know, for a command that can be continued.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a console that cannot show a character prints a question mark instead
        sys.stdout.reconfigure(errors="replace")
    try:
        return function() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        message = f"stopped; {after_stop}" if after_stop else "stopped"
        print(f"\n{message}", file=sys.stderr)
        return STOPPED
