"""How a command ends: with a status, and with one sentence where the user made a mistake."""

import sys
from collections.abc import Callable

from mtl_utils.files import UserError


def guarded(function: Callable[[], int | None]) -> int:
    """Run a command; what the user can mend ends in one sentence on stderr, not in a traceback."""
    sys.stdout.reconfigure(errors="replace")  # a console that cannot show a sign gets a question mark instead
    try:
        return function() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nstopped; finished epochs are kept: run again to continue (train: with --resume)", file=sys.stderr)
        return 130
    return 1
