"""Objects that a segmentation mask shows: boxes for detection, so that a stored image of segmentation teaches both."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchvision import tv_tensors

from mtl_utils.settings import VOC_CLASSES

SAME = {"motorbike": "motorcycle", "tvmonitor": "tv"}  # VOC's names of classes that COCO calls otherwise
BORDER = 2  # pixels by which VOC's unlabelled border hides the outline of an object on each side
FRAGMENT = 0.25  # a piece with less than this part of the largest piece's pixels may be a part of another object


def shared_classes(det_classes: tuple[str, ...]) -> dict[int, int]:
    """The classes of both tasks: {index in det_classes: index in VOC_CLASSES}."""
    voc = {SAME.get(name, name): index for index, name in enumerate(VOC_CLASSES)}
    return {label: voc[name] for label, name in enumerate(det_classes) if name in voc}


def mask_objects(mask: Tensor, det_classes: tuple[str, ...]) -> dict[str, Tensor]:
    """A detection target (see data.py) from a VOC mask (H, W): one box around each connected piece of a shared class.

    VOC draws an unlabelled border around every object, so touching objects of one class are separate pieces. Small
    pieces may belong to an object that something hides in part: they count as crowd, neither object nor background.
    """
    rows = []
    for label, index in shared_classes(det_classes).items():
        rows += [(box, label, crowd) for box, crowd in pieces(mask.numpy() == index)]
    boxes = torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    size = tuple(mask.shape)
    boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        "crowd": torch.tensor([crowd for _, _, crowd in rows], dtype=torch.bool),
    }


def pieces(shown: np.ndarray) -> list[tuple[list[int], bool]]:
    """Box XYXY of each connected piece of a boolean map (H, W), and whether it is only a fragment."""
    numbered, count = ndimage.label(shown)
    pixels = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    found = []
    for (y, x), n in zip(ndimage.find_objects(numbered), pixels, strict=True):
        box = [x.start - BORDER, y.start - BORDER, x.stop + BORDER, y.stop + BORDER]
        found.append((box, bool(n < FRAGMENT * pixels.max())))
    return found
