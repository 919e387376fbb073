"""How sure a metric is: the bootstrap over images, paired, since every run is read on the same draws of images.

B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 13. A draw is as many images as the
set has, with replacement; the metric of a draw is computed as that of a set, from all its images together.
"""

import contextlib
import io

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from mtl_utils.data import MiniSet
from mtl_utils.evaluation import class_iou, coco_evaluation, confusion_matrix
from mtl_utils.tasks import VOC_CLASSES

RESAMPLES = 1000
LEVEL = 0.95  # of an interval
STORED_SCALE = 10_000  # draws are stored as whole numbers of this fraction


def resample_indices(images: int, draws: int = RESAMPLES) -> np.ndarray:
    """Indices (draws, images) of the images of every draw: always the same ones for sets of the same size."""
    return np.random.default_rng(0).integers(0, images, (draws, images))


def bootstrap_segmentation(dataset: MiniSet, masks: list[Tensor], indices: np.ndarray) -> np.ndarray:
    """mIoU (draws,) of each draw."""
    n = len(VOC_CLASSES)
    truths = [target["mask"].as_subclass(Tensor) for _, target in dataset.samples]
    each = torch.stack([confusion_matrix(t, m, n) for t, m in zip(truths, masks, strict=True)])
    return np.array([class_iou(each[draw].sum(0)).nanmean().item() for draw in indices])


def bootstrap_detection(dataset: MiniSet, detections: list[dict[str, Tensor]], indices: np.ndarray) -> np.ndarray:
    """mAP@50 (draws,) of each draw, accumulated by COCOeval itself from its matches of each image."""
    every = [[0, 1e10]]  # objects of any size
    run = coco_evaluation(dataset, detections, iouThrs=[0.5], areaRng=every, areaRngLbl=["all"], maxDets=[100])
    matches = np.array(run.evalImgs, dtype=object).reshape(-1, len(dataset))  # (C, images), images sorted by id
    place = np.argsort(np.argsort(dataset.ids))  # of each image of the set among them
    return np.array([accumulated(run, matches[:, place[draw]]) for draw in indices])


def accumulated(run: COCOeval, matches: np.ndarray) -> float:
    """mAP@50 of the images whose matches are given, (C, images); one image may occur several times."""
    run.evalImgs = matches.ravel().tolist()
    run.params.imgIds = run._paramsEval.imgIds = list(range(matches.shape[1]))
    with contextlib.redirect_stdout(io.StringIO()):
        run.accumulate()
    precision = run.eval["precision"][0, :, :, 0, 0]  # (101 recalls, C), -1 where a class has no object
    means = [p.mean() for p in precision.T if (p > -1).any()]
    return float(np.mean(means)) if means else 0.0


def bootstrap_classification(dataset: MiniSet, probabilities: list[Tensor], indices: np.ndarray) -> np.ndarray:
    """Top-1 (draws,) of each draw."""
    truth = torch.stack([target["label"] for _, target in dataset.samples])
    hits = (torch.stack(probabilities).argmax(1) == truth).double().numpy()
    return hits[indices].mean(1)


BOOTSTRAPS = {"seg": bootstrap_segmentation, "det": bootstrap_detection, "cls": bootstrap_classification}


def bootstrap_metric(dataset: MiniSet, predictions: list, draws: int = RESAMPLES) -> np.ndarray:
    """The task's metric (draws,) on every draw of images, from the predictions of evaluation.predict_set."""
    return BOOTSTRAPS[dataset.task](dataset, predictions, resample_indices(len(dataset), draws))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The percentile interval of draws."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
