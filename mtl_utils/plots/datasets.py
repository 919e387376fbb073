"""Figures of the data sets: class balance, sizes of images and objects."""

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mtl_utils.data import MiniSet, classes_of
from mtl_utils.plots.style import TASK_COLOURS
from mtl_utils.tasks import TASK_NAMES


def class_counts(dataset: MiniSet) -> Counter:
    """How often each class index stands in a set: images that show it (seg), boxes (det), images (cls)."""
    counts = Counter()
    for _, target in dataset.samples:
        counts.update(classes_of(dataset.task, target))
    return counts


def class_balance(datasets: dict[str, MiniSet]) -> Figure:
    """How often each class occurs in the training set of each task."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.4), layout="constrained")
    units = {"seg": "images that show it", "det": "boxes", "cls": "images"}
    for axis, (task, dataset) in zip(axes, datasets.items(), strict=True):
        counts, names = class_counts(dataset), dataset.classes.names(task)
        rows = [(name, counts[i]) for i, name in enumerate(names) if (task, i) != ("seg", 0)]
        bars = axis.barh([name for name, _ in rows], [n for _, n in rows], color=TASK_COLOURS[task])
        axis.bar_label(bars, fontsize=7, padding=2)
        axis.set(title=TASK_NAMES[task], xlabel=units[task])
        axis.invert_yaxis()
        axis.tick_params(axis="y", labelsize=8, length=0)
    return figure


def image_sizes(datasets: dict[str, MiniSet]) -> Figure:
    """Width against height of all training images, and the sides of all boxes as a share of their image's."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for (task, dataset), mark in zip(datasets.items(), "os^", strict=True):
        height, width = np.array([image.shape[-2:] for image, _ in dataset.samples]).T
        look = {"color": TASK_COLOURS[task], "marker": mark, "s": 14, "alpha": 0.5}
        axes[0].scatter(width, height, label=TASK_NAMES[task], **look)
    axes[0].set(xlabel="width (pixels)", ylabel="height (pixels)", title="images", xlim=(0, None), ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=8)
    sides = [box_sides(target["boxes"]) / max(image.shape[-2:]) for image, target in datasets["det"].samples]
    axes[1].hist(torch.cat(sides).numpy(), bins=30, color=TASK_COLOURS["det"])
    axes[1].set(xlabel="side of the box / longer side of the image", ylabel="boxes", title="objects to detect")
    return figure


def box_sides(boxes: Tensor) -> Tensor:
    """Side (N,) of the square of the same area as each box (N, 4)."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt().as_subclass(Tensor)
