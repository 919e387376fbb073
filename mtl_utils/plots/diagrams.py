"""The two diagrams of the system, drawn from a model and from settings: every number in them is measured or read.

Lengths and positions are inches from the figure's lower left corner.
"""

import copy
import textwrap
from collections.abc import Callable
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtl_utils.detection import FIRST_CLASS, STRIDE
from mtl_utils.model import (
    Bottleneck,
    ChannelSplit,
    ConvNorm,
    FeatureFusion,
    Outputs,
    PyramidPooling,
    Separable,
    UnifiedModel,
    count_parameters,
)
from mtl_utils.plots.shapes import INK, Box, Slice, arrow, bar, block, canvas, group, link, rectangle, task_block, write
from mtl_utils.plots.style import TASK_COLOURS
from mtl_utils.settings import Settings
from mtl_utils.tasks import CHANNEL_ORDER, METRIC_NAMES, TASK_NAMES, TASKS, Task, learned_by, stage_name, stage_number

Shape = tuple[int, ...]  # (C, H, W)
Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]  # of torch: module, inputs, output


# ---- the network, measured


CLASS_SKIP = "Class skip"  # the part that no block stands for


class Layer(NamedTuple):
    """A part of the network as table and diagram show it."""

    name: str
    shape: Shape  # of its output for one image
    kind: str  # what it consists of, in words
    parameters: int
    multiply_adds: int  # of its convolutions and matrix products for one image


def model_parts(model: UnifiedModel) -> dict[str, nn.Module]:
    """The modules that table and diagram show, in the order in which they work."""
    backbone = model.backbone
    parts: dict[str, nn.Module] = {
        "Learning to downsample": backbone.trunk.downsample,
        "Global features": backbone.trunk.global16,
        "Deep global features": backbone.trunk.global32,
        "Pyramid pooling": backbone.pooling,
        "Feature fusion": backbone.fusion,
        "Skip connection": backbone.skip,
        CLASS_SKIP: model.class_skip,
    }
    for number, layer in enumerate(model.head, start=1):
        parts[f"Head layer {number}"] = layer
    return parts


def measure(model: UnifiedModel, size: int) -> tuple[list[Layer], Outputs]:
    """The parts of a model as they are for one image of size x size, and the model's outputs for it."""
    copied = copy.deepcopy(model).cpu().eval()  # so that the model keeps its mode and gets no hooks
    shapes: dict[str, Shape] = {}
    for name, part in model_parts(copied).items():
        part.register_forward_hook(shape_recorder(shapes, name))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs = copied(torch.zeros(1, 3, size, size))
    path_of = {part: path for path, part in copied.named_modules()}
    layers = []
    for name, part in model_parts(copied).items():
        by_operation = counter.get_flop_counts()[f"{type(copied).__name__}.{path_of[part]}"]
        multiply_adds = sum(by_operation.values()) // 2  # torch counts a multiplication and an addition as two
        layers.append(Layer(name, shapes[name], describe(part), count_parameters(part), multiply_adds))
    return layers, outputs


def shape_recorder(shapes: dict[str, Shape], name: str) -> Hook:
    """A forward hook that keeps the shape of a module's output, without the batch, under this name."""

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes[name] = tuple(output.shape[1:])

    return record


def describe(part: nn.Module) -> str:
    """What a part consists of, in words."""
    if isinstance(part, PyramidPooling):
        bins = ", ".join(str(count) for count in part.BINS)
        return f"pooled to {bins} bins a side, conv 1×1"
    if isinstance(part, FeatureFusion):
        between = len(part.mix32) + len(part.mix16)
        return f"sum of 3 branches, {between} bottlenecks"
    if isinstance(part, nn.Conv2d):
        return f"conv {part.kernel_size[0]}×{part.kernel_size[1]}"
    if isinstance(part, Bottleneck):
        return "bottleneck"
    if isinstance(part, Separable):
        return "separable conv"
    if isinstance(part, ConvNorm):
        layers = [describe(layer) for layer in part if not isinstance(layer, nn.Identity)]
        return ", ".join(layers)
    if isinstance(part, nn.Sequential):
        return describe_chain(part)
    return type(part).__name__.removesuffix("2d")


def describe_chain(blocks: nn.Sequential) -> str:
    """The blocks of a chain, with the number of equal ones that follow each other: "conv 3×3, 2 separable convs"."""
    words = []
    for description, equal in groupby(describe(layer) for layer in blocks):
        kind = description.split(",")[0]  # without BatchNorm and activation
        count = len(list(equal))
        words.append(kind if count == 1 else f"{count} {kind}s")
    return ", ".join(words)


def dims(shape: Shape) -> str:
    """(C, H, W) as C × H × W."""
    return " × ".join(str(side) for side in shape)


def layer_table(model: UnifiedModel, size: int = 512) -> list[tuple[str, str, str, int, int]]:
    """Rows (module, output shape, what it is, parameters, multiply-adds) for an image of size x size, and the total."""
    layers, _ = measure(model, size)
    rows = []
    for layer in layers:
        rows.append((layer.name, dims(layer.shape), layer.kind, layer.parameters, layer.multiply_adds))
    multiply_adds = sum(layer.multiply_adds for layer in layers)
    total = ("Total", "", "trunk of EfficientNet-Lite0", count_parameters(model), multiply_adds)
    return [*rows, total]


def learning_table(model: UnifiedModel) -> list[tuple[str, int, int]]:
    """Rows (module, parameters, those of them that are not frozen); the last one is the total."""
    rows = []
    for name, part in model_parts(model).items():
        rows.append((name, count_parameters(part), count_learning(part)))
    total = ("Total", count_parameters(model), count_learning(model))
    return [*rows, total]


def count_learning(module: nn.Module) -> int:
    """Number of parameters that are not frozen."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


# ---- the network, drawn

HEAD_COLOUR = "#FFF0BF"

IMAGE = Box(0.12, 3.75, 0.95, 0.95)
HILLS = (
    (0, 0),
    (0, 0.35),
    (0.3, 0.62),
    (0.55, 0.3),
    (0.75, 0.45),
    (1, 0.25),
    (1, 0),
)  # corners, as fractions of the image's width and height
# the trunk's three parts, at strides 8, 16 and 32
LOW = Box(1.47, 3.6, 2.0, 1.25)
MIDDLE = Box(1.47, 2.0, 2.0, 1.25)
DEEP = Box(1.47, 0.4, 2.0, 1.25)
FUSION = Box(3.86, 3.6, 1.58, 1.25)
POOLING = Box(3.86, 2.0, 1.58, 1.25)
SKIP = Box(3.86, 0.4, 1.58, 1.25)
HEAD = [Box(5.99 + 1.65 * i, 3.6, 1.45, 1.25) for i in range(3)]  # the head's layers
GRID = Box(5.85, 1.85, 5.03, 1.05)  # the output map
GAP = 3.665  # between the two columns of the backbone
SKIP_COLUMN = 5.6  # where the line from the skip connection rises to the head
CLASS_LINE = 0.32  # height of the line from the deepest features to the class channels
CLASS_COLUMN = 5.74  # and where it rises
SKIP_LINE = 3.1  # height of the line that leads past the head's first layers
READINGS = {task: Box(5.85 + 1.7 * i, 0.25, 1.63, 1.05) for i, task in enumerate(CHANNEL_ORDER)}  # below their channels
LAYERS = (LOW, MIDDLE, DEEP, POOLING, FUSION, SKIP, *HEAD)  # the boxes of `measure`'s layers

CAPTION = "C × H × W:\nchannels,\nheight, width\nof a block's\noutput"


def architecture(model: UnifiedModel, size: int = 512) -> Figure:
    """The network as a block diagram, with the shapes for an image of size x size."""
    layers, outputs = measure(model, size)
    figure, axes = canvas(11, 5.7)
    parameters = f"{count_parameters(model):,} parameters"
    title = f"Fast-SCNN (trunk of EfficientNet-Lite0) with one head for three tasks: {parameters}"
    write(axes, (0.12, 5.48), title, align="left", weight="bold", size=12)
    write(axes, (0.12, 0.68), CAPTION, align="left", linespacing=1.3)
    draw_input(axes, size)
    draw_backbone_and_head(axes)
    draw_layers(axes, layers, size)
    draw_connections(axes, layers)
    draw_outputs(axes, model.head.split, outputs)
    return figure


def draw_input(axes: Axes, size: int) -> None:
    """A small landscape that stands for the input image."""
    rectangle(axes, IMAGE, "#D5E6F2")  # the sky
    sun = Circle(IMAGE.at(0.74, 0.74), 0.1, facecolor="#F7D560", edgecolor="none")
    axes.add_patch(sun)
    corners = [IMAGE.at(across, up) for across, up in HILLS]
    hills = Polygon(corners, facecolor="#6F8573", edgecolor=INK)
    axes.add_patch(hills)
    write(axes, IMAGE.at(0.5, 1.14), "Input image", weight="bold")
    write(axes, IMAGE.at(0.5, -0.14), f"3 × {size} × {size}")


def draw_backbone_and_head(axes: Axes) -> None:
    """The grounds on which the layers stand."""
    group(axes, Box(1.35, 0.25, 4.19, 5), "Backbone: Fast-SCNN")
    title = "Head: one branch, every layer serves all three tasks"
    group(axes, Box(GRID.left, 3.45, GRID.width, 1.8), title, HEAD_COLOUR, INK)


def draw_layers(axes: Axes, layers: list[Layer], size: int) -> None:
    """A block for each layer: name, what it is, output shape, parameters and, in the backbone, the stride."""
    blocks = [layer for layer in layers if layer.name != CLASS_SKIP]
    for box, layer in zip(LAYERS, blocks, strict=True):
        letters = int(13.7 * box.width)  # that fit into a line
        lines = [layer.name]
        lines += textwrap.wrap(layer.kind, letters)
        lines.append(dims(layer.shape))
        lines.append(f"{layer.parameters:,} parameters")
        if box not in HEAD:
            lines.append(f"stride {size // layer.shape[-1]}")
        block(axes, box, lines)


def draw_connections(axes: Axes, layers: list[Layer]) -> None:
    """The way of the features through the layers."""
    for chain in ((IMAGE, LOW, MIDDLE, DEEP, SKIP), (LOW, FUSION), (POOLING, FUSION), (FUSION, *HEAD, GRID)):
        for start, end in pairwise(chain):
            link(axes, start, end)
    bend(axes, DEEP, POOLING)
    bend(axes, MIDDLE, FUSION)
    width = {layer.name: layer.shape[-1] for layer in layers}
    factor = width["Feature fusion"] // width["Pyramid pooling"]
    write(axes, (4.74, 3.43), f"up ×{factor}", align="left")
    from_deep = SKIP.at(1, 0.5)
    into_head = HEAD[0].at(0, 0.5)
    arrow(axes, from_deep, (SKIP_COLUMN, from_deep[1]), (SKIP_COLUMN, into_head[1]))
    draw_class_skip(axes, {layer.name: layer for layer in layers}[CLASS_SKIP])
    into_last = HEAD[-1].at(0.2, 0)
    arrow(axes, (SKIP_COLUMN, SKIP_LINE), (into_last[0], SKIP_LINE), into_last)
    write(axes, (6.5, SKIP_LINE + 0.12), "skip")


def draw_class_skip(axes: Axes, layer: Layer) -> None:
    """The line from the trunk's deepest features to the class channels of the map, and what happens on it."""
    x, y = DEEP.at(0.5, 0)
    into_map = GRID.at(0, 0.3)
    corners = [(x, CLASS_LINE), (CLASS_COLUMN, CLASS_LINE), (CLASS_COLUMN, into_map[1])]
    arrow(axes, (x, y), *corners, into_map)
    text = (
        f"{layer.name}, to the class channels alone: {layer.kind}, {dims(layer.shape)}, {layer.parameters:,} parameters"
    )
    write(axes, (1.47, 0.12), text, align="left")


def bend(axes: Axes, start: Box, end: Box) -> None:
    """An arrow from a box of the backbone's first column up to the box one row higher in the second."""
    below = start.at(1, 0.75)
    above = end.at(0, 0.25)
    arrow(axes, below, (GAP, below[1]), (GAP, above[1]), above)


def draw_outputs(axes: Axes, split: ChannelSplit, outputs: Outputs) -> None:
    """The output map as one bar of three slices, and what becomes of each slice."""
    det, seg, cls = split
    cells = dims(outputs.detection.shape[2:])
    group(axes, GRID, f"One output map: {sum(split)} channels × {cells}", "white", INK)
    slices = [
        Slice("det", det, f"{FIRST_CLASS} + {det - FIRST_CLASS}"),
        Slice("seg", seg, str(seg)),
        Slice("cls", cls, str(cls)),
    ]
    slice_boxes = bar(axes, Box(6, 1.98, GRID.width - 0.3, 0.48), slices)
    lines = output_lines(split, outputs)
    for slice_box, task in zip(slice_boxes, CHANNEL_ORDER, strict=True):
        box = READINGS[task]
        title = TASK_NAMES[task].capitalize()
        task_block(axes, box, [title, *lines[task]], task)
        arrow(axes, slice_box.at(0.5, 0), box.at(0.5, 1), colour=TASK_COLOURS[task])


def output_lines(split: ChannelSplit, outputs: Outputs) -> dict[Task, list[str]]:
    """What each task reads from its channels, and the shape of that."""
    classes = split[0] - FIRST_CLASS
    det, _, cls = (dims(output.shape[1:]) for output in outputs)
    height, width = outputs.segmentation.shape[2:]
    pixels = dims((split[1], STRIDE * height, STRIDE * width))
    return {
        "det": ["cx, cy, w, h, conf,", f"{classes} class scores", det],
        "seg": ["class of each pixel,", "upsampled to H × W", pixels],
        "cls": ["class of the image,", "mean over the picture", f"{cls} class scores"],
    }


# ---- the training

STAGES = {task: Box(0.2 + 3.8 * i, 2.12, 3.0, 1.22) for i, task in enumerate(TASKS)}
BUFFER = Box(0.2, 3.95, 10.6, 0.95)
BUFFER_LINE = 4.27  # height of the middle of what the buffer holds
BELOW_BUFFER = 3.65  # height of the words beside the arrows from and to the buffer


def training_flow(settings: Settings) -> Figure:
    """The three stages from left to right, the replay buffer that joins them, and what each hands on."""
    replayed = min(settings.replay_per_task, settings.buffer_size)  # images of each earlier task in a step
    figure, axes = canvas(11, 5.1 if replayed else 3.9)
    if replayed:
        title = f"Replay buffer: up to {settings.buffer_size} training images of each task, classes balanced"
        group(axes, BUFFER, title)
        write(axes, (10.68, 4.72), "handed on in stageN_TASK.state.pt", align="right")
    else:
        title = "No replay: each stage sees its own task only"
        write(axes, (0.2, BELOW_BUFFER), title, align="left", weight="bold", size=10)
    for task in TASKS:
        draw_stage(axes, task, settings, replayed)
        draw_checkpoint(axes, task, settings.fold_batchnorm)
        draw_evaluation(axes, task)
        if replayed:
            draw_replay(axes, task, settings.buffer_size, replayed)
            draw_stored(axes, task, settings.buffer_size)
    return figure


def earlier_tasks(task: Task) -> tuple[Task, ...]:
    """The tasks of the stages before a task's own."""
    return learned_by(task)[:-1]


def next_stage(task: Task) -> Box | None:
    """The box of the stage after a task's own; None after the last."""
    later = TASKS[stage_number(task) :]
    return STAGES[later[0]] if later else None


def draw_stage(axes: Axes, task: Task, settings: Settings, replayed: int) -> None:
    """What a stage trains on, with the images of one step as a bar."""
    box = STAGES[task]
    size = settings.train_size[task]
    new = settings.batch_size[task]
    block(axes, box, [], edge=TASK_COLOURS[task], linewidth=2.5)
    title = f"Stage {stage_number(task)}: train {TASK_NAMES[task]}"
    length = f"{settings.epochs[task]} epochs, {size} × {size} pixels"
    write(axes, box.at(0.5, 0.86), title, weight="bold", size=10)
    write(axes, box.at(0.5, 0.68), length)
    slices = [Slice(task, new, f"{new} new")]
    replay = ""
    if replayed and earlier_tasks(task):
        slices += [Slice(earlier, replayed, f"{replayed} {earlier}") for earlier in earlier_tasks(task)]
        replay = f" + {replayed * len(earlier_tasks(task))} replayed"
    bar_box = Box(box.left + 0.15, box.bottom + 0.32, box.width - 0.3, 0.3)
    bar(axes, bar_box, slices)
    write(axes, box.at(0.5, 0.13), f"one step: {new} new{replay} images")


def checkpoint_box(task: Task) -> Box:
    """Where the name of a stage's checkpoint stands: below the stage."""
    box = STAGES[task]
    return Box(box.left, 1.32, box.width, 0.4)


def draw_checkpoint(axes: Axes, task: Task, fold_batchnorm: bool) -> None:
    """The checkpoint that a stage leaves, from which the next one starts."""
    stage = STAGES[task]
    checkpoint = checkpoint_box(task)
    x, _ = stage.at(0.5, 0)
    link(axes, stage, checkpoint)
    write(axes, (x - 0.1, 1.93), "best epoch", align="right")
    if fold_batchnorm and task == TASKS[0]:
        write(axes, (x + 0.1, 1.93), "BatchNorm folded", align="left")
    block(axes, checkpoint, [])
    write(axes, checkpoint.at(0.5, 0.5), f"{stage_name(task)}.pt", family="DejaVu Sans Mono")
    after = next_stage(task)
    if after:
        between = (stage.right + after.left) / 2
        start = checkpoint.at(1, 0.5)
        end = after.at(0, 0.5)
        arrow(axes, start, (between, start[1]), (between, end[1]), end)


def draw_evaluation(axes: Axes, task: Task) -> None:
    """The metrics of all tasks learned so far, below a stage's checkpoint."""
    stage = STAGES[task]
    scores = Box(stage.left, 0.2, stage.width, 0.78)
    link(axes, checkpoint_box(task), scores)
    group(axes, scores, "Evaluate on val: all tasks so far")
    for number, learned in enumerate(learned_by(task)):
        metric = Box(stage.left + 0.12 + 0.945 * number, 0.28, 0.87, 0.3)
        task_block(axes, metric, [METRIC_NAMES[learned]], learned)


def stored_boxes(task: Task) -> dict[Task, Box]:
    """The boxes of what the buffer holds when a stage begins: of every earlier task, above the stage."""
    left = STAGES[task].left + 0.12
    boxes = {}
    for earlier in earlier_tasks(task):
        boxes[earlier] = Box(left, BUFFER_LINE - 0.2, 1.12, 0.4)
        left += 1.2
    return boxes


def draw_replay(axes: Axes, task: Task, buffer_size: int, replayed: int) -> None:
    """What the buffer holds during a stage, and how much of it a step replays."""
    for earlier, stored in stored_boxes(task).items():
        task_block(axes, stored, [f"{buffer_size} {earlier}"], earlier)
        link(axes, stored, STAGES[task])
        x, _ = stored.at(0.5, 0)
        write(axes, (x + 0.1, BELOW_BUFFER), f"{replayed} per step", align="left")


def draw_stored(axes: Axes, task: Task, buffer_size: int) -> None:
    """What a stage adds to the buffer for the next one; the last stage adds nothing."""
    after = next_stage(task)
    if after is None:
        return
    x, y = STAGES[task].at(0.88, 1)
    boxes = list(stored_boxes(task).values())
    if boxes:  # what is there already is handed on too
        arrow(axes, boxes[-1].at(1, 0.5), (x, BUFFER_LINE))
    arrow(axes, (x, y), (x, BUFFER_LINE), (after.left + 0.12, BUFFER_LINE))
    write(axes, (x + 0.1, BELOW_BUFFER), f"{buffer_size} images kept", align="left")
