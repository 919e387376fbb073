"""Heterogeneity-aware distillation from the previous model."""

from torch import Tensor

from mtl_utils.remedies.distances import (
    class_balanced_mean,
    distillation_distance,
    edge_mean,
    hard_cross_entropy,
    pseudo_labels,
)
from mtl_utils.remedies.distillation import PreviousModelDistillation
from mtl_utils.tasks import Task


class HeterogeneityAware(PreviousModelDistillation):
    """HAD: distillation for tasks of different output kinds.

    distance = (mean over predicted classes of the mean distance in each + mean distance at salient cells) / 2
    X. Zhang et al., "HAD", CVPR 2026 (arXiv 2603.26192). The first half lets each predicted class, or object and
    background, count alike; the second is taken where the distance itself has its edges. The paper has dense tasks
    only; here detection's cells are the pixels, and classification has no salient half. Class means are averaged
    plainly where the published code takes geometric means and weighs them again.
    """

    def distance(self, task: Task, student: Tensor, teacher: Tensor) -> Tensor:
        """Hard targets, balanced over the predicted classes and, for dense tasks, taken at salient cells as well."""
        distances = distillation_distance(task, student, teacher, hard_cross_entropy)
        balanced = class_balanced_mean(distances, pseudo_labels(task, teacher))
        if task == "cls":
            return balanced
        return (balanced + edge_mean(distances)) / 2
