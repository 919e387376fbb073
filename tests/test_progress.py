"""What progress looks like where nobody watches a bar, and where somebody does."""

import io
import sys

import pytest
from tqdm import auto
from tqdm.std import tqdm as TerminalBar

from mtl_utils import progress as progress_module
from mtl_utils.progress import LineBar, progress


class Terminal(io.StringIO):
    """A stream that a person looks at."""

    def isatty(self):
        return True


def written(monkeypatch, stream, **options):
    """What counting to three writes to standard error."""
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress(range(3), file=stream, desc="counting", **options)) == [0, 1, 2]
    return stream.getvalue()


def test_into_a_file_go_whole_lines(monkeypatch):
    monkeypatch.setattr(progress_module, "SECONDS_PER_LINE", 0)
    text = written(monkeypatch, io.StringIO())
    lines = text.splitlines()
    assert "\r" not in text and lines and all(line.startswith("counting:") for line in lines)
    assert "3/3" in lines[-1]


def test_what_takes_less_than_a_minute_writes_nothing_into_a_file(monkeypatch):
    assert written(monkeypatch, io.StringIO()) == written(monkeypatch, io.StringIO(), leave=False) == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    text = written(monkeypatch, Terminal())
    assert "\r" in text and "100%" in text


@pytest.mark.parametrize("delay", [0, 2])
def test_the_callers_rhythm_is_for_bars_alone(delay):
    bar = LineBar(range(3), file=io.StringIO(), mininterval=0.5, delay=delay)
    assert bar.mininterval == bar.delay == 60
    bar.close()


def test_a_notebook_gets_its_widget(monkeypatch):
    """There standard error is no terminal, and the bar is drawn by the browser."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not progress_module.is_watched()
    monkeypatch.setattr(auto, "notebook_tqdm", type("Widget", (TerminalBar,), {}))
    assert progress_module.is_watched()
