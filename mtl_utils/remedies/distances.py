"""How far the map of one network is from the map of another, cell by cell: what distillation makes smaller.

A map is what the head emits: (B, 5 + C_det + 21 + C_cls, h, w), cut by `split` as in model.UnifiedHead. Every distance
is 0 where both say the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 2.0  # of soft targets (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; LwF uses 2)
PSEUDO_OBJECT = 0.3  # confidence above which a cell of the old network's map counts as an object
SALIENT = 0.9  # part of an image's strongest edge above which a cell is salient, as in HAD's published code


def task_channels(grid: Tensor, split: tuple[int, ...], task: str) -> Tensor:
    """The channels of one task of a map."""
    return grid.float().split(split, dim=1)[("det", "seg", "cls").index(task)]


def kl_divergence(new: Tensor, old: Tensor, hard: bool = False) -> Tensor:
    """Kullback-Leibler divergence of class logits (B, C, ...) over dimension 1: (B, ...).

    Soft: both at a temperature, times its square so that gradients keep their size. Hard: the old network's best class
    counts as the truth, which makes it a cross-entropy.
    """
    t = 1.0 if hard else TEMPERATURE
    p = F.one_hot(old.argmax(1), old.shape[1]).movedim(-1, 1).to(old) if hard else (old / t).softmax(1)
    return t * t * (torch.xlogy(p, p) - p * (new / t).log_softmax(1)).sum(1)


def detection_distance(new: Tensor, old: Tensor, hard: bool = False) -> Tensor:
    """Distance (B, h, w) of raw detection channels: confidence everywhere, box and class as far as the old is sure."""
    sure = old[:, 4].sigmoid()
    logits = F.binary_cross_entropy_with_logits
    confidence = logits(new[:, 4], sure, reduction="none") - logits(old[:, 4], sure, reduction="none")
    box = F.smooth_l1_loss(new[:, :4], old[:, :4], reduction="none").sum(1)
    return confidence + sure * (box + kl_divergence(new[:, 5:], old[:, 5:], hard))


def distillation_distance(task: str, new: Tensor, old: Tensor, hard: bool = False) -> Tensor:
    """Distance of one task's channels (B, C, h, w): (B, h, w), or (B,) for classification, which is of the image."""
    if task == "det":
        return detection_distance(new, old, hard)
    if task == "cls":
        new, old = new.mean((2, 3)), old.mean((2, 3))
    return kl_divergence(new, old, hard)


def plain_mean(task: str, gaps: Tensor, old: Tensor) -> Tensor:
    """The mean over cells or images; for detection over the cells that the old network takes for objects."""
    return gaps.sum() / old[:, 4].sigmoid().sum().clamp(min=1) if task == "det" else gaps.mean()


def pseudo_labels(task: str, old: Tensor) -> Tensor:
    """Which group of the old network's predictions a cell (or image) belongs to: its class; object or background."""
    if task == "det":
        return (old[:, 4].sigmoid() > PSEUDO_OBJECT).long()
    return (old.mean((2, 3)) if task == "cls" else old).argmax(1)


def class_balanced_mean(gaps: Tensor, group: Tensor) -> Tensor:
    """The mean over the groups that occur of each group's own mean: a rare one counts as much as a common one."""
    size = int(group.max()) + 1
    count = group.flatten().bincount(minlength=size)
    total = torch.zeros(size, device=gaps.device).index_add(0, group.flatten(), gaps.flatten())
    return (total[count > 0] / count[count > 0]).mean()


def edge_mean(gaps: Tensor) -> Tensor:
    """The mean of gaps (B, h, w) over the cells where they change most abruptly, by Sobel's operator."""
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=gaps.device)
    steps = F.conv2d(gaps.detach()[:, None], torch.stack([sobel, sobel.T])[:, None], padding=1)
    edges = steps.square().sum(1).sqrt()
    low, high = edges.amin((1, 2), keepdim=True), edges.amax((1, 2), keepdim=True)
    chosen = (edges - low) >= SALIENT * (high - low).clamp(min=1e-12)
    return gaps[chosen].sum() / chosen.sum().clamp(min=1)
