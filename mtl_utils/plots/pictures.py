"""Images with their labels or with a model's predictions: masks in VOC's colours, boxes, class names.

In the figures "truth" is an image's label.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from mtl_utils.data import MiniSet, Sample, Target
from mtl_utils.evaluation import IMAGE_SCORES, SHOWN, predict, predict_sets
from mtl_utils.plots.style import SMALLEST_TEXT
from mtl_utils.tasks import IGNORE, TASK_NAMES, TASKS, VOC_CLASSES, Classes, Task, learned_by, stage_number, voc_palette
from mtl_utils.transforms import strong_augmentation

BOX_COLOURS = plt.get_cmap("tab10")
COLUMNS = 4  # images in a grid of predictions
MASK_ALPHA = 165  # of 255: the image shows through
BORDER_COLOUR = (255, 255, 255, 220)  # RGBA of the ignored border
TEXT_HEIGHT = 0.08  # of a box's text, as a fraction of an image in the usual grids
Models = Mapping[Task, nn.Module]  # by the stage that made them
Sets = dict[Task, MiniSet]
Prediction = Any  # of one image: mask (H, W), detections or class probabilities (C,), as evaluation.predict gives them


# ---- one image


def draw_image(axis: Axes, image: Tensor, title: str = "") -> None:
    """A (3, H, W) uint8 image without axes."""
    axis.imshow(image.permute(1, 2, 0).numpy())
    axis.set_axis_off()
    axis.set_title(title, fontsize=9)


def draw_seg(axis: Axes, image: Tensor, mask: Tensor) -> None:
    """The mask (H, W) over the image, its classes named above."""
    present = [index for index in mask.unique().tolist() if index not in (0, IGNORE)]
    names = ", ".join(VOC_CLASSES[index] for index in present)
    title = textwrap.shorten(names or "background only", 30, placeholder=" …")
    draw_image(axis, image, title)
    draw_mask(axis, mask)


def draw_mask(axis: Axes, mask: Tensor) -> None:
    """VOC's colours over an image; the background lets it through, the ignored border is white."""
    rgb = np.array(voc_palette(), np.uint8).reshape(256, 3)
    alpha = np.full((256, 1), MASK_ALPHA, np.uint8)
    colours = np.concatenate([rgb, alpha], axis=1)  # (256, 4)
    colours[0] = 0  # transparent
    colours[IGNORE] = BORDER_COLOUR
    axis.imshow(colours[mask.numpy()])


def draw_det(axis: Axes, image: Tensor, objects: dict[str, Tensor], classes: Classes) -> None:
    """The image with its objects or detections, their number above."""
    draw_image(axis, image)
    count = draw_boxes(axis, objects, classes)
    noun = "detection" if "scores" in objects else "object"
    title = f"1 {noun}" if count == 1 else f"{count} {noun}s"
    axis.set_title(title, fontsize=9)


def draw_boxes(axis: Axes, objects: dict[str, Tensor], classes: Classes, threshold: float = SHOWN) -> int:
    """Boxes with their classes; crowds are dashed. Returns how many are drawn.

    Detections show their scores too, from the threshold on; the objects of a label have none and are all drawn.
    """
    boxes = objects["boxes"]  # (N, 4) XYXY, pixels
    labels = objects["labels"]
    scores = objects.get("scores")
    crowd = objects.get("crowd", torch.zeros_like(labels))  # a model predicts no crowds
    shown = torch.ones_like(labels) if scores is None else scores >= threshold
    indices = shown.nonzero().flatten().tolist()
    for index in indices:
        label = int(labels[index])
        text = classes.det[label]
        if scores is not None:
            text = f"{text} {scores[index]:.2f}"
        dashed = bool(crowd[index])
        draw_box(axis, boxes[index].tolist(), text, label, dashed)
    return len(indices)


def draw_box(axis: Axes, box: Sequence[float], text: str, label: int, dashed: bool) -> None:
    """A box (left, top, right, bottom) in the colour of its class index, with text above it.

    In the right half of the image the text ends where the box ends, at the upper edge it stands inside the box: else
    the image's border would cut it off.
    """
    left, top, right, bottom = box
    width = max(axis.get_xlim())
    height = max(axis.get_ylim())
    in_right_half = left + right > width
    at_upper_edge = top < TEXT_HEIGHT * height
    colour = BOX_COLOURS(label % BOX_COLOURS.N)
    outline = Rectangle(
        (left, top),
        width=right - left,
        height=bottom - top,
        fill=False,
        edgecolor=colour,
        linewidth=1.5,
        linestyle="--" if dashed else "-",
    )
    axis.add_patch(outline)
    axis.text(
        min(right, width) if in_right_half else left,
        top,
        text,
        fontsize=SMALLEST_TEXT,
        color="white",
        ha="right" if in_right_half else "left",
        va="top" if at_upper_edge else "bottom",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
        clip_on=True,
    )


def class_text(probabilities: Tensor, classes: Classes) -> str:
    """The name of the most probable class, with its probability."""
    best = int(probabilities.argmax())
    name = classes.names("cls")[best]
    return f"{name} ({probabilities[best]:.2f})"


def draw_target(axis: Axes, task: Task, image: Tensor, target: Target, classes: Classes) -> None:
    """An image with its label."""
    if task == "seg":
        draw_seg(axis, image, target["mask"])
    elif task == "det":
        draw_det(axis, image, target, classes)
    else:
        draw_image(axis, image, classes.names("cls")[target["label"]])


def draw_prediction(axis: Axes, task: Task, image: Tensor, prediction: Prediction, classes: Classes) -> None:
    """An image with the prediction of one task."""
    if task == "seg":
        draw_seg(axis, image, prediction)
    elif task == "det":
        draw_det(axis, image, prediction, classes)
    else:
        draw_image(axis, image, class_text(prediction, classes))


def draw_predictions(
    axis: Axes, image: Tensor, predictions: dict[Task, Prediction], classes: Classes, threshold: float = SHOWN
) -> None:
    """One image with the predictions of several tasks at once: mask, boxes, and the class above."""
    title = class_text(predictions["cls"], classes) if "cls" in predictions else ""
    draw_image(axis, image, title)
    if "seg" in predictions:
        draw_mask(axis, predictions["seg"])
    if "det" in predictions:
        draw_boxes(axis, predictions["det"], classes, threshold)


def draw_sample(axis: Axes, dataset: MiniSet, index: int) -> None:
    """An image of a set with its label."""
    image, target = dataset[index]
    draw_target(axis, dataset.task, image, target, dataset.classes)


# ---- grids of one set's images


def make_grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure of this width and height in inches, and its axes (rows, columns)."""
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    return figure, axes


def evenly_spaced(dataset: MiniSet, count: int) -> list[int]:
    """`count` indices spread evenly over a set: the choice does not depend on how well they are predicted."""
    count = min(count, len(dataset))
    positions = np.linspace(0, len(dataset) - 1, count)
    return [int(position) for position in positions.round()]


def sample_grid(dataset: MiniSet, count: int = 4) -> Figure:
    """Images of one set with their labels."""
    figure, axes = make_grid(1, count, (10, 2.6))
    for axis, index in zip(axes[0], evenly_spaced(dataset, count), strict=True):
        draw_sample(axis, dataset, index)
    return figure


def shown_images(dataset: MiniSet) -> list[int]:
    """The images whose predictions are shown."""
    return evenly_spaced(dataset, COLUMNS)


def prediction_grid(model: nn.Module, dataset: MiniSet, size: int) -> Figure:
    """Labels above, predictions below; `size` is the side in pixels at which the model reads an image."""
    indices = shown_images(dataset)
    figure, axes = make_grid(2, len(indices), (10, 4.8))
    images = [dataset[index][0] for index in indices]
    predictions = predict(model, images, size)
    for column, index, prediction in zip(axes.T, indices, predictions, strict=True):
        draw_pair(column, dataset, index, prediction.of(dataset.task))
    label_row(axes[0, 0], "truth")
    label_row(axes[1, 0], "prediction")
    return figure


def draw_pair(pair: np.ndarray, dataset: MiniSet, index: int, prediction: Prediction) -> None:
    """Fill two axes with one image of a set: its label and a prediction."""
    image, _ = dataset[index]
    draw_sample(pair[0], dataset, index)
    draw_prediction(pair[1], dataset.task, image, prediction, dataset.classes)


# ---- grids with a row for each task


def augmentation_grid(datasets: Sets, sizes: dict[Task, int], index: int, count: int = 3) -> Figure:
    """One image of each task by row: as it is, and `count` times as training sees it; labels move along.

    sizes: the side in pixels of a task's training images. Random numbers drawn elsewhere are not disturbed.
    """
    figure, axes = make_grid(len(TASKS), 1 + count, (8.4, 6))
    for row, (task, dataset) in zip(axes, datasets.items(), strict=True):
        draw_sample(row[0], dataset, index)
        label_row(row[0], TASK_NAMES[task])
        for seed, axis in enumerate(row[1:]):
            image, target = augmented(dataset[index], task, sizes[task], seed)
            draw_target(axis, task, image, target, dataset.classes)
    label_columns(axes[0], ["as it is", *["in training"] * count])
    return figure


def augmented(sample: Sample, task: Task, size: int, seed: int) -> Sample:
    """A sample as training sees it at this seed; the global random state stays as it was."""
    augmentation = strong_augmentation(task, size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        changed: Sample = augmentation(*sample)
    return changed


def exemplar_grid(samples: Mapping[Task, Sequence[Sample]], classes: Classes, count: int = 5) -> Figure:
    """The first exemplars that a replay buffer keeps of each task, by row, with their labels."""
    rows = len(samples)
    figure, axes = make_grid(rows, count, (10, 2.3 * rows))
    for row, (task, stored) in zip(axes, samples.items(), strict=True):
        label_row(row[0], TASK_NAMES[task])
        for axis, (image, target) in zip(row, stored, strict=False):
            draw_target(axis, task, image, target, classes)
        for axis in row[len(stored) :]:
            axis.set_axis_off()
    return figure


def best_and_worst(model: nn.Module, datasets: Sets, size: int) -> Figure:
    """For each task by row the image that is predicted best and the one predicted worst, label beside prediction."""
    figure, axes = make_grid(len(TASKS), 4, (7, 5))
    predictions_of_task = predict_sets(model, list(datasets.values()), size)
    for row, (task, dataset) in zip(axes, datasets.items(), strict=True):
        label_row(row[0], TASK_NAMES[task])
        predictions = predictions_of_task[task]
        scores = image_scores(dataset, predictions)
        best = int(np.argmax(scores))
        worst = int(np.argmin(scores))
        draw_pair(row[:2], dataset, best, predictions[best])
        write_below(row[1], f"best: {scores[best]:.2f}")
        draw_pair(row[2:], dataset, worst, predictions[worst])
        write_below(row[3], f"worst: {scores[worst]:.2f}")
    label_columns(axes[0], ["truth", "prediction", "truth", "prediction"])
    return figure


def image_scores(dataset: MiniSet, predictions: Sequence[Prediction]) -> list[float]:
    """How well each image of a set is predicted, from 0 to 1."""
    score = IMAGE_SCORES[dataset.task]
    scores = []
    for prediction, target in zip(predictions, dataset.targets(), strict=True):
        scores.append(score(prediction, target))
    return scores


# ---- grids with a column for each stage


def stage_grid(models: Models, datasets: Sets, size: int, index: int) -> Figure:
    """One image of each task by row: its label, and what the model of each stage predicts."""
    figure, axes = make_grid(len(TASKS), 1 + len(models), (8.4, 5.5))
    for row, (task, dataset) in zip(axes, datasets.items(), strict=True):
        draw_stages(row, models, dataset, size, index % len(dataset))
        label_row(row[0], TASK_NAMES[task])
    label_stages(axes[0], models)
    return figure


def run_grid(runs: Mapping[str, Models], datasets: Sets, size: int, index: int) -> Figure:
    """The same image of each set through the stages of several runs (label: models), one run below another."""
    rows = []
    for dataset in datasets.values():
        for label, models in runs.items():
            rows.append((label, models, dataset))
    columns = 1 + max(len(models) for models in runs.values())
    figure, axes = make_grid(len(rows), columns, (8.4, 1.75 * len(rows)))
    for row, (label, models, dataset) in zip(axes, rows, strict=True):
        draw_stages(row, models, dataset, size, index % len(dataset))
        label_row(row[0], label)
    label_stages(axes[0], models)
    return figure


def draw_stages(row: np.ndarray, models: Models, dataset: MiniSet, size: int, index: int) -> None:
    """Fill a row of axes: an image with its label, and with what the model of each stage predicts."""
    task = dataset.task
    image, _ = dataset[index]
    draw_sample(row[0], dataset, index)
    for axis, (stage, model) in zip(row[1:], models.items(), strict=True):
        if task in learned_by(stage):
            prediction = predict(model, [image], size)[0]
            draw_prediction(axis, task, image, prediction.of(task), dataset.classes)
        else:
            axis.text(0.5, 0.5, "not learned yet", ha="center", va="center", color="0.5", fontsize=9)
            axis.set_axis_off()


# ---- words beside images


def label_row(axis: Axes, word: str) -> None:
    """A word at the left of a row of images."""
    axis.text(-0.06, 0.5, word, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=10)


def label_stages(axes: np.ndarray, stages: Iterable[Task]) -> None:
    """The words above a row that draw_stages fills."""
    words = [f"after stage {stage_number(stage)}" for stage in stages]
    label_columns(axes, ["truth", *words])


def label_columns(axes: np.ndarray, words: Sequence[str]) -> None:
    """A word above each of a row of images."""
    for axis, word in zip(axes, words, strict=True):
        axis.annotate(
            word,
            xy=(0.5, 1),
            xycoords="axes fraction",
            xytext=(0, 20),  # points: above the image's own title
            textcoords="offset points",
            ha="center",
            fontweight="bold",
            fontsize=10,
        )


def write_below(axis: Axes, text: str) -> None:
    """A line of text below an image."""
    axis.text(0.5, -0.03, text, transform=axis.transAxes, ha="center", va="top", fontsize=9)
