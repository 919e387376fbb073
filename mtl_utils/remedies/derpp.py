"""DER++: replay of stored outputs beside stored labels."""

import torch.nn.functional as F
from torch import Tensor

from mtl_utils.remedies.distances import task_channels
from mtl_utils.training import Remedy
from mtl_utils.transforms import collate, eval_transform


class DarkExperienceReplay(Remedy):
    """P. Buzzega et al., "Dark Experience for General Continual Learning", NeurIPS 2020 (DER++).

    Beside the labels of some stored images, the raw outputs stored with others are replayed: squared distance between
    what the head says now and what it said when the image was stored, in the channels of the tasks known by then.
    """

    def __init__(self, weight: float):
        self.weight = weight

    def step_loss(self, trainer) -> Tensor | float:
        """The distances of all earlier tasks' stored outputs."""
        return self.weight * sum((self.distance(trainer, task) for task in trainer.earlier), start=0.0)

    def distance(self, trainer, task: str) -> Tensor:
        """Mean squared distance for some stored images of one task."""
        samples, stored = trainer.buffer.sample_with_logits(
            task, trainer.settings.replay_per_task // 2, trainer.generator
        )
        images, _ = collate(samples, eval_transform(task, trainer.settings.train_size[task]), task)
        grid = trainer.model.head[-1](trainer.model.head_features(images.to(trainer.device)))
        split, known = trainer.model.head.split, (*trainer.settings.earlier(task), task)
        old = stored.to(trainer.device)
        return sum(F.mse_loss(task_channels(grid, split, t), task_channels(old, split, t)) for t in known)
