"""Distillation from stage 0's network, so that later stages keep what it learned from ImageNet."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_utils import weights
from mtl_utils.model import UnifiedModel, mean_over_cells
from mtl_utils.remedies.distances import soft_kl
from mtl_utils.tasks import Task
from mtl_utils.training import Remedy, Trainer

TEACHER_SIZE = 160  # pixels at most that stage 0's network sees: near the size that it has learned at, and cheap


class Stage0Distillation(Remedy):
    """LwF for what stage 0 has learned; none of its images is needed.

    loss = weight * mean over new images of T^2 KL(softmax(teacher / T) || softmax(student / T)), T = 2
    Teacher and student are the logits of stage 0's classes: one linear classifier, which stage 0 has trained, reads
    the mean features of stage 0's frozen network and those of the network that learns.
    Z. Li and D. Hoiem, "Learning without Forgetting", ECCV 2016.
    """

    def __init__(self, weight: float, content: dict[str, Any]):
        self.weight = weight
        self.teacher = UnifiedModel(content["widths"], num_det=0, num_cls=0)
        weights.load_stage0(self.teacher, content)
        self.classifier = weights.classifier(content)
        self.teacher.requires_grad_(False).eval()
        self.classifier.requires_grad_(False)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, C), float32, of stage 0's classes from head features (B, fuse + head, h, w)."""
        classifier = self.classifier.to(features.device)
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = classifier(mean_over_cells(features.float()))
        return logits

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor:
        """Stage 0's logits (B, C) of its classes for images (B, 3, H, W) in [0, 1]."""
        size = [min(side, TEACHER_SIZE) for side in images.shape[-2:]]
        small = F.interpolate(images, size, mode="bilinear", antialias=True)
        features = self.teacher.to(images.device).head_features(small)
        return self.logits(features)

    def batch_loss(self, trainer: Trainer, task: Task, images: Tensor, features: Tensor) -> Tensor | float:
        """New images only: replayed ones have been new before."""
        if task != trainer.task:
            return 0.0
        student = self.logits(features)
        teacher = self.teacher_logits(images)
        return self.weight * soft_kl(student, teacher).mean()
