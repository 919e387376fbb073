"""The loss of each task, on the same Outputs of one forward."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou_loss

from mtl_utils.detection import (
    MIN_POSITIVE_CELLS,
    assign_targets,
    cell_centres,
    centers_in_boxes,
    decode_boxes,
    flatten,
)
from mtl_utils.model import Outputs
from mtl_utils.tasks import IGNORE, VOC_CLASSES

BOX_WEIGHT = 5.0  # of the box loss beside confidence and class, as in YOLO-style detectors with IoU losses
SMOOTHING = 0.1  # label smoothing of classification (Szegedy et al. 2016, section 7)


def class_weights(pixels: Tensor) -> Tensor:
    """Weights (C,) float32 from pixel counts (C,): inverse square root of the frequency, mean 1 over the pixels.

    A class without pixels counts as one with a single pixel.
    """
    pixels = pixels.double().clamp(min=1)
    weights = pixels.rsqrt()
    return (weights * pixels.sum() / (weights * pixels).sum()).float()


def segmentation_loss(outputs: Outputs, targets: list[dict[str, Tensor]], weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, class-weighted, plus Lovász-softmax of (B, 21, h, w) logits with masks (H, W); 255 left out.

    Where the logits are smaller than the masks (training mode: half of each side), every second pixel is compared.
    """
    every = targets[0]["mask"].shape[-1] // outputs.segmentation.shape[-1]
    masks = torch.stack([target["mask"][::every, ::every] for target in targets]).long()
    loss = F.cross_entropy(outputs.segmentation, masks, weights, ignore_index=IGNORE, reduction="sum")
    kept = masks[masks != IGNORE]
    total = kept.numel() if weights is None else weights[kept].sum()
    overlap = lovasz_softmax(outputs.segmentation.movedim(1, -1)[masks != IGNORE], kept)
    return loss / max(float(total), 1e-6) + overlap  # a batch that is all border gives 0, not NaN


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """A smooth 1 - IoU: mean over the classes that occur of its Lovász extension at the pixels' errors.

    logits (N, C) of N pixels, labels (N,) int64. For predictions that are sure it is the mean of 1 - IoU itself; 0
    without pixels (M. Berman et al., "The Lovász-Softmax loss", CVPR 2018, sections 2.2 and 3.1).
    """
    probabilities, losses = logits.softmax(dim=1), [logits.sum() * 0]
    present = labels.unique().tolist()
    for c in present:
        true = (labels == c).float()
        errors, order = (true - probabilities[:, c]).abs().sort(descending=True)
        missed, added = true[order].cumsum(0), (1 - true[order]).cumsum(0)  # if the worst 1, 2, ... pixels were wrong
        jaccard = 1 - (true.sum() - missed) / (true.sum() + added)
        losses.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum())
    return sum(losses) / max(len(present), 1)


def detection_loss(outputs: Outputs, targets: list[dict[str, Tensor]]) -> Tensor:
    """Quality focal loss on confidence, GIoU on boxes and cross-entropy on classes, every object counting alike.

    The confidence of a positive cell learns the overlap of its own box with the object (Li et al., "Generalized Focal
    Loss", NeurIPS 2020, section 3.2); boxes learn by GIoU (Rezatofighi et al., CVPR 2019). Cells below a crowd are
    neither positive nor negative.
    """
    cells = flatten(outputs.detection)
    centres = cell_centres(*outputs.detection.shape[-2:], device=cells.device)
    parts = [_image_loss(c, centres, t) for c, t in zip(cells, targets, strict=True)]
    objects = max(sum(n for _, n in parts), 1)
    return sum(loss for loss, _ in parts) / (MIN_POSITIVE_CELLS * objects)


def _image_loss(cells: Tensor, centres: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, int]:
    """Summed loss of one image's cells (h * w, 5 + C), and how many objects it has; each counts as NEAREST cells."""
    crowd = target["crowd"]
    boxes, labels = target["boxes"][~crowd], target["labels"][~crowd]
    quality, weight = torch.zeros_like(cells[:, 4]), torch.ones_like(cells[:, 4])
    counts = ~centers_in_boxes(centres, target["boxes"][crowd])
    loss = cells.sum() * 0
    if len(boxes):
        positive, owner = assign_targets(boxes, centres)
        share = weight[positive] = MIN_POSITIVE_CELLS / owner.bincount(minlength=len(boxes))[owner].float()
        guess = decode_boxes(cells[positive], centres[positive])
        quality[positive] = elementwise_iou(guess.detach(), boxes[owner])
        counts[positive] = True
        box = generalized_box_iou_loss(guess, boxes[owner])
        name = F.cross_entropy(cells[positive, 5:], labels[owner], reduction="none")
        loss = (share * (BOX_WEIGHT * box + name)).sum()
    return loss + (weight * quality_focal_loss(cells[:, 4], quality))[counts].sum(), len(boxes)


def elementwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (N, 4) with boxes (N, 4), one by one: (N,)."""
    return box_iou(a, b).diagonal()


def quality_focal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """|quality - p|^2 BCE(p, quality), p = sigmoid(logits), of each: focal loss for targets between 0 and 1."""
    gap = (quality - logits.sigmoid()).abs()
    return gap.square() * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def classification_loss(outputs: Outputs, labels: Tensor) -> Tensor:
    """Cross-entropy of (B, C) logits with labels (B,), smoothed."""
    return F.cross_entropy(outputs.classification, labels, label_smoothing=SMOOTHING)


def pixel_counts(masks: list[Tensor]) -> Tensor:
    """Pixels (21,) of each class, border left out."""
    counts = torch.zeros(IGNORE + 1, dtype=torch.int64)
    for mask in masks:
        counts += torch.bincount(mask.as_subclass(Tensor).flatten().long(), minlength=IGNORE + 1)
    return counts[: len(VOC_CLASSES)]
