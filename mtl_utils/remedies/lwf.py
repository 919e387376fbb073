"""Learning without forgetting: distillation from the previous model on the new images."""

from torch import Tensor

from mtl_utils.remedies.distances import distillation_distance, mean_distance, soft_kl
from mtl_utils.remedies.distillation import PreviousModelDistillation
from mtl_utils.tasks import Task


class LearningWithoutForgetting(PreviousModelDistillation):
    """LwF: the previous model's soft predictions on the new images are targets for the earlier tasks.

    distance = mean over cells of T^2 KL(softmax(teacher / T) || softmax(student / T)), T = 2
    Z. Li and D. Hoiem, "Learning without Forgetting", ECCV 2016, section 3. The paper classifies images; here each
    cell is classified, and a detection's box and class count in proportion to the teacher's confidence.
    """

    def distance(self, task: Task, student: Tensor, teacher: Tensor) -> Tensor:
        """Soft targets, averaged over cells or images."""
        distances = distillation_distance(task, student, teacher, soft_kl)
        return mean_distance(task, distances, teacher)
