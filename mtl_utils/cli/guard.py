"""How a command ends: with a status, and with one sentence where the user made a mistake or stopped it."""

import contextlib
import io
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

import torch

from mtl_utils import processes
from mtl_utils.files import STOP_SIGNALS, UserError

FAILED = 1
STOPPED = 128  # plus the signal's number, as a shell reports it: 130 for Ctrl-C


def guarded(function: Callable[[], int | None], after_stop: str = "", debug: bool = False) -> int:
    """Run a command and return its exit status; a UserError ends in one sentence on stderr, not in a traceback.

    after_stop: what a user who stopped a command should know where it can be continued. debug: show the traceback too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a console that cannot show a character prints a question mark instead
        sys.stdout.reconfigure(errors="replace")
    with stoppable() as signals:
        try:
            return function() or 0
        except (UserError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            if debug:
                traceback.print_exc()
            report(f"error: {sentence(error)}")
            return FAILED
        except KeyboardInterrupt:
            message = f"stopped; {after_stop}" if after_stop else "stopped"
            report(f"\n{message}")
            number = signals[0] if signals else signal.SIGINT  # a library may raise it by itself
            return STOPPED + number


def report(message: str) -> None:
    """Print to stderr why a command ends; where several processes train together, one of them does."""
    if processes.speaks_first():
        print(message, file=sys.stderr)


def sentence(error: Exception) -> str:
    """What went wrong, on one line whatever a file's name holds."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:  # a name that is too long, no permission
        text = f"{error.filename}: {error.strerror}: name another file or folder."
    elif isinstance(error, MemoryError):
        text = "there is not enough memory: close other programs, or take smaller pictures."
    elif isinstance(error, torch.OutOfMemoryError):
        text = "the GPU has not enough memory: close other programs on it, lower batch_size, or take --device cpu."
    return "".join(character if character.isprintable() else "?" for character in text)


@contextlib.contextmanager
def stoppable() -> Iterator[list[int]]:
    """Within the block any signal to stop raises KeyboardInterrupt; the second one ends the process at once.

    Gives the list to which the number of a signal that arrives is added.
    """
    arrived: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = {}
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to go on when the terminal closes
            before[number] = signal.signal(number, stop)
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
