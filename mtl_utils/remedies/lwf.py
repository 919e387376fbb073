"""Learning without forgetting: distillation from the previous model on the new images."""

from torch import Tensor

from mtl_utils.remedies.distances import distillation_distance, plain_mean
from mtl_utils.remedies.distillation import PreviousModelDistillation


class LearningWithoutForgetting(PreviousModelDistillation):
    """Z. Li and D. Hoiem, "Learning without Forgetting", ECCV 2016: the old network's soft answers on the new images.

    Its classification loss is used for every cell; a detection's box and class count as far as the old network is sure.
    """

    def loss(self, task: str, new: Tensor, old: Tensor) -> Tensor:
        """Soft targets."""
        return plain_mean(task, distillation_distance(task, new, old), old)
