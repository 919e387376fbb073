"""Progress: a bar where a person looks at it, in a terminal or notebook, and elsewhere a line now and then."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import auto
from tqdm.std import tqdm as TerminalBar

SECONDS_PER_LINE = 60  # between two lines in a file


def progress(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """A bar of tqdm with these options. Where standard error goes into a file, it writes lines instead."""
    # asked anew each time, since standard error may be redirected meanwhile
    bar = auto.tqdm if is_watched() else LineBar
    from mtl_utils import processes  # here, since what needs no torch draws bars, too

    if processes.rank() > 0:
        options = options | {"disable": True}  # several processes that train together need one bar
    return bar(iterable, **options)


def is_watched() -> bool:
    """Whether a person sees what is drawn: in a notebook, or in a terminal."""
    # in a notebook standard error is no terminal, but a widget is shown
    in_notebook = auto.notebook_tqdm is not TerminalBar
    return in_notebook or sys.stderr.isatty()


class LineBar(TerminalBar):  # type: ignore[misc]  # tqdm has no types
    """Writes its state as a whole line once a minute, for a log: a bar would be drawn anew ten times a second."""

    def __init__(self, iterable: Iterable[Any] | None = None, **options: Any):
        # what takes less than a minute needs no line
        rhythm = {"mininterval": SECONDS_PER_LINE, "maxinterval": SECONDS_PER_LINE, "delay": SECONDS_PER_LINE}
        super().__init__(iterable, **(options | rhythm))

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write one line; nothing for an empty one, with which a bar would be wiped out."""
        text = str(self) if msg is None else msg
        if text.strip():
            print(text.strip(), file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """End without a last line: what was counted is done."""
        self.disable = True
