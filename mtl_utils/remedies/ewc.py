"""Elastic weight consolidation: a quadratic penalty on changes of weights that matter to earlier tasks."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from mtl_utils.model import UnifiedModel
from mtl_utils.training import Remedy, TaskLoss, Trainer
from mtl_utils.transforms import Batch, Letterbox, collate, to_device


class ElasticWeightConsolidation(Remedy):
    """EWC: weights that matter to earlier tasks are held near their values at the beginning of the stage.

    loss = weight / 2 * sum_i F_i (theta_i - theta*_i)^2, with theta* the weights at the beginning of the stage and F
    the diagonal of the Fisher information, summed over the earlier tasks.
    J. Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (equation 3); one anchor
    and a sum of Fisher terms as in J. Schwarz et al., "Progress & Compress", ICML 2018.
    """

    def __init__(self, weight: float, model: UnifiedModel, fisher: dict[str, Tensor]):
        self.weight = weight
        self.fisher = dict(fisher)  # a copy: after_stage writes into the buffer's own
        self.anchor = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def step_loss(self, trainer: Trainer) -> Tensor | float:
        """The quadratic penalty; 0 in the first stage, which has no earlier task."""
        penalty: Tensor | float = 0.0
        for name, parameter in trainer.model.named_parameters():
            if name not in self.fisher or not parameter.requires_grad:
                continue
            fisher = self.fisher[name].to(parameter.device)
            anchor = self.anchor[name].to(parameter.device)
            change = parameter - anchor
            penalty = penalty + (fisher * change.square()).sum()
        return self.weight / 2 * penalty

    def after_stage(self, trainer: Trainer, model: UnifiedModel) -> None:
        """Add the Fisher information of the stage's task to that of the earlier tasks, in the buffer.

        The sum begins with the earlier tasks' alone, so that a stage that is finished twice is not counted twice.
        """
        for name, value in task_fisher(trainer, model).items():
            earlier = self.fisher.get(name, torch.zeros(()))
            trainer.buffer.fisher[name] = earlier + value.cpu()


def fisher_information(model: nn.Module, batches: Iterable[Batch], loss: TaskLoss) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information: mean squared gradient over batches of one image.

    loss: of (outputs, targets). Returns float32 tensors by name.
    """
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    count = 0
    for batch in batches:
        model.zero_grad(set_to_none=True)
        outputs = model(batch.images, batch.content)
        loss(outputs, batch.targets).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name] += parameter.grad.square()
        count += 1
    model.zero_grad(set_to_none=True)
    return {name: value / max(count, 1) for name, value in total.items()}


def task_fisher(trainer: Trainer, model: UnifiedModel) -> dict[str, Tensor]:
    """Fisher information of the weights for the stage's task, over its training images as evaluation sees them."""
    return fisher_information(model, single_images(trainer), trainer.losses[trainer.task])


def single_images(trainer: Trainer) -> Iterator[Batch]:
    """Batches of one training image each, on the trainer's device."""
    letterbox = Letterbox(trainer.settings.train_size[trainer.task])
    for sample in trainer.dataset.samples:
        yield to_device(collate([sample], letterbox, trainer.task), trainer.device)
