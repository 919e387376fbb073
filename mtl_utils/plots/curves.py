"""Training losses and val metrics over the epochs of the stages, drawn once or live."""

from collections.abc import Mapping
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtl_utils.plots.style import SMALLEST_TEXT, TASK_COLOURS, TASK_LINES, TASK_MARKS
from mtl_utils.tasks import METRIC_NAMES, TASK_NAMES, TASKS, Task
from mtl_utils.training import EpochRecord, Trainer

Histories = Mapping[Task, list[EpochRecord]]  # by stage
Quantity = Literal["loss", "val"]

FIGSIZE = (11, 3.8)  # inches
LEGEND_ROOM = 1.2  # height of an axis as a multiple of its highest value


def learning_curves(histories: Histories) -> Figure:
    """Training loss and val metric of every task over the epochs of one or more stages."""
    figure, axes = plt.subplots(1, 2, figsize=FIGSIZE, layout="constrained")
    draw_curves(axes, histories)
    return figure


def draw_curves(axes: np.ndarray, histories: Histories) -> None:
    """Fill two axes: losses at the left, metrics at the right; stages are divided by a grey line."""
    left, right = axes
    for task in TASKS:
        draw_curve(left, histories, "loss", task, TASK_NAMES[task], marker="")
        draw_curve(right, histories, "val", task, METRIC_NAMES[task], marker=TASK_MARKS[task])
    finish_axis(left, histories, "training loss")
    finish_axis(right, histories, "metric on val")


def draw_curve(axis: Axes, histories: Histories, quantity: Quantity, task: Task, label: str, marker: str) -> None:
    """The curve of one task, where there is anything to draw."""
    epochs, values = points(histories, quantity, task)
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


def points(histories: Histories, quantity: Quantity, task: Task) -> tuple[list[int], list[float]]:
    """Epochs, counted through all stages, and values of a task's loss or its metric on val.

    Loss terms that belong to no single task (boxes from masks, remedies) are not drawn.
    """
    epochs = []
    values = []
    offsets = epochs_before(histories)
    for stage, history in histories.items():
        for record in history:
            by_task = record.loss if quantity == "loss" else record.val
            if by_task is not None and task in by_task:  # val is not measured in every epoch
                epochs.append(offsets[stage] + record.epoch)
                values.append(by_task[task])
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
        axis.legend(frameon=False, fontsize=9, loc="upper center", ncols=len(TASKS))


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
        draw_curves(self.axes, {trainer.task: trainer.history})
        if self.handle is None:
            self.handle = display(self.figure, display_id=True)
        else:
            self.handle.update(self.figure)
