"""Which cells of the map learn which object, drawn over an image as training sees it."""

from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from mtl_utils.data import Sample, Target
from mtl_utils.detection import STRIDE, assign_targets, cell_centres
from mtl_utils.plots.pictures import draw_image
from mtl_utils.tasks import Classes
from mtl_utils.transforms import Letterbox

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")  # Okabe and Ito
LINES = ("-", "--", "-.", ":")  # of the boxes, for readers who see no colours
TEXT_SIZE = 9  # points


class Learned(NamedTuple):
    """An object, and where the cells that learn it are."""

    number: int  # in the figure, from 1
    label: int  # class index
    box: Tensor  # (4,) XYXY in pixels of the letterboxed image
    centres: Tensor  # (P, 2) of its cells, x and y in pixels of the letterboxed image


def learned_objects(target: Target, size: int) -> list[Learned]:
    """The objects of a letterboxed target, `size` pixels a side, with the cells that learn them; no crowds."""
    is_object = ~target["crowd"]  # cells below a crowd learn nothing
    boxes = target["boxes"].as_subclass(Tensor)[is_object]  # (M, 4)
    labels = target["labels"][is_object].tolist()
    cells_a_side = size // STRIDE
    centres = cell_centres(cells_a_side, cells_a_side)  # (N, 2)
    cells, owners = assign_targets(boxes, centres)  # (P,) each
    objects = []
    for index, label in enumerate(labels):
        own_cells = cells[owners == index]
        objects.append(Learned(index + 1, label, boxes[index], centres[own_cells]))
    return objects


def cell_assignment(sample: Sample, size: int, classes: Classes) -> Figure:
    """A training image with the boxes of its objects, and in each object's colour the cells that learn it.

    `size`: side in pixels of the input. A number joins each box to its cells, and to its line in the legend.
    """
    image, target = Letterbox(size)(*sample)
    objects = learned_objects(target, size)
    figure, axis = plt.subplots(figsize=(8.4, 5.2), layout="constrained")
    draw_image(axis, image.as_subclass(Tensor))
    for learned in objects:
        draw_cells(axis, learned)
    lines = [draw_outline(axis, learned) for learned in objects]
    texts = [legend_text(learned, classes) for learned in objects]
    left, top, right, bottom = target["content"].tolist()
    axis.set(xlim=(left, right), ylim=(bottom, top))  # without the grey padding
    axis.legend(lines, texts, loc="upper left", bbox_to_anchor=(1, 1), fontsize=TEXT_SIZE, frameon=False)
    return figure


def colour_of(learned: Learned) -> str:
    """The colour of an object; after the last colour the first one comes again."""
    return COLOURS[(learned.number - 1) % len(COLOURS)]


def draw_cells(axis: Axes, learned: Learned) -> None:
    """The cells of an object inside a black rim, with its number on the one that is nearest to their mean."""
    corners = (learned.centres - STRIDE / 2).tolist()
    for corner in corners:
        axis.add_patch(Rectangle(corner, STRIDE, STRIDE, facecolor="none", edgecolor="black", linewidth=4))
    colour = colour_of(learned)
    for corner in corners:  # over all rims: what is left of these surrounds the cells of the object
        axis.add_patch(Rectangle(corner, STRIDE, STRIDE, facecolor=colour, edgecolor="white", linewidth=0.6))
    middle = learned.centres.mean(dim=0)
    distance = (learned.centres - middle).norm(dim=1)
    x, y = learned.centres[distance.argmin()].tolist()
    write_number(axis, x, y, learned.number)


def draw_outline(axis: Axes, learned: Learned) -> Line2D:
    """The box of an object with its number in the upper left corner; returns the line for the legend."""
    left, top, right, bottom = learned.box.tolist()
    line = LINES[(learned.number - 1) % len(LINES)]
    x = [left, right, right, left, left]
    y = [top, top, bottom, bottom, top]
    axis.plot(x, y, color="black", linewidth=3.5)  # dark below bright: it shows on any image
    (outline,) = axis.plot(x, y, color=colour_of(learned), linestyle=line, linewidth=2)
    write_number(axis, left + STRIDE, top, learned.number)
    return outline


def write_number(axis: Axes, x: float, y: float, number: int) -> None:
    """A black number with a white rim, centred on a pixel."""
    rim = withStroke(linewidth=2.5, foreground="white")
    axis.text(
        x,
        y,
        str(number),
        ha="center",
        va="center",
        fontsize=TEXT_SIZE + 1,
        fontweight="bold",
        color="black",
        path_effects=[rim],
    )


def legend_text(learned: Learned, classes: Classes) -> str:
    """The number of an object, its class, and how many cells learn it."""
    count = len(learned.centres)
    cells = "1 cell" if count == 1 else f"{count} cells"
    return f"{learned.number}  {classes.det[learned.label]}, {cells}"
