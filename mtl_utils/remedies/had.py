"""Heterogeneity-aware distillation from the previous model."""

from torch import Tensor

from mtl_utils.remedies.distances import class_balanced_mean, distillation_distance, edge_mean, pseudo_labels
from mtl_utils.remedies.distillation import PreviousModelDistillation


class HeterogeneityAware(PreviousModelDistillation):
    """X. Zhang et al., "HAD", CVPR 2026 (arXiv 2603.26192): distillation for tasks of different output kinds.

    Half of the loss is balanced over the kinds of predictions (each class, object or background counts alike), half is
    taken at salient cells, where the distance itself has its edges. The paper has dense tasks only; here detection's
    cells are the pixels, and classification has no salient half. Groups are averaged plainly where the published code
    takes geometric means and weighs them again.
    """

    def loss(self, task: str, new: Tensor, old: Tensor) -> Tensor:
        """Hard targets, balanced and salient."""
        gaps = distillation_distance(task, new, old, hard=True)
        balanced = class_balanced_mean(gaps, pseudo_labels(task, old))
        return balanced if task == "cls" else (balanced + edge_mean(gaps)) / 2
