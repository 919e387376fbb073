"""What a model predicted for each image of a set, as far as the metrics depend on it: small enough to be published.

From these numbers anyone can compute a metric again, of the set or of any resample of its images, without the images,
the weights or this project. Plain lists, as a JSON holds them, by task:

seg    for each image, [true class, predicted class, pixels] of each pair that occurs; the masks' border left out
det    for each class its "objects", how many each image has, and its "detections" from the highest confidence to the
       lowest: n for one that hits an object of image n, -n for one that hits none; the first image is 1
cls    for each image [true class, predicted class]

Detections whose object is a crowd count neither way and are left out; so are those after the last hit of a class, which
change no average precision.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from mtl_utils.data import MiniSet
from mtl_utils.detection import MAX_DETECTIONS, Detections
from mtl_utils.evaluation import MATCH_IOU, Predictions, coco_evaluation, confusion_matrix, image_numbers
from mtl_utils.tasks import VOC_CLASSES, Task

Outcomes = list[Any]  # of one task, as above

RECALLS = np.linspace(0, 1, 101)  # at which COCO reads precision


# ---- from predictions


def collect_outcomes(dataset: MiniSet, predictions: Predictions) -> Outcomes:
    """The outcomes of a set, from the predictions of evaluation.predict_sets."""
    if dataset.task == "seg":
        return pixel_outcomes(dataset, cast(Sequence[Tensor], predictions))
    if dataset.task == "det":
        return box_outcomes(dataset, cast(Sequence[Detections], predictions))
    return class_outcomes(dataset, cast(Sequence[Tensor], predictions))


def pixel_outcomes(dataset: MiniSet, masks: Sequence[Tensor]) -> Outcomes:
    """Of masks (H, W) uint8, one an image."""
    outcomes = []
    for target, mask in zip(dataset.targets(), masks, strict=True):
        true = target["mask"].as_subclass(Tensor)
        matrix = confusion_matrix(true, mask, len(VOC_CLASSES))
        pairs = matrix.nonzero()  # (P, 2)
        pixels = matrix[pairs[:, 0], pairs[:, 1]]  # (P,)
        outcomes.append(torch.cat([pairs, pixels[:, None]], dim=1).tolist())
    return outcomes


def class_outcomes(dataset: MiniSet, probabilities: Sequence[Tensor]) -> Outcomes:
    """Of class probabilities (C,), one an image."""
    labels = torch.stack([target["label"] for target in dataset.targets()])  # (N,)
    predicted = torch.stack(list(probabilities)).argmax(1)  # (N,)
    outcomes: Outcomes = torch.stack([labels, predicted], dim=1).tolist()
    return outcomes


def box_outcomes(dataset: MiniSet, detections: Sequence[Detections]) -> Outcomes:
    """Of detections, one set an image, as COCOeval matches them to objects at an overlap of MATCH_IOU."""
    any_size = [[0, 1e10]]  # square pixels
    run = coco_evaluation(
        dataset,
        detections,
        iouThrs=[MATCH_IOU],
        areaRng=any_size,
        areaRngLbl=["all"],
        maxDets=[MAX_DETECTIONS],
    )
    number_of = image_numbers(dataset)
    columns = [number_of[key] - 1 for key in dataset.ids]  # where COCOeval has each image of the set
    return [one_class(run, number, columns) for number in range(len(dataset.classes.det))]


def one_class(run: COCOeval, class_number: int, columns: list[int]) -> dict[str, list[int]]:
    """The objects and the detections of one class, from COCOeval's matches."""
    objects = [0] * len(columns)
    found: list[tuple[float, int]] = []  # confidence and signed image of each detection
    for place, column in enumerate(columns):
        matches = run.evalImgs[class_number * len(columns) + column]
        if matches is None:  # neither an object nor a detection
            continue
        objects[place] = int(np.count_nonzero(matches["gtIgnore"] == 0))
        image = place + 1
        hits = matches["dtMatches"][0] > 0  # (D,)
        kept = matches["dtIgnore"][0] == 0  # (D,): not a crowd's
        for number in np.flatnonzero(kept):
            score = float(matches["dtScores"][number])
            found.append((score, image if hits[number] else -image))
    found.sort(key=confidence, reverse=True)  # stable: of equals the one of the first image comes first, as in COCOeval
    signed = [image for _, image in found]
    while signed and signed[-1] < 0:
        signed.pop()
    return {"objects": objects, "detections": signed}


def confidence(detection: tuple[float, int]) -> float:
    """What detections are sorted by."""
    return detection[0]


# ---- from outcomes


def metric_of(task: Task, outcomes: Outcomes, counts: np.ndarray) -> np.ndarray:
    """The task's metric (R,) where image i occurs counts[r, i] times: mIoU, mAP@50 or Top-1."""
    if task == "seg":
        return mean_iou(pixel_matrices(outcomes), counts)
    if task == "det":
        return mean_average_precision(outcomes, counts)
    hits = np.array([true == predicted for true, predicted in outcomes], dtype=float)  # (images,)
    return (counts @ hits) / counts.sum(1)


def pixel_matrices(outcomes: Outcomes) -> np.ndarray:
    """The confusion matrix of each image's pixels, (images, 21, 21), true class by row."""
    classes = len(VOC_CLASSES)
    matrices = np.zeros((len(outcomes), classes, classes))
    for matrix, pairs in zip(matrices, outcomes, strict=True):
        for true, predicted, pixels in pairs:
            matrix[true, predicted] = pixels
    return matrices


def mean_iou(matrices: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """mIoU (R,), the mean over the classes that occur, in masks or predictions, from images' matrices (I, C, C)."""
    sums = np.einsum("ri,itp->rtp", counts, matrices)  # (R, true, predicted)
    hits = np.diagonal(sums, axis1=1, axis2=2)  # (R, 21)
    union = sums.sum(1) + sums.sum(2) - hits
    occurs = union > 0
    iou = np.divide(hits, union, out=np.zeros_like(union), where=occurs)
    means: np.ndarray = iou.sum(1) / occurs.sum(1)
    return means


def mean_average_precision(outcomes: Outcomes, counts: np.ndarray) -> np.ndarray:
    """mAP@50 (R,): the mean over the classes with objects; 0 where no class has one."""
    total = np.zeros(len(counts))
    classes = np.zeros(len(counts))
    for of_class in outcomes:
        objects = counts @ np.array(of_class["objects"])  # (R,)
        total += average_precision(of_class["detections"], objects, counts)
        classes += objects > 0
    return total / np.maximum(classes, 1)


def average_precision(detections: list[int], objects: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """COCO's AP@50 (R,) of one class with this many objects (R,): mean precision at 101 recalls; 0 without objects."""
    values = np.zeros(len(counts))
    if not detections:
        return values
    signed = np.array(detections)
    times = counts[:, np.abs(signed) - 1]  # (R, D): how often each detection occurs
    hits = (times * (signed > 0)).cumsum(1)
    seen = times.cumsum(1)
    precision = hits / np.maximum(seen, 1)
    # at each recall the highest precision at this or a higher one
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    for row in np.flatnonzero(objects):
        recall = hits[row] / objects[row]
        reached = np.searchsorted(recall, RECALLS)
        at_recalls = np.append(precision[row], 0.0)[reached]  # 0 at a recall that is never reached
        values[row] = at_recalls.mean()
    return values
