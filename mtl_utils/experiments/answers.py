"""Answers to the questions below the notebooks' figures, made from the run that is shown and folded."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from IPython.display import Markdown
from scipy.stats import spearmanr
from torch import Tensor, nn

from mtl_utils.data import MiniSet, Target
from mtl_utils.detection import Detections
from mtl_utils.evaluation import (
    IMAGE_SCORES,
    SHOWN,
    StageMetrics,
    TaskMetrics,
    class_iou,
    confusion_matrix,
    found_objects,
    predict,
)
from mtl_utils.experiments.breakdown import Breakdown
from mtl_utils.experiments.findings import CLASS_METRICS, images_by_class
from mtl_utils.experiments.results import RunSummary, five_percent_drop
from mtl_utils.tasks import METRIC_NAMES, TASK_NAMES, TASKS, VOC_CLASSES, Task, learned_by, stage_number
from mtl_utils.training import BOXES_FROM_MASKS, EpochRecord

History = Sequence[EpochRecord]  # of one stage

HIGH = 0.999  # a precision of 1, but for rounding
LOSS_NAMES: dict[str, str] = {**TASK_NAMES, BOXES_FROM_MASKS: "boxes from masks"}


def folded(lines: Sequence[str]) -> Markdown:
    """Lines of Markdown below a heading that unfolds them."""
    text = "\n".join(lines)
    return Markdown(f"<details><summary>Answer from these results</summary>\n\n{text}\n\n</details>")


# ---- curves


def curves(history: History, before: Mapping[Task, TaskMetrics] | None = None) -> Markdown:
    """How the metrics and the losses of a stage run, a line each.

    before: the metrics at the end of the stage before, if there is one.
    """
    lines = []
    for task in TASKS:
        lines += metric_line(task, history, before or {})
    return folded(lines + loss_lines(history))


def later_stages(stages: StageMetrics, histories: Mapping[Task, History]) -> Markdown:
    """How the metrics of earlier tasks run in every later stage, a line each."""
    lines = []
    for before, stage in pairwise(TASKS):
        for task in stages[before]:
            for line in metric_line(task, histories[stage], stages[before]):
                lines.append(f"- Stage {stage_number(stage)}, {line.removeprefix('- ')}")
    return folded(lines)


def metric_line(task: Task, history: History, before: Mapping[Task, TaskMetrics]) -> list[str]:
    """Where a metric starts, its first value, its highest one and its last one; no line where it is not measured."""
    values = {}
    for record in history:
        if record.val and task in record.val:
            values[record.epoch] = record.val[task]
    if not values:
        return []
    start = f"{before[task].value:.3f} at the end of the stage before; " if task in before else ""
    return [f"- **{METRIC_NAMES[task]}**: {start}{course(values)}."]


def loss_lines(history: History) -> list[str]:
    """A line for each term of the training loss, of its means over the epochs."""
    lines = []
    for term, name in LOSS_NAMES.items():
        values = {}
        for record in history:
            if term in record.loss:
                values[record.epoch] = record.loss[term]
        if values:
            lines.append(f"- Loss of **{name}**: {course(values)}.")
    return lines


def course(values: Mapping[int, float]) -> str:
    """The first and the last of some values by epoch, and the highest where it is neither."""
    first = min(values)
    last = max(values)
    highest = max(values, key=lambda epoch: values[epoch])
    text = f"{values[first]:.3f} in epoch {first}"
    if last > first:
        text += f", {values[last]:.3f} in epoch {last}"
    if highest not in (first, last):
        text += f"; highest in epoch {highest} ({values[highest]:.3f})"
    return text


# ---- predictions that are shown


def shown_predictions(model: nn.Module, dataset: MiniSet, indices: Sequence[int], size: int) -> Markdown:
    """A line for each image of a figure: how well it is predicted; `size`: side of the input."""
    images = [dataset[index][0] for index in indices]
    lines = []
    for number, (index, prediction) in enumerate(zip(indices, predict(model, images, size), strict=True), 1):
        _, target = dataset[index]
        text = describe(dataset, prediction.of(dataset.task), target)
        lines.append(f"- Image {number}: {text}.")
    return folded(lines)


def describe(dataset: MiniSet, prediction: Tensor | Detections, target: Target) -> str:
    """How well one image is predicted, in words."""
    if dataset.task == "seg":
        assert isinstance(prediction, Tensor)
        return mask_words(prediction, target)
    if dataset.task == "det":
        assert not isinstance(prediction, Tensor)
        return box_words(prediction, target)
    assert isinstance(prediction, Tensor)
    return class_words(prediction, target, dataset.classes.names("cls"))


def mask_words(mask: Tensor, target: Target) -> str:
    """The IoU of each object class in one image, and what most of its wrong pixels are called."""
    matrix = confusion_matrix(target["mask"].as_subclass(Tensor), mask, len(VOC_CLASSES))
    ious = class_iou(matrix)
    words = []
    for index in range(1, len(VOC_CLASSES)):
        row = matrix[index].clone()
        pixels = row.sum().item()
        if not pixels:
            continue
        text = f"{VOC_CLASSES[index]} has an IoU of {ious[index].item():.2f}"
        row[index] = 0  # what is left is wrong
        other = int(row.argmax())
        share = 100 * row[other].item() / pixels
        if share >= 1:
            text += f" ({share:.0f} % of its pixels are called {VOC_CLASSES[other]})"
        words.append(text)
    return ", ".join(words)


def box_words(detections: Detections, target: Target) -> str:
    """How many objects of one image are found, the IoU of their boxes, and how many other boxes are shown."""
    found = found_objects(detections, target)
    objects = int((~target["crowd"]).sum())
    shown = int((detections["scores"] >= SHOWN).sum())
    text = f"{len(found)} of {objects} objects found"
    if found:
        ious = ", ".join(f"{iou:.2f}" for iou in sorted(found.values(), reverse=True))
        text += f" (IoU of the boxes: {ious})"
    return f"{text}, other boxes: {shown - len(found)}"


def class_words(probabilities: Tensor, target: Target, names: Sequence[str]) -> str:
    """The two classes of one image with the highest probabilities, and the true one."""
    first, second = two_highest(probabilities, names)
    return f"{first}, then {second}; the label is {names[int(target['label'])]}"


def two_highest(probabilities: Tensor, names: Sequence[str]) -> list[str]:
    """The two classes with the highest of some probabilities (C,), each with its value."""
    values, numbers = probabilities.topk(2)
    words = []
    for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
        words.append(f"{names[number]} ({value:.2f})")
    return words


def one_image_by_stage(
    models: Mapping[Task, nn.Module], datasets: Mapping[Task, MiniSet], size: int, index: int
) -> Markdown:
    """A line for each task: how well the same image is predicted after each stage from the task's own on."""
    lines = []
    for task, dataset in datasets.items():
        image, target = dataset[index % len(dataset)]
        scores = []
        for stage, model in models.items():
            if task in learned_by(stage):
                prediction = predict(model, [image], size)[0]
                score = IMAGE_SCORES[task](prediction.of(task), target)
                scores.append(f"{score:.2f} after stage {stage_number(stage)}")
        lines.append(f"- **{TASK_NAMES[task]}**, score of this image: {', '.join(scores)}.")
    return folded(lines)


def one_map(model: nn.Module, image: Tensor, size: int, names: Sequence[str]) -> Markdown:
    """The class that an image gets, with the probabilities of the first two: Imagenette's classes by `names`."""
    first, second = two_highest(predict(model, [image], size)[0].probabilities, names)
    line = f"The third slice predicts {first}; the next class is {second}."
    return folded([f"{line} The ten probabilities add up to 1 for any picture."])


# ---- the study


def rule_by_run(results: list[RunSummary], names: Sequence[str]) -> Markdown:
    """A line for each run: whether it passes the 5 % rule, and the task that keeps least of its baseline."""
    lines = []
    for name in names:
        drops = [five_percent_drop(results, name, task) for task in TASKS]
        known = [drop for drop in drops if drop is not None]
        if len(known) < len(TASKS):
            lines.append(f"- `{name}`: no verdict, as a baseline is missing.")
            continue
        least = min(known, key=lambda drop: drop.final / drop.baseline)
        verdict = "passes" if all(drop.passed for drop in known) else "fails"
        share = 100 * least.final / least.baseline
        lines.append(f"- `{name}` {verdict}; {METRIC_NAMES[least.task]} keeps least ({share:.1f} % of its baseline).")
    return folded(lines)


# ---- classes


def rare_and_low(metrics: Mapping[Task, TaskMetrics], train: Mapping[Task, MiniSet]) -> Markdown:
    """A line for each task: the span of its classes, and the rank correlation of a class's images with its value."""
    lines = []
    for task in TASKS:
        images = images_by_class(train[task])
        values = {}
        for name, value in metrics[task].per_class.items():
            if value is not None and images[name]:  # background is counted nowhere
                values[name] = value
        if not values:
            continue
        span = f"from {min(values.values()):.2f} to {max(values.values()):.2f}"
        counts = [images[name] for name in values]
        line = f"- **{TASK_NAMES[task]}**, {CLASS_METRICS[task]}: {span}"
        if len(set(counts)) == 1:
            lines.append(f"{line}; all classes have {counts[0]} training images.")
        elif len(set(values.values())) == 1:
            lines.append(f"{line}.")
        else:
            correlation = spearmanr(counts, list(values.values())).statistic
            lines.append(f"{line}; rank correlation with a class's number of training images: {correlation:.2f}.")
    return folded(lines)


def first_detections(precision: np.ndarray, names: Sequence[str]) -> Markdown:
    """The classes whose curve begins at a precision of 1, from COCO's precision (overlaps, 101, C) at an overlap of .5.

    COCO's precision at a recall is the highest at that recall or a larger one.
    """
    starts = dict(zip(names, precision[0, 0].tolist(), strict=True))
    known = {name: start for name, start in starts.items() if start > -1}  # COCO's -1: no object of this class
    high = [name for name, start in known.items() if start >= HIGH]
    low = [f"{name} ({start:.2f})" for name, start in known.items() if start < HIGH]
    line = f"{len(high)} of {len(known)} curves begin at a precision of 1."
    if low:
        line += f" The others: {', '.join(low)}."
    return folded([line])


def count_and_cost(breakdown: Breakdown) -> Markdown:
    """The kind of error that costs most, and the one that there is most of."""
    costly = max(breakdown.gains, key=lambda kind: breakdown.gains[kind])
    frequent = max(breakdown.errors, key=lambda kind: breakdown.errors[kind])
    lines = []
    for word, kind in {"costs most": costly, "is most frequent": frequent}.items():
        gain = f"mAP@50 would be {breakdown.gains[kind]:.3f} higher without them"
        lines.append(f"- *{kind}* {word}: {breakdown.errors[kind]} errors; {gain}.")
    return folded(lines)
