"""Training losses and val metrics over the epochs of the stages, drawn once or live."""

from collections.abc import Mapping
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtl_utils.evaluation import TaskMetrics
from mtl_utils.plots.style import SMALLEST_TEXT, TASK_COLOURS, TASK_LINES, TASK_MARKS
from mtl_utils.tasks import METRIC_NAMES, TASK_NAMES, TASKS, Task
from mtl_utils.training import BOXES_FROM_MASKS, REMEDIES, EpochRecord, Trainer

Histories = Mapping[Task, list[EpochRecord]]  # by stage
Quantity = Literal["loss", "val"]

FIGSIZE = (11, 3.8)  # inches
LEGEND_ROOM = 1.3  # height of an axis as a multiple of its highest value
OTHER_TERMS = {BOXES_FROM_MASKS: "boxes from masks", REMEDIES: "remedies"}  # loss terms of no single task, their names
OTHER_LINES = {BOXES_FROM_MASKS: ":", REMEDIES: (0, (1, 3))}


def learning_curves(histories: Histories, before: Mapping[Task, TaskMetrics] | None = None) -> Figure:
    """Every loss term and the val metric of every task over the epochs of one or more stages.

    before: the metrics at the end of the stage before the first of them; its curves then begin at epoch 0.
    """
    figure, axes = plt.subplots(1, 2, figsize=FIGSIZE, layout="constrained")
    draw_curves(axes, histories, before or {})
    return figure


def draw_curves(axes: np.ndarray, histories: Histories, before: Mapping[Task, TaskMetrics]) -> None:
    """Fill two axes: losses at the left, metrics at the right; stages are divided by a grey line."""
    left, right = axes
    for task in TASKS:
        draw_curve(left, *points(histories, "loss", task), task, TASK_NAMES[task], marker="")
        epochs, values = points(histories, "val", task)
        if task in before:
            epochs = [0, *epochs]
            values = [before[task].value, *values]
        draw_curve(right, epochs, values, task, METRIC_NAMES[task], marker=TASK_MARKS[task])
    for term, name in OTHER_TERMS.items():
        epochs, values = points(histories, "loss", term)
        if epochs:
            left.plot(epochs, values, label=name, color="0.3", linestyle=OTHER_LINES[term])
    draw_rate(left, histories)
    finish_axis(left, histories, "training loss")
    finish_axis(right, histories, "metric on val")


def draw_rate(axis: Axes, histories: Histories) -> None:
    """The learning rate after each epoch, its largest value as high as the largest loss."""
    offsets = epochs_before(histories)
    epochs, rates = [], []
    for stage, history in histories.items():
        epochs += [offsets[stage] + record.epoch for record in history]
        rates += [record.lr for record in history]
    if not rates or not max(rates):
        return
    scale = highest_value(axis) / max(rates)
    heights = [scale * rate for rate in rates]
    axis.plot(epochs, heights, color="0.75", linewidth=1, zorder=0, label="learning rate (scaled)")


def draw_curve(axis: Axes, epochs: list[int], values: list[float], task: Task, label: str, marker: str) -> None:
    """The curve of one task, where there is anything to draw."""
    if epochs:
        axis.plot(
            epochs,
            values,
            label=label,
            color=TASK_COLOURS[task],
            linestyle=TASK_LINES[task],
            marker=marker,
            markersize=4,
        )


def points(histories: Histories, quantity: Quantity, name: str) -> tuple[list[int], list[float]]:
    """Epochs, counted through all stages, and values of a loss term or of a task's metric on val, by name."""
    epochs = []
    values = []
    offsets = epochs_before(histories)
    for stage, history in histories.items():
        for record in history:
            by_name: Mapping[str, float] | None = record.loss if quantity == "loss" else record.val
            if by_name is not None and name in by_name:  # val is not measured in every epoch
                epochs.append(offsets[stage] + record.epoch)
                values.append(by_name[name])
    return epochs, values


def epochs_before(histories: Histories) -> dict[Task, int]:
    """The number of epochs before each stage, for one time axis through all of them."""
    offsets = {}
    before = 0
    for stage in TASKS:
        if stage in histories:
            offsets[stage] = before
            before += len(histories[stage])
    return offsets


def finish_axis(axis: Axes, histories: Histories, title: str) -> None:
    """The stages, the names of the axes, whole epochs, and a legend above the curves."""
    has_curves = bool(axis.lines)
    top = LEGEND_ROOM * highest_value(axis) or 1
    offsets = epochs_before(histories)
    mark_stages(axis, {TASK_NAMES[stage]: offset for stage, offset in offsets.items()})
    axis.set(xlabel="epoch", ylabel=title, xlim=(0, None), ylim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if has_curves:
        axis.set_ylim(0, top)
        axis.legend(frameon=False, fontsize=SMALLEST_TEXT, loc="upper center", ncols=len(TASKS))


def highest_value(axis: Axes) -> float:
    """The highest value of all curves drawn so far, 0 without any."""
    return max((float(np.max(curve.get_ydata())) for curve in axis.lines), default=0.0)


def mark_stages(axis: Axes, starts: Mapping[str, int]) -> None:
    """A grey line at the epoch where each stage begins, its name above."""
    in_data_and_axes = axis.get_xaxis_transform()  # x in epochs, y as a part of the axis
    for name, start in starts.items():
        axis.axvline(start, color="0.8", linewidth=1, zorder=0)
        axis.text(start, 1.01, f" {name}", transform=in_data_and_axes, fontsize=SMALLEST_TEXT, color="0.4")


class LiveCurve:
    """Called after each epoch: redraws the curves of the running stage in place."""

    def __init__(self) -> None:
        self.figure: Figure | None = None
        self.axes: np.ndarray | None = None
        self.handle: Any = None  # IPython's, of the figure that is shown

    def __call__(self, trainer: Trainer) -> None:
        """Draw the trainer's history."""
        from IPython.display import display  # here, so that everything else works without Jupyter

        if self.figure is None or self.axes is None:
            self.figure, self.axes = plt.subplots(1, 2, figsize=FIGSIZE, layout="constrained")
            plt.close(self.figure)  # else the notebook would show it once more at the end of the cell
        for axis in self.axes:
            axis.clear()
        draw_curves(self.axes, {trainer.task: trainer.history}, {})
        if self.handle is None:
            self.handle = display(self.figure, display_id=True)
        else:
            self.handle.update(self.figure)
