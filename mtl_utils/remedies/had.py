"""Heterogeneity-aware distillation from the previous model."""

from torch import Tensor

from mtl_utils.remedies.distances import (
    balanced_over_classes,
    distillation_distance,
    hard_cross_entropy,
    pseudo_labels,
    salient_cells,
    sum_of_halves,
)
from mtl_utils.remedies.distillation import PreviousModelDistillation
from mtl_utils.tasks import Task


class HeterogeneityAware(PreviousModelDistillation):
    """HAD: distillation for tasks of different output kinds, with the teacher's own predictions as hard labels.

    distance = (balanced distance + distance of the salient cells) / 2
    X. Zhang et al., "HAD", CVPR 2026 (arXiv 2603.26192), and the code that its authors published: classes are balanced
    by geometric means, weighted by softmax(-mean); numbers by the sum of the means of their lower and upper halves.
    Salient are the cells where the distance itself has its edges. What differs here: cells take the place of pixels;
    detection counts as a number, its halves being background and objects; classification, which the paper does not
    have, has no salient cells.
    """

    def distance(self, task: Task, student: Tensor, teacher: Tensor) -> Tensor:
        """Distance () of one task's logits, (B, C, h, w) or (B, C) for classification."""
        distances = distillation_distance(task, student, teacher, hard_cross_entropy)  # (B, h, w) or (B,)
        labels = pseudo_labels(task, teacher)
        if task == "cls":
            return balanced_over_classes(distances, labels, classes=teacher.shape[1])
        salient = salient_cells(distances)
        at_edges = distances * salient
        if task == "det":
            balanced = sum_of_halves(distances, labels == 1)
            edge_distance = at_edges.sum() / salient.sum().clamp(min=1)  # the mean over the salient cells
        else:
            balanced = balanced_over_classes(distances, labels, classes=teacher.shape[1])
            edge_distance = at_edges.mean()  # over all cells, as published
        return (balanced + edge_distance) / 2
