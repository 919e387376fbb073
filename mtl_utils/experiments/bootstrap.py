"""How sure a metric is: the bootstrap over images, paired, since every run is measured on the same resamples.

B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 13. A resample is as many images as
the set has, with replacement; its metric is computed as that of a set, from all its images together.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from mtl_utils.data import MiniSet
from mtl_utils.detection import MAX_DETECTIONS, Detections
from mtl_utils.evaluation import (
    MATCH_IOU,
    Predictions,
    class_iou,
    coco_evaluation,
    confusion_matrix,
    image_numbers,
    mean_ap,
)
from mtl_utils.tasks import VOC_CLASSES

RESAMPLES = 1000
LEVEL = 0.95  # of an interval
STORED_SCALE = 10_000  # metrics of resamples are stored as whole numbers of this fraction


class Interval(NamedTuple):
    """A confidence interval at level LEVEL."""

    low: float
    high: float


def interval(values: np.ndarray) -> Interval:
    """The percentile interval of the values (resamples,)."""
    tail = (1 - LEVEL) / 2  # outside the interval at either end
    low, high = np.quantile(values, [tail, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def resample_indices(images: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Indices (resamples, images) of the images of every resample: always the same ones for sets of the same size."""
    rng = np.random.default_rng(0)
    return rng.integers(0, images, (resamples, images))


def bootstrap_metric(dataset: MiniSet, predictions: Predictions, resamples: int = RESAMPLES) -> np.ndarray:
    """The task's metric (resamples,) on every resample, from the predictions of evaluation.predict_sets."""
    indices = resample_indices(len(dataset), resamples)
    if dataset.task == "seg":
        return bootstrap_segmentation(dataset, predictions, indices)
    if dataset.task == "det":
        return bootstrap_detection(dataset, predictions, indices)
    return bootstrap_classification(dataset, predictions, indices)


def bootstrap_segmentation(dataset: MiniSet, masks: Sequence[Tensor], indices: np.ndarray) -> np.ndarray:
    """mIoU (resamples,) of masks (H, W), one an image, on resamples of these indices (resamples, images)."""
    matrices = []
    for target, mask in zip(dataset.targets(), masks, strict=True):
        true = target["mask"].as_subclass(Tensor)
        matrices.append(confusion_matrix(true, mask, len(VOC_CLASSES)))
    by_image = torch.stack(matrices)  # (images, 21, 21)
    values = []
    for chosen in indices:
        matrix = by_image[chosen].sum(0)
        values.append(class_iou(matrix).nanmean().item())
    return np.array(values)


def bootstrap_detection(dataset: MiniSet, detections: Sequence[Detections], indices: np.ndarray) -> np.ndarray:
    """mAP@50 (resamples,) on resamples of these indices, accumulated by COCOeval from its matches in each image."""
    any_size = [[0, 1e10]]  # square pixels
    run = coco_evaluation(
        dataset,
        detections,
        iouThrs=[MATCH_IOU],
        areaRng=any_size,
        areaRngLbl=["all"],
        maxDets=[MAX_DETECTIONS],
    )
    matches = np.array(run.evalImgs, dtype=object)
    matches = matches.reshape(-1, len(dataset))  # (C, images), images sorted by id
    number_of = image_numbers(dataset)
    column = np.array([number_of[key] - 1 for key in dataset.ids])  # of each image of the set
    values = [resampled_map(run, matches[:, column[chosen]]) for chosen in indices]
    return np.array(values)


def resampled_map(run: COCOeval, matches: np.ndarray) -> float:
    """mAP@50 of the images whose matches (C, images) are given; one image may occur several times."""
    run.evalImgs = matches.ravel().tolist()
    image_ids = list(range(matches.shape[1]))  # new ones, since those of the set would occur several times
    run.params.imgIds = image_ids
    run._paramsEval.imgIds = image_ids
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        run.accumulate()
    precision = run.eval["precision"]  # (1 overlap, 101 recalls, C, 1 size, 1 limit of detections)
    return mean_ap(precision[0, :, :, 0, 0])


def bootstrap_classification(dataset: MiniSet, probabilities: Sequence[Tensor], indices: np.ndarray) -> np.ndarray:
    """Top-1 (resamples,) of class probabilities (C,), one an image, on resamples of these indices."""
    labels = torch.stack([target["label"] for target in dataset.targets()])  # (images,)
    predicted = torch.stack(list(probabilities)).argmax(1)  # (images,)
    hits = (predicted == labels).double().numpy()
    return hits[indices].mean(1)
