"""A figure of where detection loses: what each kind of error costs, and average precision by object size."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl_utils.experiments.breakdown import Breakdown
from mtl_utils.plots.style import SMALLEST_TEXT, TASK_COLOURS

ROOM = 1.25  # length of an axis against its longest bar: the rest is for the number at the bar's end
LEAST_SPAN = 0.01  # of the axis of gains, where all are next to nothing


def error_bars(breakdown: Breakdown) -> Figure:
    """The mAP@50 that mending each kind of error alone gains, and AP@50 by object size; a cross: no object."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", width_ratios=(3, 2))
    draw_gains(left, breakdown)
    draw_sizes(right, breakdown)
    return figure


def draw_gains(axis: Axes, breakdown: Breakdown) -> None:
    """The panel of the kinds of error."""
    names, texts = [], []
    for kind, gain in breakdown.gains.items():
        count = breakdown.errors[kind]
        names.append(f"{kind} ({count})")
        texts.append(f"+{gain:.3f}")
    gains = list(breakdown.gains.values())
    draw_bars(axis, names, gains, texts)
    longest = max(LEAST_SPAN, *gains)
    axis.set_xlim(0, ROOM * longest)
    axis.set_xlabel("gain in mAP@50 if this kind alone is mended")
    axis.set_title(f"kind of error (how many), at mAP@50 {breakdown.map50:.3f}")


def draw_sizes(axis: Axes, breakdown: Breakdown) -> None:
    """The panel of the sizes."""
    names, lengths, texts = [], [], []
    for size, scores in breakdown.sizes.items():
        value = scores.ap50
        names.append(f"{size} ({scores.objects})")
        lengths.append(value or 0.0)
        texts.append("×" if value is None else f"{value:.3f}")
    draw_bars(axis, names, lengths, texts)
    axis.set_xlim(0, ROOM)
    axis.set_xticks([0, 0.5, 1])
    axis.set_xlabel("AP@50")
    axis.set_title("size (objects)")


def draw_bars(axis: Axes, names: list[str], lengths: list[float], texts: list[str]) -> None:
    """Horizontal bars, the first on top, each with a text at its end."""
    colour = TASK_COLOURS["det"]
    bars = axis.barh(names, lengths, color=colour)
    axis.bar_label(bars, texts, padding=3, fontsize=SMALLEST_TEXT)
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
