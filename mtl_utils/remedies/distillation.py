"""Base of the remedies that distil from the model of the previous stage."""

import copy

import torch
from torch import Tensor

from mtl_utils.model import ChannelSplit, UnifiedModel, mean_over_content, task_channels
from mtl_utils.tasks import Task
from mtl_utils.training import Remedy, Trainer
from mtl_utils.transforms import Batch


class PreviousModelDistillation(Remedy):
    """Keeps the predictions of the previous stage's model, the teacher, on the images of the running stage.

    loss = weight * sum over the earlier tasks t of distance_t(student's map, teacher's map); subclasses define the
    distance. Replayed images of t itself are left out of its term: they have its labels.
    """

    def __init__(self, weight: float, model: UnifiedModel):
        self.weight = weight
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def teacher_map(self, batch: Batch) -> Tensor:
        """The teacher's output map (B, C, h, w), logits, for a batch."""
        teacher = self.teacher.to(batch.images.device)
        features = teacher.head_features(batch.images, batch.content)
        logits: Tensor = teacher.head.last(features)
        return logits

    def distance(self, task: Task, student: Tensor, teacher: Tensor) -> Tensor:
        """Distance () between the student's and the teacher's logits (see task_logits) of an earlier task."""
        raise NotImplementedError

    def batch_loss(self, trainer: Trainer, task: Task, batch: Batch, features: Tensor) -> Tensor | float:
        """Every task learned before the stage counts alike, on all images but those with its own labels."""
        distilled = [t for t in trainer.settings.earlier(trainer.task) if t != task]
        if not distilled:
            return 0.0
        student_map = trainer.model.head.last(features)  # (B, C, h, w)
        teacher_map = self.teacher_map(batch)
        split = trainer.model.head.split
        total: Tensor | float = 0.0
        for earlier in distilled:
            student = task_logits(student_map, split, earlier, batch.content)
            teacher = task_logits(teacher_map, split, earlier, batch.content)
            total = total + self.distance(earlier, student, teacher)
        return self.weight * total


def task_logits(grid: Tensor, split: ChannelSplit, task: Task, content: Tensor) -> Tensor:
    """One task's logits of a map (B, C, h, w): (B, C_task, h, w), or (B, C_cls) of the images for classification."""
    channels = task_channels(grid, split, task)
    return mean_over_content(channels, content) if task == "cls" else channels
