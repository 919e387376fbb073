"""DER++: replay of stored logits beside stored labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_utils.model import UnifiedModel, task_channels
from mtl_utils.replay import collect_head_features
from mtl_utils.tasks import Task
from mtl_utils.training import Remedy, Trainer, replayed_with_logits
from mtl_utils.transforms import Letterbox, collate, to_device


class DarkExperienceReplay(Remedy):
    """DER++: the logits that were stored with some samples are replayed beside the labels of others.

    loss = weight * sum over the earlier tasks of mean (z - h(x))^2, with h(x) the logits of a stored image x now and z
    those stored with it, in the channels of the tasks known when they were stored.
    P. Buzzega et al., "Dark Experience for General Continual Learning", NeurIPS 2020, section 3.
    """

    def __init__(self, weight: float):
        self.weight = weight

    def step_loss(self, trainer: Trainer) -> Tensor | float:
        """The sum of the earlier tasks' distances from their stored logits."""
        total: Tensor | float = 0.0
        for task in trainer.earlier:
            total = total + self.logit_distance(trainer, task)
        return self.weight * total

    def logit_distance(self, trainer: Trainer, task: Task) -> Tensor:
        """Mean squared distance () from the logits stored with some samples of one task."""
        settings = trainer.settings
        count = replayed_with_logits(settings)
        samples, stored = trainer.buffer.sample_with_logits(task, count, trainer.generator)
        batch = collate(samples, Letterbox(settings.train_size[task]), task)
        batch = to_device(batch, trainer.device)
        features = trainer.model.head_features(batch.images, batch.content)
        logits = trainer.model.head.last(features)  # (B, C, h, w)
        stored = stored.to(trainer.device)
        split = trainer.model.head.split
        distance = torch.zeros((), device=trainer.device)
        for known in (*settings.earlier(task), task):  # the other channels were untrained when these were stored
            now = task_channels(logits, split, known)
            then = task_channels(stored, split, known)
            distance = distance + F.mse_loss(now, then)
        return distance

    @torch.inference_mode()
    def after_stage(self, trainer: Trainer, model: UnifiedModel) -> None:
        """Store the logits of the stage's exemplars beside them: (N, C, h, w) float16, without augmentation."""
        task, buffer = trainer.task, trainer.buffer
        if task not in buffer.samples:  # a buffer without capacity
            return
        size = trainer.settings.train_size[task]
        features, _ = collect_head_features(model, buffer.samples[task], size, trainer.device)
        logits = model.head.last(features.to(trainer.device))
        buffer.stored_logits[task] = logits.half().cpu()
