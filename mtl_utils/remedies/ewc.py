"""Elastic weight consolidation: a quadratic penalty on weights that mattered to earlier tasks."""

import torch
from torch import Tensor, nn

from mtl_utils.model import UnifiedModel
from mtl_utils.training import Remedy, Trainer
from mtl_utils.transforms import collate, eval_transform, to_device


class ElasticWeightConsolidation(Remedy):
    """J. Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (EWC).

    Weights that mattered to earlier tasks are held by springs whose strength is the diagonal of the Fisher information;
    one anchor and the sum of the Fisher terms of all tasks, as in J. Schwarz et al., "Progress & Compress", ICML 2018.
    """

    def __init__(self, weight: float, model: UnifiedModel, fisher: dict[str, Tensor]):
        self.weight, self.fisher = weight, fisher
        self.anchor = {name: p.detach().clone() for name, p in model.named_parameters()}

    def step_loss(self, trainer) -> Tensor | float:
        """The energy of the springs."""
        terms = []
        for name, p in trainer.model.named_parameters():
            if p.requires_grad and name in self.fisher:
                fisher, anchor = self.fisher[name].to(p.device), self.anchor[name].to(p.device)
                terms.append((fisher * (p - anchor).square()).sum())
        return self.weight / 2 * sum(terms)


def fisher_information(model: nn.Module, batches, loss) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information: mean squared gradient over batches of one image.

    batches: (images (1, 3, H, W), targets) pairs; loss: of (outputs, targets). Returns float32 tensors by name.
    """
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    count = 0
    for images, targets in batches:
        model.zero_grad(set_to_none=True)
        loss(model(images), targets).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += p.grad.square()
        count += 1
    model.zero_grad(set_to_none=True)
    return {name: value / max(count, 1) for name, value in total.items()}


def task_fisher(trainer: Trainer, model: UnifiedModel) -> dict[str, Tensor]:
    """Fisher information of the weights for the stage's task, over its training images."""
    view = eval_transform(trainer.task, trainer.settings.train_size[trainer.task])
    batches = (collate([sample], view, trainer.task) for sample in trainer.dataset.samples)
    moved = ((images.to(trainer.device), to_device(targets, trainer.device)) for images, targets in batches)
    return fisher_information(model, moved, trainer.losses[trainer.task])
