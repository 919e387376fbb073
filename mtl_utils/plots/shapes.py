"""Boxes, arrows and text, of which the diagrams are made.

Lengths and positions are inches from the figure's lower left corner.
"""

from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from mtl_utils.plots.style import TASK_COLOURS
from mtl_utils.tasks import Task

Point = tuple[float, float]
Colour = str | tuple[float, float, float]

INK = "#222222"  # text and lines
GROUND = "#ECECEC"  # what lies behind blocks that belong together
LINE_HEIGHT = 0.175  # from one line of a block's text to the next
LABEL_WIDTH = 0.09  # that one letter of a slice's label needs


def tint(colour: str) -> tuple[float, float, float]:
    """A light shade of a colour, on which text can be read."""
    red, green, blue = (1 - 0.3 * (1 - part) for part in to_rgb(colour))  # 70 % of the way to white
    return red, green, blue


TINTS = {task: tint(colour) for task, colour in TASK_COLOURS.items()}


class Box(NamedTuple):
    """A rectangle: lower left corner, width and height."""

    left: float
    bottom: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The right edge."""
        return self.left + self.width

    @property
    def top(self) -> float:
        """The upper edge."""
        return self.bottom + self.height

    @property
    def corner(self) -> Point:
        """The lower left corner."""
        return self.left, self.bottom

    def at(self, across: float, up: float) -> Point:
        """The point at these fractions of width and height: (0, .5) is the middle of the left side."""
        return self.left + across * self.width, self.bottom + up * self.height


class Slice(NamedTuple):
    """A part of a bar: its task gives the colour, its amount the width."""

    task: Task
    amount: int
    label: str


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A white figure with inches as coordinates."""
    figure = plt.figure(figsize=(width, height), facecolor="white", layout="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def write(
    axes: Axes,
    point: Point,
    text: str,
    align: str = "center",
    weight: str = "normal",
    size: float = 9,
    family: str = "DejaVu Sans",
    linespacing: float | None = None,
) -> None:
    """Text at a point: centred on it, or with its left or right end there.

    size: in points; linespacing: in multiples of the font's size, None for matplotlib's own.
    """
    x, y = point
    axes.text(
        x,
        y,
        text,
        ha=align,
        va="center",
        color=INK,
        family=family,
        size=size,
        weight=weight,
        linespacing=linespacing,
    )


def rectangle(axes: Axes, box: Box, fill: Colour) -> None:
    """A rectangle with sharp corners."""
    patch = Rectangle(box.corner, box.width, box.height, facecolor=fill, edgecolor=INK, linewidth=1.2)
    axes.add_patch(patch)


def block(
    axes: Axes,
    box: Box,
    lines: list[str],
    fill: Colour = "white",
    edge: Colour = INK,
    linewidth: float = 1.2,
) -> None:
    """A rectangle with rounded corners and lines of text in its middle, the first one bold."""
    patch = FancyBboxPatch(
        box.corner,
        box.width,
        box.height,
        boxstyle="round,pad=0,rounding_size=.07",
        facecolor=fill,
        edgecolor=edge,
        linewidth=linewidth,
    )
    axes.add_patch(patch)
    x, y = box.at(0.5, 0.5)
    middle = (len(lines) - 1) / 2  # of the lines' numbers
    for number, line in enumerate(lines):
        above = LINE_HEIGHT * (middle - number)
        weight = "bold" if number == 0 else "normal"
        write(axes, (x, y + above), line, weight=weight)


def task_block(axes: Axes, box: Box, lines: list[str], task: Task) -> None:
    """A block in the colours of a task."""
    block(axes, box, lines, TINTS[task], TASK_COLOURS[task], linewidth=2)


def group(axes: Axes, box: Box, title: str, fill: Colour = GROUND, edge: Colour = "none") -> None:
    """The ground for blocks that belong together, drawn before them, with its title at the top."""
    block(axes, box, [], fill, edge)
    write(axes, (box.left + 0.12, box.top - 0.18), title, align="left", weight="bold", size=10)


def bar(axes: Axes, box: Box, slices: list[Slice]) -> list[Box]:
    """A bar divided into slices of the tasks' colours; returns the slices' boxes.

    Widths are in proportion to the amounts, except that no slice is too narrow for its label.
    """
    shares = slice_shares(slices, box.width)
    left = box.left
    boxes = []
    for part, share in zip(slices, shares, strict=True):
        part_box = Box(left, box.bottom, box.width * share / sum(shares), box.height)
        rectangle(axes, part_box, TINTS[part.task])
        write(axes, part_box.at(0.5, 0.5), part.label)
        boxes.append(part_box)
        left = part_box.right
    return boxes


def slice_shares(slices: list[Slice], width: float) -> list[float]:
    """The part of a bar that each slice takes, as numbers in proportion: their sum can be above 1."""
    total = sum(part.amount for part in slices)
    shares = []
    for part in slices:
        least = LABEL_WIDTH * len(part.label) / width
        shares.append(max(part.amount / total, least))
    return shares


def arrow(axes: Axes, *points: Point, colour: Colour = INK) -> None:
    """A line through the points that ends in a head."""
    line = points[:-1]  # the head draws the last part itself
    axes.plot(
        [x for x, _ in line],
        [y for _, y in line],
        color=colour,
        linewidth=1.4,
        solid_joinstyle="miter",
        solid_capstyle="projecting",
    )
    head = FancyArrowPatch(
        points[-2],
        points[-1],
        arrowstyle="-|>",
        mutation_scale=12,
        shrinkA=0,
        shrinkB=0,
        color=colour,
        linewidth=1.4,
    )
    axes.add_patch(head)


def link(axes: Axes, start: Box, end: Box) -> None:
    """A straight arrow from a box to the next one, at the middle of the smaller side."""
    if start.right <= end.left:
        lower = min(start, end, key=lambda box: box.height)
        _, y = lower.at(0, 0.5)
        arrow(axes, (start.right, y), (end.left, y))
        return
    narrower = min(start, end, key=lambda box: box.width)
    x, _ = narrower.at(0.5, 0)
    if start.bottom > end.bottom:
        arrow(axes, (x, start.bottom), (x, end.top))
    else:
        arrow(axes, (x, start.top), (x, end.bottom))
