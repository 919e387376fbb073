"""Base of the remedies that distil from the model of the previous stage."""

import copy

import torch
from torch import Tensor

from mtl_utils.model import UnifiedModel
from mtl_utils.remedies.distances import task_channels
from mtl_utils.training import Remedy


class PreviousModelDistillation(Remedy):
    """What the network of the previous stage says of the same images; base of the distillations."""

    def __init__(self, weight: float, model: UnifiedModel):
        self.weight = weight
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """The old network's map (B, C, h, w)."""
        return self.model.head[-1](self.model.to(images.device).head_features(images)).float()

    def loss(self, task: str, new: Tensor, old: Tensor) -> Tensor:
        """Distance of an earlier task's channels (B, C, h, w) from the old network's."""
        raise NotImplementedError

    def batch_loss(self, trainer, task: str, images: Tensor, hidden: Tensor) -> Tensor | float:
        """Every task learned before the stage counts alike, on every image but those that carry its own labels."""
        asked = [t for t in trainer.settings.earlier(trainer.task) if t != task]
        if not asked:
            return 0.0
        new, old, split = trainer.model.head[-1](hidden), self.targets(images), trainer.model.head.split
        return self.weight * sum(
            self.loss(t, task_channels(new, split, t), task_channels(old, split, t)) for t in asked
        )
