"""The two pictures of the system, drawn from a model and from settings: every number in them is measured or read.

Lengths and positions are inches from the figure's lower left corner.
"""

import copy
import textwrap
from itertools import groupby
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from torch import nn

from mtl_utils import model as network
from mtl_utils.model import Outputs, UnifiedModel, count_parameters
from mtl_utils.plots import TASK_COLOURS
from mtl_utils.settings import METRIC_NAMES, TASK_NAMES, TASKS, Settings

INK, GROUND, HEAD = "#222222", "#ECECEC", "#FFF0BF"  # text and lines, what lies behind blocks, the head
Point = tuple[float, float]


class Box(NamedTuple):
    """A rectangle: lower left corner, width and height."""

    x: float
    y: float
    w: float
    h: float

    def at(self, across: float, up: float) -> Point:
        """The point at these fractions of width and height: (0, .5) is the middle of the left side."""
        return self.x + across * self.w, self.y + up * self.h


class Layer(NamedTuple):
    """A part of the network: a row of the table, a block of the picture."""

    name: str
    shape: tuple[int, ...]  # (C, H, W) of its output
    what: str
    parameters: int


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A white figure with inches as coordinates."""
    figure = plt.figure(figsize=(width, height), facecolor="white", layout="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def write(axes: Axes, point: Point, text: str, **style) -> None:
    """Text, centred on the point unless the style says otherwise."""
    axes.text(*point, text, **{"ha": "center", "va": "center", "color": INK, "family": "DejaVu Sans", "size": 9} | style)


def block(axes: Axes, box: Box, lines: list[str], fill: str | tuple = "white", edge: str = INK, width: float = 1.2) -> None:
    """A rectangle with rounded corners and lines of text in its middle, the first one bold."""
    look = {"facecolor": fill, "edgecolor": edge, "linewidth": width}
    axes.add_patch(FancyBboxPatch((box.x, box.y), box.w, box.h, "round,pad=0,rounding_size=.07", **look))
    for i, line in enumerate(lines):
        x, y = box.at(0.5, 0.5)
        write(axes, (x, y + 0.175 * ((len(lines) - 1) / 2 - i)), line, weight="normal" if i else "bold")


def group(axes: Axes, box: Box, title: str, fill: str = GROUND, edge: str = "none") -> None:
    """The ground for blocks that belong together, drawn before them, with its title at the top."""
    block(axes, box, [], fill, edge)
    write(axes, (box.x + 0.12, box.y + box.h - 0.18), title, ha="left", weight="bold", size=10)


def arrow(axes: Axes, *points: Point, colour: str = INK) -> None:
    """A line through the points that ends in a head."""
    axes.plot(*zip(*points[:-1], strict=True), color=colour, lw=1.4, solid_joinstyle="miter", solid_capstyle="projecting")
    look = {"arrowstyle": "-|>", "mutation_scale": 12, "lw": 1.4, "color": colour, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(*points[-2:], **look))


def bar(axes: Axes, box: Box, slices: list[tuple[str, int, str]]) -> list[Box]:
    """A bar divided in proportion to (task, count, label) into slices of the tasks' colours; returns the slices."""
    total, left, pieces = sum(count for _, count, _ in slices), box.x, []
    for task, count, label in slices:
        pieces.append(Box(left, box.y, box.w * count / total, box.h))
        axes.add_patch(Rectangle(pieces[-1][:2], *pieces[-1][2:], facecolor=tint(task), edgecolor=INK, linewidth=1.2))
        write(axes, pieces[-1].at(0.5, 0.5), label)
        left += pieces[-1].w
    return pieces


def tint(task: str) -> tuple[float, ...]:
    """A task's colour thinned with white, so that black text on it is easy to read."""
    return tuple(1 - 0.3 * (1 - c) for c in to_rgb(TASK_COLOURS[task]))


# ---- the network


def parts(model: UnifiedModel) -> dict[str, nn.Module]:
    """The modules that table and picture show, in the order in which they work."""
    backbone, trunk = model.backbone, model.backbone.trunk
    names = {"Learning to downsample": trunk.downsample, "Global features": trunk.global16}
    names |= {"Deep global features": trunk.global32, "Pyramid pooling": backbone.pooling}
    return names | {"Feature fusion": backbone.fusion} | {f"Head layer {i}": m for i, m in enumerate(model.head, 1)}


def measure(model: UnifiedModel, size: int) -> tuple[list[Layer], Outputs]:
    """The parts of a model as they are for one image of size x size, and what the model gives for it."""
    shapes = {}
    twin = copy.deepcopy(model).cpu().eval()  # so that the model keeps its mode and gets no hooks
    for name, part in parts(twin).items():
        part.register_forward_hook(lambda _, inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
    with torch.no_grad():
        outputs = twin(torch.zeros(1, 3, size, size))
    return [Layer(n, shapes[n], describe(p), count_parameters(p)) for n, p in parts(model).items()], outputs


def describe(part: nn.Module) -> str:
    """What a part consists of, in words."""
    match part:
        case network.PyramidPooling():
            return f"pooled to {', '.join(map(str, part.BINS))} bins a side, conv 1×1"
        case network.FeatureFusion():
            return f"sum of {2 if part.middle is None else 3} branches"
        case nn.Conv2d():
            return f"conv {part.kernel_size[0]}×{part.kernel_size[1]}"
        case network.ConvNorm():
            return ", ".join(describe(m) for m in part if not isinstance(m, nn.Identity))
        case network.Separable() | network.Bottleneck():
            return "separable conv" if isinstance(part, network.Separable) else "bottleneck"
        case nn.Sequential():
            runs = [(kind.split(",")[0], len(list(same))) for kind, same in groupby(map(describe, part))]
            return ", ".join(kind if count == 1 else f"{count} {kind}s" for kind, count in runs)
    return type(part).__name__.removesuffix("2d")


def dims(shape: tuple[int, ...]) -> str:
    """(C, H, W) as C × H × W."""
    return " × ".join(map(str, shape))


def layer_table(model: UnifiedModel, size: int = 512) -> list[tuple[str, str, str, int]]:
    """Rows (module, output shape, what it is, parameters) for an image of size x size; the last one is the total."""
    rows = [(layer.name, dims(layer.shape), layer.what, layer.parameters) for layer in measure(model, size)[0]]
    return [*rows, ("Total", "", f"widths {model.widths}", count_parameters(model))]


IMAGE, LOW, MIDDLE, DEEP = Box(0.12, 3.78, 0.95, 0.95), *(Box(1.5, y, 1.85, 1.2) for y in (3.65, 2.05, 0.45))
POOL, FUSE, GRID = Box(3.8, 0.45, 1.6, 1.2), Box(3.8, 2.05, 1.6, 2.8), Box(5.85, 1.87, 5.03, 1.05)
HEADS = [Box(5.99 + 1.65 * i, 3.65, 1.45, 1.2) for i in range(3)]  # the head's layers
RESULTS = {task: Box(5.85 + 1.7 * i, 0.3, 1.63, 1.05) for i, task in enumerate(("det", "seg", "cls"))}  # as in the map


def architecture(model: UnifiedModel, size: int = 512) -> Figure:
    """The network as a block diagram, with the shapes for an image of size x size."""
    layers, outputs = measure(model, size)
    figure, axes = canvas(11, 5.7)
    title = f"Fast-SCNN ({model.widths} widths) with one head for three tasks: {count_parameters(model):,} parameters"
    write(axes, (0.12, 5.48), title, ha="left", weight="bold", size=12)
    write(axes, (0.12, 0.62), "C × H × W:\nchannels,\nheight, width\nof a block's\noutput", ha="left", linespacing=1.3)
    draw_image(axes, f"3 × {size} × {size}")
    draw_backbone(axes, layers[:5], size, (LOW, MIDDLE) if model.backbone.fusion.middle else (LOW,))
    draw_head(axes, layers[5:])
    draw_outputs(axes, model.head.split, outputs)
    return figure


def draw_image(axes: Axes, shape: str) -> None:
    """A small landscape that stands for the input image."""
    axes.add_patch(Rectangle(IMAGE[:2], *IMAGE[2:], facecolor="#D5E6F2", edgecolor=INK, linewidth=1.2))
    axes.add_patch(Circle(IMAGE.at(0.74, 0.74), 0.1, facecolor="#F7D560"))
    for ridge, colour in (((0.35, 0.62, 0.2, 0), "#9DB0A0"), ((0.15, 0.2, 0.45, 0.55), "#6F8573")):
        heights = zip((0, 0.3, 0.65, 1, 1, 0), (*ridge, 0, 0), strict=True)
        axes.add_patch(Polygon([IMAGE.at(*point) for point in heights], facecolor=colour))
    write(axes, IMAGE.at(0.5, 1.14), "Input image", weight="bold")
    write(axes, IMAGE.at(0.5, -0.14), shape)


def draw_backbone(axes: Axes, layers: list[Layer], size: int, skips: tuple[Box, ...]) -> None:
    """Trunk, pyramid pooling and feature fusion, one row for each stride."""
    group(axes, Box(1.37, 0.3, 4.16, 4.95), "Backbone: Fast-SCNN")
    for box, layer in zip((LOW, MIDDLE, DEEP, POOL, FUSE), layers, strict=True):
        draw_layer(axes, box, layer, f"stride {size // layer.shape[-1]}: ")
    arrow(axes, IMAGE.at(1, 0.5), LOW.at(0, 0.5))
    arrow(axes, LOW.at(0.5, 0), MIDDLE.at(0.5, 1))
    arrow(axes, MIDDLE.at(0.5, 0), DEEP.at(0.5, 1))
    arrow(axes, DEEP.at(1, 0.5), POOL.at(0, 0.5))
    arrow(axes, POOL.at(0.5, 1), FUSE.at(0.5, 0))
    write(axes, (4.5, 1.85), f"upsampled ×{layers[4].shape[-1] // layers[3].shape[-1]}", ha="right")
    for box in skips:
        arrow(axes, box.at(1, 0.5), (FUSE.x, box.at(1, 0.5)[1]))
        write(axes, (3.55, box.at(1, 0.5)[1] + 0.12), "skip")


def draw_layer(axes: Axes, box: Box, layer: Layer, before: str = "") -> None:
    """A part of the network: name, what it is, the shape that leaves it, and its parameters."""
    what = textwrap.wrap(layer.what, int(14 * box.w))
    block(axes, box, [layer.name, *what, before + dims(layer.shape), f"{layer.parameters:,} parameters"])


def draw_head(axes: Axes, layers: list[Layer]) -> None:
    """The head: one branch of layers in a row."""
    group(axes, Box(GRID.x, 3.5, GRID.w, 1.75), "Head: one branch, every layer serves all three tasks", HEAD, INK)
    starts = [(FUSE.x + FUSE.w, HEADS[0].at(0, 0.5)[1]), *(box.at(1, 0.5) for box in HEADS)]
    for start, box, layer in zip(starts, HEADS, layers, strict=False):
        arrow(axes, start, box.at(0, 0.5))
        draw_layer(axes, box, layer)
    arrow(axes, HEADS[-1].at(0.5, 0), (HEADS[-1].at(0.5, 0)[0], GRID.y + GRID.h))


def draw_outputs(axes: Axes, split: tuple[int, ...], outputs: Outputs) -> None:
    """The output map as one bar of three slices, and what becomes of each slice."""
    shapes = {task: dims(tuple(output.shape[1:])) for task, output in zip(RESULTS, outputs, strict=True)}
    rest = dims(tuple(outputs.detection.shape[2:]))
    group(axes, GRID, f"One output map: {sum(split)} channels × {rest}", "white", INK)
    labels = (f"5 + {split[0] - 5}", f"{split[1]}", f"{split[2]}")
    slices = bar(axes, Box(6, 2, GRID.w - 0.3, 0.48), list(zip(RESULTS, split, labels, strict=True)))
    lines = {
        "det": ["cx, cy, w, h, conf,", f"{split[0] - 5} class scores", shapes["det"]],
        "seg": ["class of each pixel,", "upsampled to H × W", shapes["seg"]],
        "cls": ["class of the image,", "mean over the map", f"{shapes['cls']} class scores"],
    }
    for piece, (task, box) in zip(slices, RESULTS.items(), strict=True):
        block(axes, box, [TASK_NAMES[task].capitalize(), *lines[task]], tint(task), TASK_COLOURS[task], 2)
        arrow(axes, piece.at(0.5, 0), box.at(0.5, 1), colour=TASK_COLOURS[task])


# ---- the training

STAGES = [Box(0.2 + 3.8 * i, 2.12, 3.0, 1.22) for i in range(len(TASKS))]
FILES = [Box(box.x, 1.32, box.w, 0.4) for box in STAGES]


def training_flow(settings: Settings) -> Figure:
    """The three stages from left to right, the replay buffer that joins them, and what each hands on."""
    figure, axes = canvas(11, 5.1)
    replayed = min(settings.draw, settings.memory)
    title = f"Replay buffer: up to {settings.memory} training images of each task, classes balanced"
    group(axes, Box(0.2, 3.95, 10.6, 0.95), title if replayed else f"No replay: draw {settings.draw}, memory {settings.memory}")
    for i, task in enumerate(TASKS):
        draw_stage(axes, i, task, settings, replayed)
        draw_results(axes, i, task, settings.fold and i == 0)
        if replayed:
            draw_buffer(axes, i, settings.memory, replayed)
    return figure


def draw_stage(axes: Axes, i: int, task: str, settings: Settings, replayed: int) -> None:
    """What a stage trains on, with the images of one step as a bar."""
    box, size, new = STAGES[i], settings.size[task], settings.batch[task]
    earlier = [(t, replayed, f"{replayed} {t}") for t in TASKS[:i] if replayed]
    block(axes, box, [], "white", TASK_COLOURS[task], 2.5)
    write(axes, box.at(0.5, 0.86), f"Stage {i + 1}: train {TASK_NAMES[task]}", weight="bold", size=10)
    write(axes, box.at(0.5, 0.68), f"{settings.epochs[task]} epochs at {size} × {size} pixels")
    bar(axes, Box(box.x + 0.15, box.y + 0.32, box.w - 0.3, 0.3), [(task, new, f"{new} new"), *earlier])
    replay = f" + {replayed * i} replayed" if earlier else ""
    write(axes, box.at(0.5, 0.13), f"one step: {new} new{replay} images")


def draw_results(axes: Axes, i: int, task: str, folded: bool) -> None:
    """What a stage leaves: its checkpoint, where the next one starts, and the metrics of all tasks learned so far."""
    box, file, scores = STAGES[i], FILES[i], Box(STAGES[i].x, 0.2, 3.0, 0.78)
    arrow(axes, box.at(0.5, 0), file.at(0.5, 1))
    write(axes, (box.at(0.5, 0)[0] - 0.1, 1.92), "best epoch", ha="right")
    write(axes, (box.at(0.5, 0)[0] + 0.1, 1.92), "BatchNorm folded" if folded else "", ha="left")
    block(axes, file, [])
    write(axes, file.at(0.5, 0.5), f"stage{i + 1}_{TASK_NAMES[task]}.pt", family="DejaVu Sans Mono")
    for after in STAGES[i + 1 : i + 2]:
        corner = (file.x + file.w + after.x) / 2
        arrow(axes, file.at(1, 0.5), (corner, file.at(1, 0.5)[1]), (corner, after.at(0, 0.5)[1]), after.at(0, 0.5))
    arrow(axes, file.at(0.5, 0), scores.at(0.5, 1))
    group(axes, scores, "Evaluate all tasks learned so far")
    for k, known in enumerate(TASKS[: i + 1]):
        chip = Box(box.x + 0.1 + 0.95 * k, 0.27, 0.9, 0.3)
        block(axes, chip, [METRIC_NAMES[known]], tint(known), TASK_COLOURS[known], 2)


def draw_buffer(axes: Axes, i: int, memory: int, replayed: int) -> None:
    """What the buffer holds during a stage, what the stage draws from it and what it adds."""
    box, held = STAGES[i], Box(STAGES[i].x + 0.12, 4.07, 1.2 * i, 0.4)
    for k, task in enumerate(TASKS[:i]):
        block(axes, Box(held.x + 1.2 * k, held.y, 1.14, held.h), [f"{memory} {task}"], tint(task), TASK_COLOURS[task], 2)
    if i:
        x = held.x + 0.57
        arrow(axes, (x, held.y), (x, box.y + box.h))
        write(axes, (x + 0.1, 3.65), f"{replayed} of each task a step", ha="left")
    if i < len(TASKS) - 1:
        x, y = box.at(0.88, 1)
        arrow(axes, (x, y), (x, held.at(0, 0.5)[1]), (box.x + 3.92, held.at(0, 0.5)[1]))
        write(axes, (x + 0.1, 3.65), f"{memory} images kept", ha="left")
