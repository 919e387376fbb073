"""Augmentation and evaluation transforms, for new and for replayed samples alike, and the making of batches.

Image, mask and boxes move together: torchvision.transforms.v2 sees them as tv_tensors.
"""

import math

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from mtl_utils.data import Sample
from mtl_utils.tasks import IGNORE

GREY = (124, 116, 104)  # ImageNet's mean colour: padding in evaluation becomes 0 after normalisation
SCALES = {"seg": (0.5, 2.0), "det": (0.6, 1.6)}  # scale jitter against the size that makes the image just fit
MIN_BOX = 4  # pixels: a box that the crop leaves smaller is no longer recognisable


class RandomWindow(v2.Transform):
    """Scale jitter and a random square window of `size` pixels (as in Simple Copy-Paste), padded outside the image.

    The scale is a random number from `scales` times the one at which the image just fits. Only what the window shows is
    ever resized, which makes this much cheaper than resizing the image first.
    """

    def __init__(self, size: int, scales: tuple[float, float]):
        super().__init__()
        self.size, self.scales = size, scales

    def forward(self, image, target):
        sides = image.shape[-2:]
        scale = torch.empty(1).uniform_(*self.scales).item() * self.size / max(sides)
        spans = [axis_window(side, self.size, scale) for side in sides]
        (top, height, above, new_height), (left, width, before, new_width) = spans
        for function, args in (
            (v2.functional.crop, [top, left, height, width]),
            (v2.functional.resize, [[new_height, new_width]]),
        ):
            image, target = function(image, *args), _apply(function, target, *args)
        pad = [before, above, self.size - before - new_width, self.size - above - new_height]
        return v2.functional.pad(image, pad, fill=list(GREY)), _apply(v2.functional.pad, target, pad, fill=IGNORE)


def axis_window(side: int, size: int, scale: float) -> tuple[int, int, int, int]:
    """A random window along one axis: first pixel, count to cut out, padding before, pixels after scaling."""
    chance = torch.rand(1).item()
    span = min(side, math.ceil(size / scale))
    new = min(size, max(1, round(span * scale)))
    return round(chance * (side - span)), span, round(chance * (size - new)), new


class DropSmallBoxes(v2.SanitizeBoundingBoxes):
    """Drops boxes, with their labels, that a window leaves smaller than MIN_BOX; a target may have no boxes."""

    def __init__(self):
        super().__init__(min_size=MIN_BOX, labels_getter=_per_box)

    def forward(self, image, target):
        return super().forward(image, target) if "boxes" in target else (image, target)


class Letterbox(v2.Transform):
    """Scale so that the longer side is `size`, then pad right and below to a square: one scale, no shift."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def content(self, shape: tuple[int, int]) -> list[int]:
        """Height and width of what an image of that shape becomes, without the padding."""
        return [max(1, round(side * self.size / max(shape))) for side in shape]

    def forward(self, image, target):
        new = self.content(image.shape[-2:])
        image, target = v2.functional.resize(image, new), _apply(v2.functional.resize, target, new)
        pad = [0, 0, self.size - new[1], self.size - new[0]]
        return v2.functional.pad(image, pad, fill=list(GREY)), _apply(v2.functional.pad, target, pad, fill=IGNORE)


def _apply(function, target: dict[str, Tensor], *args, **kwargs) -> dict[str, Tensor]:
    """`function` on the masks and boxes of a target, everything else as it is."""
    moved = (tv_tensors.Mask, tv_tensors.BoundingBoxes)
    return {k: function(v, *args, **kwargs) if isinstance(v, moved) else v for k, v in target.items()}


def strong_augmentation(task: str, size: int) -> v2.Transform:
    """The training transform: flips, colour, and a random crop (cls) or scale jitter and a random window (seg, det)."""
    common = [v2.RandomHorizontalFlip(), v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)]
    if task == "cls":
        return v2.Compose([v2.RandomResizedCrop(size, scale=(0.35, 1.0)), *common])
    return v2.Compose([RandomWindow(size, SCALES[task]), *common, DropSmallBoxes()])


def _per_box(inputs) -> tuple[Tensor, Tensor]:
    """What SanitizeBoundingBoxes has to drop together with a box."""
    return inputs[1]["labels"], inputs[1]["crowd"]


def eval_transform(task: str, size: int) -> v2.Transform:
    """The evaluation transform, without chance: whole image letterboxed (seg, det) or centre crop (cls)."""
    if task == "cls":
        return v2.Compose([v2.Resize(size), v2.CenterCrop(size)])
    return Letterbox(size)


def weak_augmentation(task: str, size: int) -> v2.Transform:
    """The transform of the last epochs: the evaluation's, and flips."""
    return v2.Compose([v2.RandomHorizontalFlip(), eval_transform(task, size)])


def collate(samples: list[Sample], transform: v2.Transform, task: str) -> tuple[Tensor, list | Tensor]:
    """Transform samples and make a batch.

    Returns images (B, 3, size, size) float32 in [0, 1] and target dicts (seg, det) or labels (B,) int64 (cls).
    """
    images, targets = zip(*(transform(*sample) for sample in samples), strict=True)
    batch = torch.stack([image.as_subclass(Tensor) for image in images]).float() / 255
    batch = batch.contiguous(memory_format=torch.channels_last)
    if task == "cls":
        return batch, torch.stack([t["label"] for t in targets])
    return batch, [{k: v.as_subclass(Tensor) for k, v in t.items()} for t in targets]


def to_device(targets: list | Tensor, device: str) -> list | Tensor:
    """Targets of any task on a device."""
    if isinstance(targets, Tensor):
        return targets.to(device)
    return [{k: v.to(device) for k, v in target.items()} for target in targets]
