"""The figure of the errors' costs: what each bar says, in text that can be read."""

import pytest
from matplotlib.text import Text

from mtl_utils.experiments.breakdown import KINDS, Breakdown, SizeScores
from mtl_utils.plots.breakdown import error_bars
from mtl_utils.plots.style import SMALLEST_TEXT

GAINS = [0.06, 0.23, 0.01, 0.0, 0.02, 0.07]
BREAKDOWN = Breakdown(
    map50=0.25,
    errors=dict(zip(KINDS, range(6), strict=True)),
    gains=dict(zip(KINDS, GAINS, strict=True)),
    sizes={
        "small": SizeScores(objects=5, ap50=0.0, ap=0.0, matched=0, median_iou=None),
        "medium": SizeScores(objects=3, ap50=0.4, ap=0.2, matched=2, median_iou=0.5),
        "large": SizeScores(objects=0, ap50=None, ap=None, matched=0, median_iou=None),
    },
)


def test_no_text_is_too_small():
    texts = [text for text in error_bars(BREAKDOWN).findobj(Text) if text.get_text()]
    assert texts and min(text.get_fontsize() for text in texts) >= SMALLEST_TEXT


def test_the_bars_are_the_gains_with_their_numbers_at_the_ends():
    axis = error_bars(BREAKDOWN).axes[0]
    assert [bar.get_width() for bar in axis.patches] == GAINS
    assert [text.get_text() for text in axis.texts] == ["+0.060", "+0.230", "+0.010", "+0.000", "+0.020", "+0.070"]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == [f"{kind} ({count})" for count, kind in enumerate(KINDS)]
    assert axis.get_xlim() == pytest.approx((0, 1.25 * 0.23)), "room for the number of the longest bar"


def test_the_sizes_have_a_cross_where_there_is_no_object():
    axis = error_bars(BREAKDOWN).axes[1]
    assert [bar.get_width() for bar in axis.patches] == [0, 0.4, 0]
    assert [text.get_text() for text in axis.texts] == ["0.000", "0.400", "×"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["small (5)", "medium (3)", "large (0)"]


def test_gains_of_nothing_are_drawn_all_the_same():
    nothing = Breakdown(0.0, dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0.0), BREAKDOWN.sizes)
    axis = error_bars(nothing).axes[0]
    assert axis.get_xlim()[1] > 0
