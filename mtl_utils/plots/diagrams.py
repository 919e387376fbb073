"""The two pictures of the system, drawn from a model and from settings: every number in them is measured or read.

Lengths and positions are inches from the figure's lower left corner.
"""

import copy
import textwrap
from itertools import groupby, pairwise
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from torch import nn

from mtl_utils import model
from mtl_utils.model import Outputs, UnifiedModel, count_parameters
from mtl_utils.plots.style import TASK_COLOURS
from mtl_utils.settings import Settings
from mtl_utils.tasks import METRIC_NAMES, TASK_NAMES, TASKS

INK, GROUND, HEAD = "#222222", "#ECECEC", "#FFF0BF"  # text and lines, what lies behind blocks, the head
TINTS = {task: tuple(1 - 0.3 * (1 - c) for c in to_rgb(colour)) for task, colour in TASK_COLOURS.items()}  # below text
Point = tuple[float, float]
Layer = tuple[str, tuple[int, ...], str, int]  # a part of the network: name, output's (C, H, W), kind, parameters


class Box(NamedTuple):
    """A rectangle: lower left corner, width and height."""

    x: float
    y: float
    w: float
    h: float

    def at(self, across: float, up: float) -> Point:
        """The point at these fractions of width and height: (0, .5) is the middle of the left side."""
        return self.x + across * self.w, self.y + up * self.h


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A white figure with inches as coordinates."""
    figure = plt.figure(figsize=(width, height), facecolor="white", layout="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def write(axes: Axes, point: Point, text: str, **style) -> None:
    """Text, centred on the point unless the style says otherwise."""
    usual = {"ha": "center", "va": "center", "color": INK, "family": "DejaVu Sans", "size": 9}
    axes.text(*point, text, **usual | style)


def block(
    axes: Axes, box: Box, lines: list[str], fill: str | tuple = "white", edge: str = INK, lw: float = 1.2
) -> None:
    """A rectangle with rounded corners and lines of text in its middle, the first one bold."""
    look = {"facecolor": fill, "edgecolor": edge, "linewidth": lw}
    axes.add_patch(FancyBboxPatch((box.x, box.y), box.w, box.h, "round,pad=0,rounding_size=.07", **look))
    for i, line in enumerate(lines):
        x, y = box.at(0.5, 0.5)
        write(axes, (x, y + 0.175 * ((len(lines) - 1) / 2 - i)), line, weight="normal" if i else "bold")


def group(axes: Axes, box: Box, title: str, fill: str = GROUND, edge: str = "none") -> None:
    """The ground for blocks that belong together, drawn before them, with its title at the top."""
    block(axes, box, [], fill, edge)
    write(axes, (box.x + 0.12, box.y + box.h - 0.18), title, ha="left", weight="bold", size=10)


def bar(axes: Axes, box: Box, slices: list[tuple[str, int, str]]) -> list[Box]:
    """A bar divided by (task, count, label) into slices of the tasks' colours; returns the slices.

    Widths are in proportion to the counts, except that no slice is too narrow for its label.
    """
    total, left, pieces = sum(count for _, count, _ in slices), box.x, []
    shares = [max(count / total, 0.09 * len(label) / box.w) for _, count, label in slices]
    for (task, _, label), share in zip(slices, shares, strict=True):
        piece = Box(left, box.y, box.w * share / sum(shares), box.h)
        axes.add_patch(Rectangle(piece[:2], *piece[2:], facecolor=TINTS[task], edgecolor=INK, linewidth=1.2))
        write(axes, piece.at(0.5, 0.5), label)
        pieces.append(piece)
        left += piece.w
    return pieces


def arrow(axes: Axes, *points: Point, colour: str = INK) -> None:
    """A line through the points that ends in a head."""
    look = {"color": colour, "linewidth": 1.4}
    axes.plot(*zip(*points[:-1], strict=True), solid_joinstyle="miter", solid_capstyle="projecting", **look)
    axes.add_patch(FancyArrowPatch(*points[-2:], arrowstyle="-|>", mutation_scale=12, shrinkA=0, shrinkB=0, **look))


def link(axes: Axes, a: Box, b: Box) -> None:
    """A straight arrow from a box to the next one, at the middle of the smaller side."""
    if a.x + a.w <= b.x:
        y = min(a, b, key=lambda box: box.h).at(0, 0.5)[1]
        arrow(axes, (a.x + a.w, y), (b.x, y))
    else:
        x = min(a, b, key=lambda box: box.w).at(0.5, 0)[0]
        arrow(axes, *(((x, a.y), (x, b.y + b.h)) if a.y > b.y else ((x, a.y + a.h), (x, b.y))))


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
    return [(name, shapes[name], describe(p), count_parameters(p)) for name, p in parts(model).items()], outputs


def describe(part: nn.Module) -> str:
    """What a part consists of, in words."""
    match part:
        case model.PyramidPooling():
            return f"pooled to {', '.join(map(str, part.BINS))} bins a side, conv 1×1"
        case model.FeatureFusion():
            return f"sum of {3 if part.middle else 2} branches"
        case nn.Conv2d():
            return f"conv {part.kernel_size[0]}×{part.kernel_size[1]}"
        case model.ConvNorm():
            return ", ".join(describe(m) for m in part if not isinstance(m, nn.Identity))
        case model.Separable() | model.Bottleneck():
            return "separable conv" if isinstance(part, model.Separable) else "bottleneck"
        case nn.Sequential():
            runs = [(kind.split(",")[0], len(list(same))) for kind, same in groupby(map(describe, part))]
            return ", ".join(kind if count == 1 else f"{count} {kind}s" for kind, count in runs)
    return type(part).__name__.removesuffix("2d")


def dims(shape: tuple[int, ...]) -> str:
    """(C, H, W) as C × H × W."""
    return " × ".join(map(str, shape))


def layer_table(model: UnifiedModel, size: int = 512) -> list[tuple[str, str, str, int]]:
    """Rows (module, output shape, what it is, parameters) for an image of size x size; the last one is the total."""
    rows = [(name, dims(shape), what, count) for name, shape, what, count in measure(model, size)[0]]
    return [*rows, ("Total", "", f"widths {model.widths}", count_parameters(model))]


IMAGE = Box(0.12, 3.75, 0.95, 0.95)
LOW, MIDDLE, DEEP = (Box(1.47, y, 2.0, 1.25) for y in (3.6, 2.0, 0.4))
POOL, FUSE = Box(3.86, 0.4, 1.58, 1.25), Box(3.86, 2.0, 1.58, 2.85)
HEADS = [Box(5.99 + 1.65 * i, 3.6, 1.45, 1.25) for i in range(3)]  # the head's layers
GRID = Box(5.85, 1.85, 5.03, 1.05)  # the output map
PAST = 3.1  # height of the line that leads past the head's first layers
RESULTS = {task: Box(5.85 + 1.7 * i, 0.25, 1.63, 1.05) for i, task in enumerate(("det", "seg", "cls"))}  # as in the map


def architecture(model: UnifiedModel, size: int = 512) -> Figure:
    """The network as a block diagram, with the shapes for an image of size x size."""
    layers, outputs = measure(model, size)
    figure, axes = canvas(11, 5.7)
    title = f"Fast-SCNN ({model.widths} widths) with one head for three tasks: {count_parameters(model):,} parameters"
    write(axes, (0.12, 5.48), title, ha="left", weight="bold", size=12)
    write(axes, (0.12, 0.68), "C × H × W:\nchannels,\nheight, width\nof a block's\noutput", ha="left", linespacing=1.3)
    draw_image(axes, f"3 × {size} × {size}")
    draw_layers(axes, layers, size, [LOW, MIDDLE] if model.backbone.fusion.middle else [LOW])
    draw_outputs(axes, model.head.split, outputs)
    return figure


def draw_image(axes: Axes, shape: str) -> None:
    """A small landscape that stands for the input image."""
    axes.add_patch(Rectangle(IMAGE[:2], *IMAGE[2:], facecolor="#D5E6F2", edgecolor=INK, linewidth=1.2))
    axes.add_patch(Circle(IMAGE.at(0.74, 0.74), 0.1, facecolor="#F7D560", edgecolor="none"))
    hills = ((0, 0), (0, 0.35), (0.3, 0.62), (0.55, 0.3), (0.75, 0.45), (1, 0.25), (1, 0))
    axes.add_patch(Polygon([IMAGE.at(*point) for point in hills], facecolor="#6F8573", edgecolor=INK))
    write(axes, IMAGE.at(0.5, 1.14), "Input image", weight="bold")
    write(axes, IMAGE.at(0.5, -0.14), shape)


def draw_layers(axes: Axes, layers: list[Layer], size: int, skips: list[Box]) -> None:
    """Backbone, one row for each stride, and head: name, what it is, output shape and parameters of each part."""
    group(axes, Box(1.35, 0.25, 4.19, 5), "Backbone: Fast-SCNN")
    group(axes, Box(GRID.x, 3.45, GRID.w, 1.8), "Head: one branch, every layer serves all three tasks", HEAD, INK)
    for box, (name, shape, what, count) in zip((LOW, MIDDLE, DEEP, POOL, FUSE, *HEADS), layers, strict=True):
        lines = [name, *textwrap.wrap(what, int(13.7 * box.w)), dims(shape), f"{count:,} parameters"]
        block(axes, box, lines if box in HEADS else [*lines, f"stride {size // shape[-1]}"])
    for start, end in pairwise((IMAGE, LOW, MIDDLE, DEEP, POOL, FUSE, *HEADS, GRID)):
        link(axes, start, end)
    write(axes, (4.55, 1.83), f"upsampled ×{layers[4][1][-1] // layers[3][1][-1]}", ha="right")
    for box in skips:
        link(axes, box, FUSE)
        write(axes, (3.65, box.at(0, 0.5)[1] + 0.12), "skip")
    arrow(axes, (FUSE.x + FUSE.w, PAST), (HEADS[-1].at(0.2, 0)[0], PAST), HEADS[-1].at(0.2, 0))
    write(axes, (6.4, PAST + 0.12), "skip")


def draw_outputs(axes: Axes, split: tuple[int, ...], outputs: Outputs) -> None:
    """The output map as one bar of three slices, and what becomes of each slice."""
    det, seg, cls = (dims(tuple(output.shape[1:])) for output in outputs)
    area = dims(tuple(outputs.detection.shape[2:]))
    group(axes, GRID, f"One output map: {sum(split)} channels × {area}", "white", INK)
    labels = (f"5 + {split[0] - 5}", f"{split[1]}", f"{split[2]}")
    slices = bar(axes, Box(6, 1.98, GRID.w - 0.3, 0.48), list(zip(RESULTS, split, labels, strict=True)))
    lines = {
        "det": ["cx, cy, w, h, conf,", f"{split[0] - 5} class scores", det],
        "seg": ["class of each pixel,", "upsampled to H × W", seg],
        "cls": ["class of the image,", "mean over the map", f"{cls} class scores"],
    }
    for piece, (task, box) in zip(slices, RESULTS.items(), strict=True):
        block(axes, box, [TASK_NAMES[task].capitalize(), *lines[task]], TINTS[task], TASK_COLOURS[task], 2)
        arrow(axes, piece.at(0.5, 0), box.at(0.5, 1), colour=TASK_COLOURS[task])


# ---- the training

STAGES = [Box(0.2 + 3.8 * i, 2.12, 3.0, 1.22) for i in range(len(TASKS))]


def training_flow(settings: Settings) -> Figure:
    """The three stages from left to right, the replay buffer that joins them, and what each hands on."""
    replayed = min(settings.replay_per_task, settings.buffer_size)  # images of each earlier task in a step
    figure, axes = canvas(11, 5.1 if replayed else 3.9)
    if replayed:
        title = f"Replay buffer: up to {settings.buffer_size} training images of each task, classes balanced"
        group(axes, Box(0.2, 3.95, 10.6, 0.95), title)
        write(axes, (10.68, 4.72), "handed on in stageN_TASK.state.pt", ha="right")
    else:
        write(axes, (0.2, 3.65), "No replay: each stage sees its own task only", ha="left", weight="bold", size=10)
    for i, task in enumerate(TASKS):
        draw_stage(axes, i, task, settings, replayed)
        draw_results(axes, i, task, settings.fold_batchnorm)
        if replayed:
            draw_buffer(axes, i, settings.buffer_size, replayed)
    return figure


def draw_stage(axes: Axes, i: int, task: str, settings: Settings, replayed: int) -> None:
    """What a stage trains on, with the images of one step as a bar."""
    box, size, new = STAGES[i], settings.train_size[task], settings.batch_size[task]
    earlier = [(t, replayed, f"{replayed} {t}") for t in TASKS[:i] if replayed]
    block(axes, box, [], edge=TASK_COLOURS[task], lw=2.5)
    write(axes, box.at(0.5, 0.86), f"Stage {i + 1}: train {TASK_NAMES[task]}", weight="bold", size=10)
    write(axes, box.at(0.5, 0.68), f"{settings.epochs[task]} epochs, {size} × {size} pixels")
    bar(axes, Box(box.x + 0.15, box.y + 0.32, box.w - 0.3, 0.3), [(task, new, f"{new} new"), *earlier])
    replay = f" + {replayed * i} replayed" if earlier else ""
    write(axes, box.at(0.5, 0.13), f"one step: {new} new{replay} images")


def draw_results(axes: Axes, i: int, task: str, fold: bool) -> None:
    """What a stage leaves: its checkpoint, where the next one starts, and the metrics of all tasks learned so far."""
    box = STAGES[i]
    file, scores = Box(box.x, 1.32, box.w, 0.4), Box(box.x, 0.2, box.w, 0.78)
    link(axes, box, file)
    write(axes, (box.at(0.5, 0)[0] - 0.1, 1.93), "best epoch", ha="right")
    write(axes, (box.at(0.5, 0)[0] + 0.1, 1.93), "" if i or not fold else "BatchNorm folded", ha="left")
    block(axes, file, [])
    write(axes, file.at(0.5, 0.5), f"stage{i + 1}_{TASK_NAMES[task]}.pt", family="DejaVu Sans Mono")
    for after in STAGES[i + 1 : i + 2]:
        x, y = (box.x + box.w + after.x) / 2, after.at(0, 0.5)[1]
        arrow(axes, file.at(1, 0.5), (x, file.at(1, 0.5)[1]), (x, y), (after.x, y))
    link(axes, file, scores)
    group(axes, scores, "Evaluate on val: all tasks so far")
    for k, known in enumerate(TASKS[: i + 1]):
        chip = Box(box.x + 0.12 + 0.945 * k, 0.28, 0.87, 0.3)
        block(axes, chip, [METRIC_NAMES[known]], TINTS[known], TASK_COLOURS[known], 2)


def draw_buffer(axes: Axes, i: int, memory: int, replayed: int) -> None:
    """What the buffer holds during a stage, what the stage draws from it and what it adds."""
    box, y = STAGES[i], 4.27
    held = [Box(box.x + 0.12 + 1.2 * k, y - 0.2, 1.12, 0.4) for k in range(i)]
    for chip, task in zip(held, TASKS, strict=False):
        block(axes, chip, [f"{memory} {task}"], TINTS[task], TASK_COLOURS[task], 2)
        link(axes, chip, box)
        write(axes, (chip.at(0.5, 0)[0] + 0.1, 3.65), f"{replayed} per step", ha="left")
    if i < len(TASKS) - 1:
        x = box.at(0.88, 1)[0]
        for chip in held[-1:]:
            arrow(axes, chip.at(1, 0.5), (x, y))
        arrow(axes, (x, box.y + box.h), (x, y), (STAGES[i + 1].x + 0.12, y))
        write(axes, (x + 0.1, 3.65), f"{memory} images kept", ha="left")
