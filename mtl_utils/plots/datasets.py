"""Figures of the data sets: class balance, sizes of images and objects."""

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mtl_utils.data import MiniSet, classes_of
from mtl_utils.plots.style import SMALLEST_TEXT, TASK_COLOURS, TASK_MARKS
from mtl_utils.tasks import TASK_NAMES, Task

COUNTED: dict[Task, str] = {"seg": "images that show it", "det": "boxes", "cls": "images"}  # what class_counts counts


def class_counts(dataset: MiniSet) -> Counter[int]:
    """How often each class index stands in a set: images that show it (seg), boxes (det), images (cls)."""
    counts: Counter[int] = Counter()
    for target in dataset.targets():
        labels = classes_of(dataset.task, target)
        counts.update(labels)
    return counts


def class_balance(datasets: dict[Task, MiniSet]) -> Figure:
    """How often each class occurs in the training set of each task."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.4), layout="constrained")
    for axis, dataset in zip(axes, datasets.values(), strict=True):
        draw_class_counts(axis, dataset)
    return figure


def draw_class_counts(axis: Axes, dataset: MiniSet) -> None:
    """A bar for each class of a set; segmentation's background is left out, since it is in every image."""
    task = dataset.task
    names = dataset.classes.names(task)
    counts = class_counts(dataset)
    first = 1 if task == "seg" else 0
    shown = range(first, len(names))
    values = [counts[index] for index in shown]
    bars = axis.barh(names[first:], values, color=TASK_COLOURS[task])
    axis.bar_label(bars, fontsize=SMALLEST_TEXT, padding=2)
    axis.set(title=TASK_NAMES[task], xlabel=COUNTED[task])
    axis.invert_yaxis()  # the first class on top
    axis.tick_params(axis="y", labelsize=8, length=0)


def image_sizes(datasets: dict[Task, MiniSet]) -> Figure:
    """Width against height of all training images, and the sides of all boxes as a share of their image's."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    draw_image_sizes(axes[0], datasets)
    draw_box_sides(axes[1], datasets["det"])
    return figure


def draw_image_sizes(axis: Axes, datasets: dict[Task, MiniSet]) -> None:
    """A point for each image: width and height in pixels, as they are trained on (large photographs are reduced)."""
    for task, dataset in datasets.items():
        sizes = np.array([image.shape[-2:] for image, _ in dataset.samples])  # (N, 2): height, width
        axis.scatter(
            sizes[:, 1],
            sizes[:, 0],
            label=TASK_NAMES[task],
            color=TASK_COLOURS[task],
            marker=TASK_MARKS[task],
            s=14,
            alpha=0.5,
        )
    axis.set(title="images", xlabel="width (pixels)", ylabel="height (pixels)")
    axis.set(xlim=(0, None), ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)


def draw_box_sides(axis: Axes, dataset: MiniSet) -> None:
    """A histogram of all boxes' sides, each as a share of the longer side of its image."""
    shares = []
    for image, target in dataset.samples:
        longer = max(image.shape[-2:])
        shares.append(box_sides(target["boxes"]) / longer)
    axis.hist(torch.cat(shares).numpy(), bins=30, color=TASK_COLOURS["det"])
    axis.set(title="objects to detect", xlabel="side of the box / longer side of the image", ylabel="boxes")


def box_sides(boxes: Tensor) -> Tensor:
    """Side (N,) of the square of the same area as each box, (N, 4) XYXY."""
    sizes = boxes[:, 2:] - boxes[:, :2]  # (N, 2): width, height
    return sizes.prod(1).sqrt()
