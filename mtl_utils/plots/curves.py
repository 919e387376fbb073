"""Training losses and val metrics over the epochs of the stages, drawn once or live."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtl_utils.plots.style import TASK_COLOURS, TASK_LINES, TASK_MARKS
from mtl_utils.tasks import METRIC_NAMES, TASK_NAMES, TASKS


def epochs_before(histories: dict[str, list[dict]]) -> dict[str, int]:
    """The number of epochs before each stage, for one time axis through all of them."""
    lengths = [len(histories.get(task, [])) for task in TASKS]
    return {task: sum(lengths[:i]) for i, task in enumerate(TASKS) if task in histories}


def learning_curves(histories: dict[str, list[dict]]) -> Figure:
    """Training loss and val metric of every task over the epochs of one or more stages."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    draw_curves(axes, histories)
    return figure


def draw_curves(axes: np.ndarray, histories: dict[str, list[dict]]) -> None:
    """Fill two axes: losses at the left, metrics at the right; stages are divided by a grey line."""
    offset = epochs_before(histories)
    for task in TASKS:
        look = {"color": TASK_COLOURS[task], "linestyle": TASK_LINES[task]}
        for label, (x, y), axis, mark in (
            (TASK_NAMES[task], points(histories, offset, "loss", task), axes[0], ""),
            (METRIC_NAMES[task], points(histories, offset, "val", task), axes[1], TASK_MARKS[task]),
        ):
            if x:
                axis.plot(x, y, label=label, marker=mark, markersize=4, **look)
    for axis, title in zip(axes, ("training loss", "metric on val"), strict=True):
        mark_stages(axis, {TASK_NAMES[stage]: start for stage, start in offset.items()})
        axis.set(xlabel="epoch", ylabel=title, xlim=(0, None), ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if curves := axis.get_legend_handles_labels()[0]:
            axis.set_ylim(0, 1.2 * max(max(curve.get_ydata()) for curve in curves) or 1)  # room for the legend
            axis.legend(frameon=False, fontsize=9, loc="upper center", ncols=len(TASKS))


def mark_stages(axis: Axes, starts: dict[str, int]) -> None:
    """A grey line at the epoch where each stage begins, its name above."""
    for name, start in starts.items():
        axis.axvline(start, color="0.8", linewidth=1, zorder=0)
        axis.text(start, 1.01, f" {name}", transform=axis.get_xaxis_transform(), fontsize=8, color="0.4")


def points(histories: dict, offset: dict[str, int], key: str, task: str) -> tuple[list, list]:
    """x (epoch through all stages) and y of the values of a task that the histories hold under `key`."""
    pairs = [
        (offset[stage] + entry["epoch"], entry[key][task])
        for stage, history in histories.items()
        for entry in history
        if task in entry.get(key, {})
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]


class LiveCurve:
    """Called after each epoch: redraws the curves of the running stage in place."""

    def __init__(self):
        self.figure, self.handle = None, None

    def __call__(self, trainer) -> None:
        """Draw the trainer's history."""
        from IPython.display import display

        if self.figure is None:
            self.figure, self.axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
            plt.close(self.figure)
        for axis in self.axes:
            axis.clear()
        draw_curves(self.axes, {trainer.task: trainer.history})
        if self.handle is None:
            self.handle = display(self.figure, display_id=True)
        else:
            self.handle.update(self.figure)
