"""Distillation from stage 0's network, so that later stages keep what it learned from ImageNet."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_utils import weights
from mtl_utils.model import UnifiedModel
from mtl_utils.remedies.distances import kl_divergence
from mtl_utils.training import Remedy

TEACHER_SIZE = 160  # pixels at most that stage 0's network sees: near the size that it has learned at, and cheap


class Stage0Distillation(Remedy):
    """Learning without forgetting of what stage 0 knows (Z. Li and D. Hoiem, ECCV 2016): no picture of it is needed.

    A frozen copy of stage 0's network says of every new image how much it looks like each of stage 0's classes, and the
    same linear classifier must read the same off the features of the network that learns.
    """

    def __init__(self, weight: float, content: dict):
        self.weight = weight
        self.model = UnifiedModel(content["widths"], num_det=0, num_cls=0)
        weights.load_stage0(self.model, content)
        self.classifier = weights.classifier(content)
        self.model.requires_grad_(False).eval()
        self.classifier.requires_grad_(False)

    def read(self, hidden: Tensor) -> Tensor:
        """Logits (B, C) of stage 0's classes from hidden features (B, width, h, w)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.classifier.to(hidden.device)(hidden.float().mean((2, 3)))

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """Logits (B, C) of what stage 0 says of images (B, 3, H, W) in [0, 1]."""
        size = [min(side, TEACHER_SIZE) for side in images.shape[-2:]]
        small = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.read(self.model.to(images.device).head_features(small))

    def batch_loss(self, trainer, task: str, images: Tensor, hidden: Tensor) -> Tensor | float:
        """New images only: replayed ones have been new before."""
        if task != trainer.task:
            return 0.0
        return self.weight * kl_divergence(self.read(hidden), self.targets(images)).mean()
