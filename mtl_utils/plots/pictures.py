"""Photographs with what is known or predicted about them, and what the data looks like in numbers."""

import textwrap
from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from mtl_utils.data import MiniSet, Sample
from mtl_utils.evaluation import IMAGE_SCORES, SHOWN, predict, predict_set
from mtl_utils.tasks import IGNORE, TASK_NAMES, TASKS, VOC_CLASSES, Classes, voc_palette
from mtl_utils.transforms import strong_augmentation

BOX_COLOURS = plt.get_cmap("tab10").colors


def draw_image(axis: Axes, image: Tensor, title: str = "") -> None:
    """A (3, H, W) uint8 image without axes."""
    axis.imshow(image.permute(1, 2, 0).numpy())
    axis.set_axis_off()
    axis.set_title(title, fontsize=9)


def draw_seg(axis: Axes, image: Tensor, mask: Tensor, classes: Classes) -> None:
    """The mask over the image, its classes named above."""
    present = [c for c in mask.unique().tolist() if c not in (0, IGNORE)]
    names = ", ".join(VOC_CLASSES[c] for c in present) or "background only"
    draw_image(axis, image, textwrap.shorten(names, 30, placeholder=" …"))
    draw_mask(axis, mask)


def draw_mask(axis: Axes, mask: Tensor) -> None:
    """VOC's colours over an image; the background lets it through, the ignored border is white."""
    rgb = np.array(voc_palette(), np.uint8).reshape(256, 3)
    colours = np.concatenate([rgb, np.full((256, 1), 165, np.uint8)], axis=1)
    colours[0] = 0
    colours[IGNORE] = (255, 255, 255, 220)
    axis.imshow(colours[mask.numpy()])


def draw_det(axis: Axes, image: Tensor, found: dict[str, Tensor], classes: Classes) -> None:
    """The image with its objects, their number above."""
    draw_image(axis, image)
    count = draw_boxes(axis, found, classes)
    axis.set_title(f"{count} object{'s' * (count != 1)}", fontsize=9)


def draw_boxes(axis: Axes, found: dict[str, Tensor], classes: Classes, threshold: float = SHOWN) -> int:
    """Boxes with class and, for detections from a least score on, score; crowds are dashed. Returns how many."""
    scores = found.get("scores", torch.ones(len(found["labels"])))
    crowds = found.get("crowd", torch.zeros(len(found["labels"]), dtype=torch.bool))
    rows = zip(found["boxes"].tolist(), found["labels"], scores, crowds, strict=True)
    shown = [row for row in rows if row[2] >= threshold]
    for (left, top, right, bottom), label, score, crowd in shown:
        colour = BOX_COLOURS[int(label) % len(BOX_COLOURS)]
        style = {"fill": False, "edgecolor": colour, "linewidth": 1.5, "linestyle": "--" if crowd else "-"}
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, **style))
        text = classes.det[label] + (f" {score:.2f}" if "scores" in found else "")
        box = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
        axis.text(left, top, text, fontsize=6, color="white", va="bottom", bbox=box, clip_on=True)
    return len(shown)


def draw_cls(axis: Axes, image: Tensor, answer: Tensor, classes: Classes) -> None:
    """The class as title, with its probability where `answer` holds probabilities (C,) instead of a label ()."""
    best = int(answer.argmax()) if answer.ndim else int(answer)
    draw_image(axis, image, classes.names("cls")[best] + (f" ({answer[best]:.2f})" if answer.ndim else ""))


DRAW = {"seg": draw_seg, "det": draw_det, "cls": draw_cls}
TRUTH = {"seg": lambda t: t["mask"].as_subclass(Tensor), "det": lambda t: t, "cls": lambda t: t["label"]}


def draw_truth(axis: Axes, dataset: MiniSet, index: int) -> None:
    """An image of a set with what is known about it."""
    image, target = dataset[index]
    DRAW[dataset.task](axis, image.as_subclass(Tensor), TRUTH[dataset.task](target), dataset.classes)


def draw_answers(axis: Axes, image: Tensor, answers: dict, classes: Classes, threshold: float = SHOWN) -> None:
    """One image with the answers of all tasks given (evaluation.predict's): mask, boxes, and the class above."""
    best = int(answers["cls"].argmax()) if "cls" in answers else None
    draw_image(axis, image, "" if best is None else f"{classes.names('cls')[best]} ({answers['cls'][best]:.2f})")
    if "seg" in answers:
        draw_mask(axis, answers["seg"])
    if "det" in answers:
        draw_boxes(axis, answers["det"], classes, threshold)


def evenly_spaced(dataset: MiniSet, count: int) -> list[int]:
    """`count` indices spread evenly over a set: the choice does not depend on how well they are predicted."""
    return np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()


def sample_grid(dataset: MiniSet, count: int = 4) -> Figure:
    """Images of one set with their labels."""
    figure, axes = plt.subplots(1, count, figsize=(10, 2.6), layout="constrained", squeeze=False)
    for axis, i in zip(axes[0], evenly_spaced(dataset, count), strict=True):
        draw_truth(axis, dataset, i)
    return figure


def augmentation_grid(datasets: dict[str, MiniSet], sizes: dict[str, int], index: int, count: int = 3) -> Figure:
    """One image of each task by row: as it is, and `count` times as training sees it; labels move along."""
    figure, axes = plt.subplots(len(TASKS), 1 + count, figsize=(8.4, 6), layout="constrained")
    for row, (task, dataset) in zip(axes, datasets.items(), strict=True):
        draw_truth(row[0], dataset, index)
        label_row(row[0], TASK_NAMES[task])
        change = strong_augmentation(task, sizes[task])
        for axis, seed in zip(row[1:], range(count), strict=True):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                image, target = change(*dataset[index])
            DRAW[task](axis, image.as_subclass(Tensor), TRUTH[task](target), dataset.classes)
    label_columns(axes[0], ("as it is", *["in training"] * count))
    return figure


def exemplar_grid(samples: dict[str, list[Sample]], classes: Classes, count: int = 5) -> Figure:
    """The first exemplars that a replay buffer keeps of each task, by row, with their labels."""
    figure, axes = plt.subplots(
        len(samples), count, figsize=(10, 2.3 * len(samples)), layout="constrained", squeeze=False
    )
    for row, (task, stored) in zip(axes, samples.items(), strict=True):
        label_row(row[0], TASK_NAMES[task])
        for axis, (image, target) in zip(row, stored, strict=False):
            DRAW[task](axis, image.as_subclass(Tensor), TRUTH[task](target), classes)
        for axis in row[len(stored) :]:
            axis.set_axis_off()
    return figure


def prediction_grid(model: nn.Module, dataset: MiniSet, size: int, count: int = 4) -> Figure:
    """Truth above, prediction below."""
    figure, axes = plt.subplots(2, count, figsize=(10, 4.8), layout="constrained", squeeze=False)
    chosen = [dataset[i] for i in evenly_spaced(dataset, count)]
    answers = predict(model, dataset.task, [image for image, _ in chosen], size)
    for column, (image, target), answer in zip(axes.T, chosen, answers, strict=True):
        for axis, labels in zip(column, (TRUTH[dataset.task](target), answer), strict=True):
            DRAW[dataset.task](axis, image.as_subclass(Tensor), labels, dataset.classes)
    for axis, word in zip(axes[:, 0], ("truth", "prediction"), strict=True):
        label_row(axis, word)
    return figure


def stage_grid(models: dict[str, nn.Module], datasets: dict[str, MiniSet], sizes: dict[str, int], index: int) -> Figure:
    """One image of each task by row: its truth, and what the model of each stage says about it."""
    figure, axes = plt.subplots(len(TASKS), 1 + len(models), figsize=(8.4, 5.5), layout="constrained")
    for row, (task, dataset) in zip(axes, datasets.items(), strict=True):
        draw_stages(row, models, dataset, sizes[task], index % len(dataset))
        label_row(row[0], TASK_NAMES[task])
    label_stages(axes[0], models)
    return figure


def run_grid(
    runs: dict[str, dict[str, nn.Module]], datasets: dict[str, MiniSet], sizes: dict[str, int], index: int
) -> Figure:
    """The same image of each set through the stages of several runs (label: models), one run below another."""
    rows = [(label, models, dataset) for dataset in datasets.values() for label, models in runs.items()]
    columns = 1 + max(map(len, runs.values()))
    figure, axes = plt.subplots(len(rows), columns, figsize=(8.4, 1.75 * len(rows)), layout="constrained")
    for row, (label, models, dataset) in zip(axes, rows, strict=True):
        draw_stages(row, models, dataset, sizes[dataset.task], index % len(dataset))
        label_row(row[0], label)
    label_stages(axes[0], models)
    return figure


def draw_stages(row: np.ndarray, models: dict[str, nn.Module], dataset: MiniSet, size: int, index: int) -> None:
    """Fill a row of axes: the truth about an image, and what the model of each stage says."""
    image, _ = dataset[index]
    draw_truth(row[0], dataset, index)
    for axis, (stage, model) in zip(row[1:], models.items(), strict=True):
        if TASKS.index(stage) >= TASKS.index(dataset.task):
            answer = predict(model, dataset.task, [image], size)[0]
            DRAW[dataset.task](axis, image.as_subclass(Tensor), answer, dataset.classes)
        else:
            axis.text(0.5, 0.5, "not learned yet", ha="center", va="center", color="0.5", fontsize=9)
            axis.set_axis_off()


def best_and_worst(model: nn.Module, datasets: dict[str, MiniSet], sizes: dict[str, int]) -> Figure:
    """For each task by row the image that is predicted best and the one predicted worst, truth beside prediction."""
    figure, axes = plt.subplots(len(TASKS), 4, figsize=(7, 5), layout="constrained")
    for row, (task, dataset) in zip(axes, datasets.items(), strict=True):
        answers = predict_set(model, dataset, sizes[task])
        scores = [IMAGE_SCORES[task](a, target) for a, (_, target) in zip(answers, dataset.samples, strict=True)]
        label_row(row[0], TASK_NAMES[task])
        for pair, i, word in ((row[:2], np.argmax(scores), "best"), (row[2:], np.argmin(scores), "worst")):
            image, target = dataset[int(i)]
            for axis, labels in zip(pair, (TRUTH[task](target), answers[i]), strict=True):
                DRAW[task](axis, image.as_subclass(Tensor), labels, dataset.classes)
            note = {"transform": pair[1].transAxes, "ha": "center", "va": "top", "fontsize": 9}
            pair[1].text(0.5, -0.03, f"{word}: {scores[i]:.2f}", **note)
    label_columns(axes[0], ("truth", "prediction") * 2)
    return figure


def label_row(axis: Axes, word: str) -> None:
    """A word at the left of a row of pictures."""
    axis.text(-0.06, 0.5, word, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=10)


def label_stages(axes: np.ndarray, stages: Iterable[str]) -> None:
    """The words above a row that draw_stages fills."""
    label_columns(axes, ("truth", *(f"after stage {TASKS.index(stage) + 1}" for stage in stages)))


def label_columns(axes: np.ndarray, words: tuple[str, ...]) -> None:
    """A word above each of a row of pictures."""
    for axis, word in zip(axes, words, strict=True):
        look = {"xycoords": "axes fraction", "textcoords": "offset points", "fontweight": "bold", "fontsize": 10}
        axis.annotate(word, (0.5, 1), (0, 20), ha="center", **look)
