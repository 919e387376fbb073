"""Figures of one run's metrics: R matrix, confusion, precision and recall, bars of every class."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from mtl_utils.forgetting import r_matrix
from mtl_utils.plots.style import TASK_COLOURS
from mtl_utils.tasks import METRIC_NAMES, TASK_NAMES, TASKS


def matrix_heatmap(metrics: dict) -> Figure:
    """The R matrix as a heat map: each column shaded against its own largest value."""
    matrix = r_matrix(metrics)
    shade = matrix / np.nanmax(matrix, axis=0, keepdims=True)
    figure, axis = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    rows = [f"after stage {i + 1}\n({TASK_NAMES[task]})" for i, task in enumerate(TASKS)]
    columns = [METRIC_NAMES[task] for task in TASKS]
    look = {"cmap": "Blues", "vmin": 0, "vmax": 1.3, "cbar": False, "linewidths": 2, "mask": np.isnan(matrix)}
    sns.heatmap(shade, annot=matrix, fmt=".3f", xticklabels=columns, yticklabels=rows, ax=axis, **look)
    axis.tick_params(length=0, axis="both")
    plt.setp(axis.get_yticklabels(), rotation=0)
    return figure


def confusion_matrices(metrics: dict[str, dict], names: dict[str, list[str]]) -> Figure:
    """Confusion of segmentation (pixels) and classification (images), each row divided by its sum."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.6), layout="constrained")
    for axis, task in zip(axes, ("seg", "cls"), strict=True):
        matrix = np.array(metrics[task]["confusion"], dtype=float)
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        look = {"cmap": "Blues", "vmin": 0, "vmax": 1, "square": True, "cbar": task == "cls"}
        sns.heatmap(share, xticklabels=names[task], yticklabels=names[task], ax=axis, **look)
        axis.set(xlabel="predicted", ylabel="true", title=f"{TASK_NAMES[task]} (share of the true class)")
        axis.tick_params(labelsize=8, length=0)
    return figure


def precision_recall(precision: np.ndarray, names: list[str]) -> Figure:
    """COCO's precision (overlaps, 101, C) against recall at an overlap of .5: a panel a class, its area the AP@50."""
    figure, axes = plt.subplots(
        2, (len(names) + 1) // 2, figsize=(11, 4.2), layout="constrained", sharex=True, sharey=True
    )
    for axis, name, values in zip(axes.flat, names, precision[0].T, strict=False):
        known = values.min() > -1  # COCO's -1: no object of this class
        axis.fill_between(np.linspace(0, 1, len(values)), values if known else 0, color=TASK_COLOURS["det"], alpha=0.5)
        area = f"{values.mean():.2f}" if known else "no object"
        axis.set_title(f"{name} ({area})", fontsize=9)
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
    for axis in axes[:, 0]:
        axis.set_ylabel("precision")
    for axis in axes[-1]:
        axis.set_xlabel("recall")
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    return figure


def class_bars(metrics: dict[str, dict]) -> Figure:
    """IoU, AP@50 and recall of every class; dotted: their mean, grey: the floor, a cross: class absent in this set."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.6), layout="constrained")
    for axis, task, label in zip(axes, TASKS, ("IoU", "AP@50", "recall"), strict=True):
        names, values = zip(*metrics[task]["per_class"].items(), strict=True)
        axis.barh(names, [v or 0 for v in values], color=TASK_COLOURS[task])
        for i, value in enumerate(values):
            text = "×" if value is None else f"{value:.2f}"
            axis.text((value or 0) + 0.01, i, text, va="center", fontsize=7)
        axis.axvline(metrics[task][METRIC_NAMES[task]], color="0.3", linestyle=":")
        axis.axvline(metrics[task]["floor"], color="0.6", linewidth=1)
        axis.set(xlim=(0, 1.08), xlabel=label, title=TASK_NAMES[task])
        axis.invert_yaxis()
        axis.tick_params(axis="y", labelsize=8, length=0)
    return figure
