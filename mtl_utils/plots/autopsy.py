"""Figures of the autopsy: what some steps without replay do to segmentation, and where in the network."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from scipy import ndimage
from torch import Tensor

from mtl_utils.data import Sample
from mtl_utils.detection import STRIDE
from mtl_utils.evaluation import predict
from mtl_utils.experiments.autopsy import FATES
from mtl_utils.experiments.cell_scores import Cells, named_scores
from mtl_utils.model import UnifiedModel
from mtl_utils.plots import pictures
from mtl_utils.plots.style import SMALLEST_TEXT, TASK_COLOURS
from mtl_utils.tasks import VOC_CLASSES
from mtl_utils.transforms import to_batch

LINES = ("--", "-", ":", (0, (6, 2, 1, 2, 1, 2)), "-.")  # of the networks, in order
MARKERS = ("o", "s", "^", "v", "D")
FATE_COLOURS = ("#0072B2", "#E69F00", "#BBBBBB")  # one for each of FATES; dark, middle and light in grey
HEADROOM = 1.1  # height of an axis as a multiple of the curve's
NAMED_SHARE = 0.005  # of an image: a smaller area has no room for its name
LEAST_SHARE = 0.05  # that has room for its number
BAR_COLOURS = ("#555555", "#BBBBBB", "#FFFFFF")  # of the networks, in order
HATCHES = ("//", "", "..")
ABOVE = (0.5, 1)  # where a legend stands, in parts of its axes
CIRCLE = 3  # cells from the middle of a circle around a cell to its edge
THICKNESS = 0.27  # of one of three bars that stand side by side


def score_curves(curves: Mapping[str, Mapping[int, float]]) -> Figure:
    """mIoU over the steps of stage 2, one line a way of training."""
    figure, axis = plt.subplots(figsize=(5.6, 3), layout="constrained")
    for (name, scores), line, marker in zip(curves.items(), cycle(LINES), cycle(MARKERS), strict=False):
        steps = list(scores)
        values = list(scores.values())
        axis.plot(
            steps, values, linestyle=line, marker=marker, color=TASK_COLOURS["seg"], markerfacecolor="white", label=name
        )
    axis.set_xlabel("steps of training on detection")
    axis.set_ylabel("mIoU of segmentation")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def mask_pictures(networks: Mapping[str, UnifiedModel], samples: Sequence[Sample], size: int) -> Figure:
    """Photographs by row: the true mask, and that of each network; `size`: side of the input."""
    rows = len(samples)
    figure, axes = pictures.make_grid(rows, 1 + len(networks), (10, 1.8 * rows))
    for row, (image, target) in zip(axes, samples, strict=True):
        draw_named_mask(row[0], image, target["mask"])
        for axis, network in zip(row[1:], networks.values(), strict=True):
            draw_named_mask(axis, image, predict(network, [image], size)[0].mask)
    for axis, name in zip(axes[0], ["truth", *networks], strict=True):
        axis.set_title(name, fontweight="bold", fontsize=10)
    return figure


def draw_named_mask(axis: Axes, image: Tensor, mask: Tensor) -> None:
    """A mask (H, W) over its image (3, H, W), the name of each class on its largest area; tiny areas have none."""
    pictures.draw_image(axis, image)
    pictures.draw_mask(axis, mask)
    for index in range(1, len(VOC_CLASSES)):
        areas, count = ndimage.label(mask.numpy() == index)
        if not count:
            continue
        pixels = np.bincount(areas.flat)[1:]  # of each area
        largest = int(pixels.argmax()) + 1
        if pixels.max() < NAMED_SHARE * mask.numel():
            continue
        row, column = ndimage.center_of_mass(areas == largest)
        name = VOC_CLASSES[index]
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
        axis.text(column, row, name, fontsize=SMALLEST_TEXT, ha="center", va="center", bbox=box)


def fate_bars(fates: Mapping[str, Mapping[str, float]]) -> Figure:
    """What becomes of the pixels of true objects, one stacked bar a network."""
    height = 0.5 * len(fates) + 1.2  # inches
    figure, axis = plt.subplots(figsize=(6.4, height), layout="constrained")
    left = np.zeros(len(fates))
    for index, fate in enumerate(FATES):
        shares = np.array([of_network[fate] for of_network in fates.values()])  # (networks,)
        draw_fate(axis, list(fates), left, shares, index)
        left += shares
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.legend(loc="lower center", bbox_to_anchor=ABOVE, ncols=len(FATES), frameon=False)
    return figure


def draw_fate(axis: Axes, names: list[str], left: np.ndarray, shares: np.ndarray, index: int) -> None:
    """The part of all bars that belongs to one of FATES; left, shares: (networks,)."""
    bars = axis.barh(
        names,
        shares,
        left=left,
        color=FATE_COLOURS[index],
        hatch=HATCHES[index],
        edgecolor="white",
        label=FATES[index],
    )
    texts = [f"{share:.0%}" if share > LEAST_SHARE else "" for share in shares]
    labels = axis.bar_label(bars, texts, label_type="center")
    for label in labels:
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})


def one_cell(cells: Cells, number: int, samples: Sequence[Sample], size: int) -> Figure:
    """One of the cells: a circle around it in its letterboxed image, and its highest class scores before and after."""
    index, row, column = cells.places[number].tolist()
    photograph, _ = samples[index]
    batch, _ = to_batch([photograph], size)  # (1, 3, size, size)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    pictures.draw_image(left, (255 * batch[0]).byte())
    middle = (STRIDE * (column + 0.5), STRIDE * (row + 0.5))
    for width, colour in ((4, "white"), (2, "black")):
        left.add_patch(Circle(middle, CIRCLE * STRIDE, fill=False, edgecolor=colour, linewidth=width))
    true = VOC_CLASSES[int(cells.classes[number])]
    left.set_title(f"a cell of the class {true}", fontsize=10)
    draw_scores(right, named_scores(cells, number))
    return figure


def draw_scores(axis: Axes, scores: pd.DataFrame) -> None:
    """Bars of class scores: a group for each row, a bar for each column."""
    for index, name in enumerate(scores.columns):
        places = np.arange(len(scores)) + index * THICKNESS
        colour, hatch = BAR_COLOURS[index], HATCHES[index]
        bars = axis.bar(places, scores[name], THICKNESS, color=colour, hatch=hatch, edgecolor="black", label=name)
        texts = [f"{round(value, 1) + 0:.1f}" for value in scores[name]]  # + 0: no -0.0
        axis.bar_label(bars, texts, fontsize=SMALLEST_TEXT)
    axis.set_xticks(np.arange(len(scores)) + THICKNESS / 2, scores.index)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_ylabel("class score")
    axis.legend(frameon=False)


def change_bars(changes: Mapping[str, Mapping[str, float]]) -> Figure:
    """The relative change of the features after each part, a bar for each of up to three networks."""
    figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
    for index, name in enumerate(changes):
        draw_changes(axis, changes[name], name, index)
    parts = list(next(iter(changes.values())))
    middles = np.arange(len(parts)) + THICKNESS * (len(changes) - 1) / 2
    axis.set_xticks(middles, in_two_lines(parts))
    axis.set_ylabel("relative change")
    axis.legend(loc="lower center", bbox_to_anchor=ABOVE, ncols=len(changes), frameon=False)
    return figure


def draw_changes(axis: Axes, of_parts: Mapping[str, float], name: str, index: int) -> None:
    """The bars of one network."""
    places = np.arange(len(of_parts)) + index * THICKNESS
    values = list(of_parts.values())
    bars = axis.bar(
        places,
        values,
        THICKNESS,
        label=name,
        color=BAR_COLOURS[index],
        hatch=HATCHES[index],
        edgecolor="black",
    )
    texts = [f"{value:.2f}" for value in values]
    axis.bar_label(bars, texts, fontsize=SMALLEST_TEXT)


def path_curve(scores: Mapping[float, float]) -> Figure:
    """mIoU on the straight path from the network before to the network after."""
    figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    shares = list(scores)
    values = list(scores.values())
    axis.plot(shares, values, "-o", color=TASK_COLOURS["seg"])
    axis.set_xlabel("a (0: the network before, 1: the one after)")
    axis.set_ylabel("mIoU of segmentation")
    axis.set_ylim(0, HEADROOM * axis.get_ylim()[1])
    return figure


def ladder_bars(ladders: pd.DataFrame) -> Figure:
    """mIoU of each network (a row) as it is and after each refit (columns): a group of bars a column."""
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    rungs = list(ladders.columns)
    for index, network in enumerate(ladders.index):
        places = np.arange(len(rungs)) + index * THICKNESS
        bars = axis.bar(
            places,
            ladders.loc[network],
            THICKNESS,
            color=BAR_COLOURS[index],
            hatch=HATCHES[index],
            edgecolor="black",
            label=network,
        )
        axis.bar_label(bars, fmt="%.2f", fontsize=SMALLEST_TEXT)
    axis.set_xticks(np.arange(len(rungs)) + THICKNESS, rungs)
    axis.set_ylabel("mIoU of segmentation")
    axis.legend(loc="lower center", bbox_to_anchor=ABOVE, ncols=len(ladders), frameon=False)
    return figure


def cosine_boxes(cosines: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Cosines with the gradient of masks, a group of boxes for each part of the network, a box for each comparison."""
    figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    names = list(next(iter(cosines.values())))
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        values = [of_part[name] for of_part in cosines.values()]
        places = np.arange(len(values)) + (index - 1) * width
        axis.boxplot(
            values,
            positions=places,
            widths=0.8 * width,
            patch_artist=True,
            boxprops={"facecolor": FATE_COLOURS[index], "hatch": HATCHES[index]},
            medianprops={"color": "black"},
        )
        axis.bar(0, 0, color=FATE_COLOURS[index], hatch=HATCHES[index], label=name)  # for the legend
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(np.arange(len(cosines)), in_two_lines(cosines))
    axis.set_ylabel("cosine with the gradient of masks")
    axis.legend(loc="lower center", bbox_to_anchor=ABOVE, ncols=len(names), frameon=False)
    return figure


def in_two_lines(parts: Iterable[str]) -> list[str]:
    """The names of a network's parts, those of the head's layers in two lines."""
    return [part.replace(", ", ",\n") for part in parts]
