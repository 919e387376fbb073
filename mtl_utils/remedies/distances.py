"""How far a student's output map is from a teacher's, cell by cell: what distillation makes smaller.

A map is what the head emits: (B, 5 + C_det + 21 + C_cls, h, w) logits, cut by `split` as in model.UnifiedHead. The
distances are 0 where both maps are equal, except for hard targets, where they are a cross-entropy.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_utils.detection import BOX, CLASSES, CONFIDENCE
from mtl_utils.tasks import Task

TEMPERATURE = 2.0  # of soft targets (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; LwF uses 2)
PSEUDO_OBJECT = 0.3  # confidence above which a cell of the teacher's map counts as an object
SALIENT = 0.9  # part of the way from an image's weakest to its strongest edge above which a cell is salient (HAD)
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))  # derivative along x; its transpose is that along y

# (student's, teacher's) class logits (B, C, ...) to a distance (B, ...)
ClassDistance = Callable[[Tensor, Tensor], Tensor]


def soft_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of class logits (B, C, ...) at a temperature T, over dimension 1: (B, ...).

    T^2 * sum_c p_c (ln p_c - ln q_c) with p = softmax(teacher / T) and q = softmax(student / T); the factor T^2 keeps
    the size of the gradients (Hinton et al. 2015, section 2).
    """
    p = (teacher / TEMPERATURE).softmax(1)
    log_q = (student / TEMPERATURE).log_softmax(1)
    divergence = torch.xlogy(p, p) - p * log_q  # xlogy: 0 where p is 0
    return TEMPERATURE**2 * divergence.sum(1)


def hard_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of the student's class logits (B, C, ...) with the teacher's best class as the label: (B, ...)."""
    labels = teacher.argmax(1)
    return F.cross_entropy(student, labels, reduction="none")


def detection_distance(student: Tensor, teacher: Tensor, class_distance: ClassDistance) -> Tensor:
    """Distance (B, h, w) of raw detection channels (B, 5 + C, h, w).

    Confidence counts in every cell; box and class count in proportion to the teacher's confidence.
    """
    confidence = teacher[:, CONFIDENCE].sigmoid()  # (B, h, w)
    bce = F.binary_cross_entropy_with_logits
    cross_entropy = bce(student[:, CONFIDENCE], confidence, reduction="none")
    entropy = bce(teacher[:, CONFIDENCE], confidence, reduction="none")  # what the cross-entropy is at its minimum
    box_distance = F.smooth_l1_loss(student[:, BOX], teacher[:, BOX], reduction="none").sum(1)
    class_distances = class_distance(student[:, CLASSES], teacher[:, CLASSES])
    return cross_entropy - entropy + confidence * (box_distance + class_distances)


def distillation_distance(task: Task, student: Tensor, teacher: Tensor, class_distance: ClassDistance) -> Tensor:
    """Distance (B, h, w) of one task's channels (B, C, h, w); of image logits (B, C), for classification, (B,)."""
    if task == "det":
        return detection_distance(student, teacher, class_distance)
    return class_distance(student, teacher)


def mean_distance(task: Task, distances: Tensor, teacher: Tensor) -> Tensor:
    """The mean of distances over cells or images; for detection, the mean over the teacher's objects.

    Nearly all cells of detection are background, so their sum is divided by the sum of the teacher's confidences.
    """
    if task != "det":
        return distances.mean()
    objects = teacher[:, CONFIDENCE].sigmoid().sum()
    return distances.sum() / objects.clamp(min=1)


def pseudo_labels(task: Task, teacher: Tensor) -> Tensor:
    """The class that the teacher predicts for each cell or image; for detection 1 for an object, 0 for background.

    teacher: one task's channels (B, C, h, w), or image logits (B, C). Returns int64, (B, h, w) or (B,).
    """
    if task == "det":
        return (teacher[:, CONFIDENCE].sigmoid() > PSEUDO_OBJECT).long()
    return teacher.argmax(1)


def geometric_mean(values: Tensor) -> Tensor:
    """Geometric mean () of the values above 0 of (N,); 0 where there is none."""
    positive = values[values > 0]
    if not len(positive):
        return values.sum() * 0
    return positive.log().mean().exp()


def balanced_over_classes(distances: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Sum over the classes of w_c m_c, divided by their number: rare classes count as common ones do.

    m_c: the geometric mean of the distances labelled c, 0 where there is none; w = softmax(-m), without a gradient.
    distances, labels: of any one shape, labels int64 below `classes`.
    """
    means = torch.stack([geometric_mean(distances[labels == c]) for c in range(classes)])  # (classes,)
    weights = (-means).softmax(0).detach()
    return (weights * means).mean()


def sum_of_halves(distances: Tensor, upper: Tensor) -> Tensor:
    """Mean distance where `upper` (bool) holds plus the mean where it does not; nothing for a half without cells."""
    total = distances.sum() * 0
    for half in (upper, ~upper):
        if half.any():
            total = total + distances[half].mean()
    return total


def salient_cells(distances: Tensor) -> Tensor:
    """Cells (B, h, w) bool where distances (B, h, w) change most abruptly in their image, by Sobel's operator."""
    along_x = torch.tensor(SOBEL, device=distances.device)
    kernels = torch.stack([along_x, along_x.T])  # (2, 3, 3)
    gradient = F.conv2d(distances.detach()[:, None], kernels[:, None], padding=1)  # (B, 2, h, w)
    edges = gradient.square().sum(1).sqrt()  # (B, h, w)
    weakest = edges.amin((1, 2), keepdim=True)
    strongest = edges.amax((1, 2), keepdim=True)
    return edges - weakest > SALIENT * (strongest - weakest)
