"""Do two tasks pull the shared layers in opposite directions? Cosines of their gradients, beside two comparisons.

T. Yu et al., "Gradient surgery for multi-task learning", NeurIPS 2020, section 2: a negative cosine is a conflict.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_utils.data import Sample
from mtl_utils.experiments.autopsy import shared_parts
from mtl_utils.tasks import Task
from mtl_utils.training import Trainer
from mtl_utils.transforms import Batch, Letterbox, collate, to_device

PAIRS = 12  # of batches
SIZE = 192  # side of the images
PER_BATCH = 4  # images
AGAINST = ("detection", "other masks", "detection, shuffled")


def cosines(trainer: Trainer) -> dict[str, dict[str, list[float]]]:
    """Cosines between gradients by shared part of the network and by comparison, PAIRS values each.

    The loss of a batch with masks is compared with each of AGAINST: with that of a batch with boxes, of another batch
    with masks, and with the boxes' gradient in random order, whose cosine is 0 but for chance. Nothing is learned.
    """
    generator = torch.Generator().manual_seed(0)
    model = trainer.model
    found: dict[str, dict[str, list[float]]] = {}
    for part in shared_parts(model):
        found[part] = {name: [] for name in AGAINST}
    for _ in range(PAIRS):
        masks = part_gradients(trainer, draw(trainer, "seg", generator), "seg")
        others = part_gradients(trainer, draw(trainer, "seg", generator), "seg")
        boxes = part_gradients(trainer, draw(trainer, "det", generator), "det")
        for part, gradient in masks.items():
            order = torch.randperm(len(gradient), generator=generator)
            compared = (boxes[part], others[part], boxes[part][order.to(gradient.device)])
            for name, other in zip(AGAINST, compared, strict=True):
                cosine = F.cosine_similarity(gradient, other, dim=0)
                found[part][name].append(cosine.item())
    return found


def draw(trainer: Trainer, task: Task, generator: torch.Generator) -> Batch:
    """A batch of letterboxed training images of a task, stored ones for an earlier task."""
    samples: Sequence[Sample] = trainer.dataset.samples if task == trainer.task else trainer.buffer.samples[task]
    order = torch.randperm(len(samples), generator=generator)
    chosen = [samples[index] for index in order[:PER_BATCH].tolist()]
    return collate(chosen, Letterbox(SIZE), task)


def part_gradients(trainer: Trainer, batch: Batch, task: Task) -> dict[str, Tensor]:
    """The gradient (N,) of a task's own loss on a batch, by shared part."""
    model = trainer.model.eval()
    batch = to_device(batch, trainer.device)
    outputs = model(batch.images, batch.content)
    loss = trainer.losses[task](outputs, batch.targets)
    gradients = {}
    parts = shared_parts(model)
    for name, part in parts.items():
        parameters = list(part.parameters())
        of_part = torch.autograd.grad(loss, parameters, retain_graph=True)
        gradients[name] = torch.cat([gradient.flatten() for gradient in of_part])
    return gradients
