"""What a finished stage leaves for the next ones: exemplars, what the model says of them, and how firm weights are."""

import torch
from torch import Tensor

from mtl_utils.data import Sample
from mtl_utils.model import UnifiedModel
from mtl_utils.remedies import fisher_information
from mtl_utils.training import Trainer, to_device
from mtl_utils.transforms import collate, plain


def remember(trainer: Trainer, model: UnifiedModel) -> None:
    """Fill the replay buffer from a finished stage; `model` is what the stage hands on."""
    settings, task, buffer = trainer.settings, trainer.task, trainer.buffer
    features = None
    if settings.selection == "herding":
        features = hidden_maps(trainer, model, trainer.dataset.samples).mean((2, 3))
    buffer.fill(trainer.dataset, torch.Generator().manual_seed(settings.seed), settings.selection, features)
    if settings.der and task in buffer.samples:
        with torch.inference_mode():
            hidden = hidden_maps(trainer, model, buffer.samples[task]).to(trainer.device)
            buffer.outputs[task] = model.head[-1](hidden).half().cpu()
    if settings.ewc:
        for name, value in task_fisher(trainer, model).items():
            buffer.fisher[name] = buffer.fisher.get(name, 0) + value.cpu()


@torch.inference_mode()
def hidden_maps(trainer: Trainer, model: UnifiedModel, samples: list[Sample]) -> Tensor:
    """Hidden features (N, width, h, w) of samples as evaluation shows them, at the size of training."""
    view = plain(trainer.task, trainer.settings.size[trainer.task])
    batches = ([sample] for sample in samples)
    return torch.cat([model.hidden(collate(b, view, trainer.task)[0].to(trainer.device)).cpu() for b in batches])


def task_fisher(trainer: Trainer, model: UnifiedModel) -> dict[str, Tensor]:
    """Fisher information of the weights for the stage's task, over its training images."""
    view = plain(trainer.task, trainer.settings.size[trainer.task])
    batches = (collate([sample], view, trainer.task) for sample in trainer.dataset.samples)
    moved = ((images.to(trainer.device), to_device(targets, trainer.device)) for images, targets in batches)
    return fisher_information(model, moved, trainer.losses[trainer.task])
