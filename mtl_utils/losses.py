"""The loss of each task, on the same Outputs of one forward."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou_loss

from mtl_utils.data import Target
from mtl_utils.detection import (
    CLASSES,
    CONFIDENCE,
    MIN_POSITIVE_CELLS,
    assign_targets,
    cell_centres,
    centers_in_boxes,
    decode_boxes,
    flatten,
)
from mtl_utils.model import Outputs, resize
from mtl_utils.tasks import IGNORE, VOC_CLASSES

BOX_WEIGHT = 5.0  # of the box loss beside confidence and class, as in YOLO-style detectors with IoU losses
MIN_ERROR = 1e-4  # of a pixel in the Lovász extension; all below it together change the loss by less than this
SMOOTHING = 0.1  # label smoothing of classification (Szegedy et al. 2016, section 7)


def pixel_counts(masks: Iterable[Tensor]) -> Tensor:
    """Pixels (21,) int64 of each class in masks (H, W) uint8, border left out."""
    counts = torch.zeros(IGNORE + 1, dtype=torch.int64)
    for mask in masks:
        values = mask.as_subclass(Tensor).flatten().long()
        counts += torch.bincount(values, minlength=IGNORE + 1)
    return counts[: len(VOC_CLASSES)]


def class_weights(pixels: Tensor) -> Tensor:
    """Weights (C,) float32 from pixel counts (C,): inverse square root of the frequency, mean 1 over the pixels.

    A class without pixels counts as one with a single pixel.
    """
    pixels = pixels.double().clamp(min=1)
    weights = pixels.rsqrt()
    total = (weights * pixels).sum()  # of the weights of all pixels, before they are scaled to a mean of 1
    return (weights * pixels.sum() / total).float()


def segmentation_loss(
    outputs: Outputs, targets: Sequence[Target], weights: Tensor | None = None, left_out: Tensor | None = None
) -> Tensor:
    """Cross-entropy, class-weighted, plus Lovász-softmax of (B, 21, h, w) logits with masks (H, W); 255 left out.

    The logits are enlarged to half of each side of the input, and compared with every second pixel of the masks: all
    pixels would cost a quarter of the training time.

    left_out: (21,) bool, classes that no mask of the set shows. Softmax is over the other classes alone: else every
    pixel would teach that these classes occur nowhere, and a class without an exemplar would be lost.
    """
    compared = [target["mask"][::2, ::2] for target in targets]
    masks = torch.stack(compared).long()  # (B, H / 2, W / 2)
    logits = resize(outputs.segmentation, masks.shape[-2:])  # (B, 21, H / 2, W / 2)
    if left_out is not None:
        logits = logits.masked_fill(left_out[:, None, None], float("-inf"))
    valid = masks != IGNORE
    labels = masks[valid]  # (N,)

    cross_entropy = F.cross_entropy(logits, masks, weights, ignore_index=IGNORE, reduction="sum")
    total_weight = labels.numel() if weights is None else weights[labels].sum().item()
    cross_entropy = cross_entropy / max(total_weight, 1e-6)  # a batch that is all border gives 0, not NaN
    pixel_logits = logits.movedim(1, -1)[valid]  # (N, 21)
    return cross_entropy + lovasz_softmax(pixel_logits, labels)


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """A smooth 1 - IoU: the mean over the classes that occur of the Lovász extension of 1 - IoU on the pixels' errors.

    logits (N, C) of N pixels, labels (N,) int64. For one-hot predictions it is the mean of 1 - IoU itself; 0 without
    pixels (M. Berman et al., "The Lovász-Softmax loss", CVPR 2018, sections 2.2 and 3.1).
    """
    probabilities = logits.softmax(dim=1)
    present = torch.unique(labels).tolist()
    total = probabilities.sum() * 0  # so that a batch without pixels has a gradient too
    for class_index in present:
        is_class = (labels == class_index).float()
        total = total + lovasz_extension(is_class, probabilities[:, class_index])
    return total / max(len(present), 1)


def lovasz_extension(is_class: Tensor, probability: Tensor) -> Tensor:
    """Lovász extension of one class's 1 - IoU.

    is_class: 1 where the label is this class, else 0; probability: the predicted one; both (N,) float32.

    Were the k pixels with the largest errors wrong and all others right, the IoU would be
    (true - missed) / (true + added). How much 1 - IoU grows from k - 1 to k is the weight of the k-th error.
    """
    true = is_class.sum()
    errors = (is_class - probability).abs()
    large = errors > MIN_ERROR  # (N,): the others come last, add next to nothing and would take long to sort
    errors, order = errors[large].sort(descending=True)  # (K,)
    is_class = is_class[large][order]
    missed = is_class.cumsum(0)  # (K,): true pixels among the first k
    added = (1 - is_class).cumsum(0)  # (K,): false ones
    jaccard_loss = 1 - (true - missed) / (true + added)
    nothing_wrong = jaccard_loss.new_zeros(1)
    weights = jaccard_loss.diff(prepend=nothing_wrong)
    return (errors * weights).sum()


def detection_loss(outputs: Outputs, targets: Sequence[Target]) -> Tensor:
    """Quality focal loss on confidence, GIoU on boxes and cross-entropy on classes, every object counting alike.

    The confidence of a positive cell learns the overlap of its own box with the object (Li et al., "Generalized Focal
    Loss", NeurIPS 2020, section 3.2); boxes learn by GIoU (Rezatofighi et al., CVPR 2019). Cells below a crowd
    learn nothing, but for those of an object in front of it.
    """
    cells = flatten(outputs.detection)  # (B, h * w, 5 + C)
    height, width = outputs.detection.shape[-2:]
    centres = cell_centres(height, width, cells.device)
    total = cells.new_zeros(())
    objects = 0
    for image_cells, target in zip(cells, targets, strict=True):
        total = total + image_loss(image_cells, centres, target)
        objects += int((~target["crowd"]).sum())
    return total / (MIN_POSITIVE_CELLS * max(objects, 1))


def image_loss(cells: Tensor, centres: Tensor, target: Target) -> Tensor:
    """Summed loss of one image's cells (h * w, 5 + C); each object that keeps a cell counts as MIN_POSITIVE_CELLS."""
    crowd = target["crowd"]
    boxes = target["boxes"][~crowd]  # (M, 4)
    labels = target["labels"][~crowd]  # (M,)
    positive, owner = assign_targets(boxes, centres)  # (P,) each
    cells_per_object = owner.bincount(minlength=len(boxes))  # (M,)
    cell_weight = MIN_POSITIVE_CELLS / cells_per_object[owner].float()  # (P,), so that every object counts alike

    predicted = decode_boxes(cells[positive], centres[positive])  # (P, 4)
    box_loss: Tensor = generalized_box_iou_loss(predicted, boxes[owner])
    class_logits = cells[positive, CLASSES]  # (P, C)
    class_loss = F.cross_entropy(class_logits, labels[owner], reduction="none")
    object_loss = (cell_weight * (BOX_WEIGHT * box_loss + class_loss)).sum()

    confidence = cells[:, CONFIDENCE]  # (h * w,) logits
    quality = torch.zeros_like(confidence)
    quality[positive] = elementwise_iou(predicted.detach(), boxes[owner])
    weight = torch.ones_like(confidence)
    weight[positive] = cell_weight
    counts = ~centers_in_boxes(centres, target["boxes"][crowd])  # (h * w,) bool: what a crowd does not cover
    counts[positive] = True  # an object in front of a crowd is learned
    confidence_loss = weight * quality_focal_loss(confidence, quality)
    return object_loss + confidence_loss[counts].sum()


def elementwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (N, 4) with boxes (N, 4), one by one: (N,)."""
    of_all_pairs: Tensor = box_iou(a, b)  # (N, N), fast enough for the few positive cells of an image
    return of_all_pairs.diagonal()


def quality_focal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """|quality - p|^2 BCE(p, quality), p = sigmoid(logits), of each: focal loss for targets between 0 and 1."""
    error = (quality - logits.sigmoid()).abs()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return error.square() * cross_entropy


def classification_loss(outputs: Outputs, labels: Tensor) -> Tensor:
    """Cross-entropy of (B, C) logits with labels (B,), smoothed."""
    return F.cross_entropy(outputs.classification, labels, label_smoothing=SMOOTHING)
