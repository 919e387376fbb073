"""How sure a metric is: the bootstrap over images, paired, since every run is measured on the same resamples.

B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 13. A resample is as many images as
the set has, with replacement; its metric is computed as that of a set, from all its images together.
"""

from typing import NamedTuple

import numpy as np

from mtl_utils.experiments.outcomes import Outcomes, metric_of
from mtl_utils.tasks import Task

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


def times_chosen(indices: np.ndarray) -> np.ndarray:
    """How often each image is in each resample (resamples, images), from the indices of the same shape."""
    counts = np.zeros(indices.shape)
    for count, chosen in zip(counts, indices, strict=True):
        np.add.at(count, chosen, 1)
    return counts


def bootstrap_metric(task: Task, outcomes: Outcomes, images: int) -> np.ndarray:
    """The task's metric (resamples,) on every resample of a set of this many images, from their outcomes."""
    return metric_of(task, outcomes, times_chosen(resample_indices(images)))


def metric_of_set(task: Task, outcomes: Outcomes, images: int) -> float:
    """The task's metric where every image of a set occurs once."""
    (value,) = metric_of(task, outcomes, np.ones((1, images)))
    return float(value)


def stored_draws(values: np.ndarray) -> list[int]:
    """The metric on every resample (resamples,) as whole numbers of 1 / STORED_SCALE, as a study's JSON holds them."""
    draws: list[int] = np.rint(values * STORED_SCALE).astype(int).tolist()
    return draws
