"""Figures of one run's metrics: R matrix, confusion, precision and recall, bars of every class."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl_utils.evaluation import StageMetrics, TaskMetrics
from mtl_utils.experiments.findings import CLASS_METRICS
from mtl_utils.forgetting import r_matrix
from mtl_utils.plots.style import SMALLEST_TEXT, TASK_COLOURS
from mtl_utils.tasks import COCO_NAME_OF_VOC, METRIC_NAMES, TASK_NAMES, TASKS, Task, stage_number

SHARED = " *"  # behind the name of a class that both segmentation and detection have
DARKEST = 1.3  # end of the colour scale: at 1 the numbers would be hard to read


def matrix_heatmap(metrics: StageMetrics) -> Figure:
    """The R matrix as a heat map: each column shaded against its own largest value."""
    matrix = r_matrix(metrics)  # (3, 3)
    shade = matrix / np.nanmax(matrix, axis=0, keepdims=True)
    rows = [f"after stage {stage_number(task)}\n({TASK_NAMES[task]})" for task in TASKS]
    columns = [METRIC_NAMES[task] for task in TASKS]
    figure, axis = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    sns.heatmap(
        shade,
        annot=matrix,
        fmt=".3f",
        mask=np.isnan(matrix),
        xticklabels=columns,
        yticklabels=rows,
        ax=axis,
        cmap="Blues",
        vmin=0,
        vmax=DARKEST,
        cbar=False,
        linewidths=2,
    )
    axis.tick_params(length=0, axis="both")
    plt.setp(axis.get_yticklabels(), rotation=0)
    return figure


def confusion_matrices(metrics: Mapping[Task, TaskMetrics], names: Mapping[Task, Sequence[str]]) -> Figure:
    """Confusion of segmentation (pixels) and classification (images), each row divided by its sum."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.6), layout="constrained")
    draw_confusion(left, metrics["seg"], names["seg"], with_scale=False)
    draw_confusion(right, metrics["cls"], names["cls"], with_scale=True)  # it is that of both
    return figure


def draw_confusion(axis: Axes, metrics: TaskMetrics, names: Sequence[str], with_scale: bool) -> None:
    """The confusion matrix of one task."""
    matrix = np.array(metrics.confusion, dtype=float)  # (C, C), true class by row
    totals = matrix.sum(1, keepdims=True)
    share = matrix / np.maximum(totals, 1)  # a class without examples stays 0
    sns.heatmap(
        share,
        xticklabels=names,
        yticklabels=names,
        ax=axis,
        cmap="Blues",
        vmin=0,
        vmax=1,
        square=True,
        cbar=with_scale,
    )
    title = f"{TASK_NAMES[metrics.task]} (share of the true class)"
    axis.set(xlabel="predicted", ylabel="true", title=title)
    axis.tick_params(labelsize=SMALLEST_TEXT, length=0)


def precision_recall(precision: np.ndarray, names: Sequence[str]) -> Figure:
    """COCO's precision (overlaps, 101, C) against recall at an overlap of .5: a panel a class, its area the AP@50."""
    columns = (len(names) + 1) // 2
    figure, axes = plt.subplots(
        2, columns, figsize=(11, 4.2), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    at_half = precision[0]  # (101, C)
    for axis, name, values in zip(axes.flat, names, at_half.T, strict=False):
        draw_precision(axis, name, values)
    for axis in axes[:, 0]:
        axis.set_ylabel("precision")
    for axis in axes[-1]:
        axis.set_xlabel("recall")
    for axis in axes.flat[len(names) :]:  # a panel is left over where their number is odd
        axis.set_axis_off()
    return figure


def draw_precision(axis: Axes, name: str, values: np.ndarray) -> None:
    """The panel of one class: its precision (101,) against recall."""
    has_objects = values.min() > -1  # COCO's -1: no object of this class
    recall = np.linspace(0, 1, len(values))
    shown = values if has_objects else 0
    area = f"{values.mean():.2f}" if has_objects else "no object"
    axis.fill_between(recall, shown, color=TASK_COLOURS["det"], alpha=0.5)
    axis.set_title(f"{name} ({area})", fontsize=9)
    axis.set(xlim=(0, 1), ylim=(0, 1.02))


def class_bars(metrics: Mapping[Task, TaskMetrics]) -> Figure:
    """IoU, AP@50 and recall of every class; dotted: their mean, grey: the floor, a cross: class absent in this set."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.6), layout="constrained")
    for axis, task in zip(axes, TASKS, strict=True):
        draw_class_bars(axis, metrics[task])
    return figure


def class_changes(metrics: StageMetrics) -> Figure:
    """Every class of segmentation and detection from the end of its own stage (hollow) to the last stage (filled)."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 5.2), layout="constrained")
    of_seg = {coco_name(name) for name in metrics["seg"]["seg"].per_class}
    shared = of_seg & set(metrics["det"]["det"].per_class)
    for axis, task in zip(axes, ("seg", "det"), strict=True):
        draw_class_changes(axis, metrics, task, shared)
    return figure


def draw_class_changes(axis: Axes, metrics: StageMetrics, task: Task, shared: set[str]) -> None:
    """The panel of one task; classes without a value are left out."""
    own = metrics[task][task].per_class
    final = metrics[TASKS[-1]][task].per_class
    names = []
    starts: list[float] = []
    ends: list[float] = []
    for name, start in own.items():
        end = final[name]
        if start is not None and end is not None:
            names.append(name)
            starts.append(start)
            ends.append(end)
    rows = np.arange(len(names))
    colour = TASK_COLOURS[task]
    axis.hlines(rows, starts, ends, color=colour, linewidth=2)
    axis.plot(starts, rows, "o", color=colour, markerfacecolor="white", label="after its own stage")
    axis.plot(ends, rows, "o", color=colour, label="after the last stage")
    labels = [name + SHARED if coco_name(name) in shared else name for name in names]
    axis.set_yticks(rows, labels, fontsize=SMALLEST_TEXT)
    axis.set(xlim=(0, 1), xlabel=CLASS_METRICS[task], title=TASK_NAMES[task])
    axis.invert_yaxis()  # the first class on top
    axis.grid(axis="y", color="0.9")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False, fontsize=SMALLEST_TEXT)


def coco_name(name: str) -> str:
    """COCO's name of a class of VOC; a name of COCO's stays."""
    return COCO_NAME_OF_VOC.get(name, name)


def draw_class_bars(axis: Axes, metrics: TaskMetrics) -> None:
    """The panel of one task."""
    names = list(metrics.per_class)
    values = [value or 0 for value in metrics.per_class.values()]
    axis.barh(names, values, color=TASK_COLOURS[metrics.task])
    for row, value in enumerate(metrics.per_class.values()):
        text = "×" if value is None else f"{value:.2f}"
        axis.text((value or 0) + 0.01, row, text, va="center", fontsize=SMALLEST_TEXT)
    axis.axvline(metrics.value, color="0.3", linestyle=":")
    axis.axvline(metrics.floor, color="0.6", linewidth=1)
    axis.set(xlim=(0, 1.08), xlabel=CLASS_METRICS[metrics.task], title=TASK_NAMES[metrics.task])
    axis.invert_yaxis()  # the first class on top
    axis.tick_params(axis="y", labelsize=SMALLEST_TEXT, length=0)
