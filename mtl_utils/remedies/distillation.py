"""Base of the remedies that distil from the model of the previous stage."""

import copy

import torch
from torch import Tensor

from mtl_utils.model import UnifiedModel, task_channels
from mtl_utils.tasks import Task
from mtl_utils.training import Remedy, Trainer


class PreviousModelDistillation(Remedy):
    """Keeps the predictions of the previous stage's model, the teacher, on the images of the running stage.

    loss = weight * sum over the earlier tasks t of distance_t(student's map, teacher's map); subclasses define the
    distance. Replayed images of t itself are left out of its term: they have its labels.
    """

    def __init__(self, weight: float, model: UnifiedModel):
        self.weight = weight
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def teacher_map(self, images: Tensor) -> Tensor:
        """The teacher's output map (B, C, h, w), float32 logits, for images (B, 3, H, W) in [0, 1]."""
        teacher = self.teacher.to(images.device)
        features = teacher.head_features(images)
        logits: Tensor = teacher.head.last(features)
        return logits.float()

    def distance(self, task: Task, student: Tensor, teacher: Tensor) -> Tensor:
        """Distance () between the student's and the teacher's channels (B, C, h, w) of an earlier task."""
        raise NotImplementedError

    def batch_loss(self, trainer: Trainer, task: Task, images: Tensor, features: Tensor) -> Tensor | float:
        """Every task learned before the stage counts alike, on all images but those with its own labels."""
        distilled = [t for t in trainer.settings.earlier(trainer.task) if t != task]
        if not distilled:
            return 0.0
        student_map = trainer.model.head.last(features)  # (B, C, h, w)
        teacher_map = self.teacher_map(images)
        split = trainer.model.head.split
        total: Tensor | float = 0.0
        for earlier in distilled:
            student = task_channels(student_map, split, earlier)
            teacher = task_channels(teacher_map, split, earlier)
            total = total + self.distance(earlier, student, teacher)
        return self.weight * total
