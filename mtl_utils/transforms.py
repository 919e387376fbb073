"""Augmentation and evaluation transforms, for new and for replayed samples alike, and the making of batches.

A transform takes and returns a sample, (image, target) as in data.py. Image, mask and boxes move together: the
functions of torchvision.transforms.v2 tell them apart by their tv_tensors types. What pads an image adds its "content"
to the target: (4,) XYXY float32, where in the padded image the picture is.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mtl_utils.data import Sample, Target
from mtl_utils.model import MEAN, tent_weights
from mtl_utils.tasks import IGNORE, Task

GREY = round(255 * MEAN)  # of padding, in all channels: the model's normalisation makes it 0
# scale jitter against the size that makes the image just fit
SCALES = {
    "seg": (0.5, 2.0),
    "det": (0.5, 1.6),
    "cls": (0.6, 2.0),
}
TRAIN_SIDE = 1024  # pixels of a photograph's longer side that are enough for training
MIN_BOX = 4  # pixels: a box that the crop leaves smaller is no longer recognisable
STRIP = 256  # rows of an image whose classes are looked up at once
JITTER = 0.4  # brightness, contrast and saturation change by a factor between 1 - JITTER and 1 + JITTER

Targets = list[Target] | Tensor  # of a batch: a target for each image (seg, det), or labels (B,) int64 (cls)


class Batch(NamedTuple):
    """What one forward in training takes, and what it is compared with."""

    images: Tensor  # (B, 3, size, size) float32 in [0, 1], channels last
    content: Tensor  # (B, 4) float32: where in each input the picture is, XYXY in pixels
    targets: Targets


class RandomWindow(nn.Module):
    """Scale jitter and a random square window of `size` pixels (as in Simple Copy-Paste), padded outside the image.

    The scale is a random number from `scales` times the one at which the image just fits. Only what the window shows is
    ever resized, which makes this much cheaper than resizing the image first.
    """

    def __init__(self, size: int, scales: tuple[float, float]):
        super().__init__()
        self.size = size
        self.scales = scales

    def forward(self, image: tv_tensors.Image, target: Target) -> Sample:
        height, width = image.shape[-2:]
        jitter = torch.empty(1).uniform_(*self.scales).item()  # from torch's generator, whose state is in checkpoints
        scale = jitter * self.size / max(height, width)
        rows = axis_window(height, self.size, scale)
        columns = axis_window(width, self.size, scale)

        window = [rows.start, columns.start, rows.length, columns.length]  # top, left, height, width
        image = TF.crop(image, *window)
        target = move_target(TF.crop, target, *window)
        image, target = resize_sample(image, target, rows.resized, columns.resized)
        below = self.size - rows.before - rows.resized
        right = self.size - columns.before - columns.resized
        return pad_sample(image, target, [columns.before, rows.before, right, below])


class AxisWindow(NamedTuple):
    """A window along one axis of an image, in pixels."""

    start: int  # first pixel of the image that is cut out
    length: int  # pixels that are cut out
    before: int  # padding in front of them
    resized: int  # pixels that they become


def axis_window(side: int, size: int, scale: float) -> AxisWindow:
    """A random window of `size` pixels along an axis of `side` pixels, resized by `scale`.

    Either the window is full, or it holds the whole axis and padding; the same random number places the window in the
    image or the image in the window.
    """
    position = torch.rand(1).item()  # 0: as far left or up as possible, 1: as far right or down
    needed = math.ceil(size / scale)  # pixels of the image that fill the window
    length = min(side, needed)
    resized = round(length * scale)
    resized = min(size, max(1, resized))  # at least a pixel, at most the window
    start = round(position * (side - length))
    before = round(position * (size - resized))
    return AxisWindow(start, length, before, resized)


class DropSmallBoxes(nn.Module):
    """Drops boxes, with their labels, that a window leaves smaller than MIN_BOX; a target may have no boxes."""

    def forward(self, image: tv_tensors.Image, target: Target) -> Sample:
        if "boxes" not in target:
            return image, target
        boxes, keep = TF.sanitize_bounding_boxes(target["boxes"], min_size=MIN_BOX)  # (K, 4); (N,) bool
        kept = {"boxes": boxes}
        for name in ("labels", "crowd"):
            kept[name] = target[name][keep]
        return image, target | kept


class Letterbox(nn.Module):
    """Scale so that the longer side is `size`, then pad right and below to a square: one scale, no shift.

    The two `undo` methods lead from the square back to an image of `shape` (height, width).
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def content(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of an image of that shape once it is scaled, without the padding."""
        height, width = shape
        longer = max(shape)
        new_height = round(height * self.size / longer)
        new_width = round(width * self.size / longer)
        return max(1, new_height), max(1, new_width)  # a very long image keeps a row of pixels

    def forward(self, image: tv_tensors.Image, target: Target) -> Sample:
        height, width = self.content(image.shape[-2:])
        image, target = resize_sample(image, target, height, width)
        right = self.size - width
        below = self.size - height
        return pad_sample(image, target, [0, 0, right, below])

    def undo_mask(self, logits: Tensor, shape: Sequence[int], wanted: slice = slice(None)) -> Tensor:
        """Logits (C, h, w) of the square's cells to logits (C, *shape) of the image's pixels, bilinearly.

        wanted: which of the image's rows; all by default.
        """
        height, width = self.content(shape)
        _, cell_rows, cell_columns = logits.shape
        rows = pixels_from_cells(shape[0], height / self.size, cell_rows)  # (H, h)
        columns = pixels_from_cells(shape[1], width / self.size, cell_columns)  # (W, w)
        rows = rows[wanted].to(logits)
        columns = columns.to(logits)
        return rows @ logits @ columns.mT

    def undo_classes(self, logits: Tensor, shape: Sequence[int]) -> Tensor:
        """Logits (C, h, w) of the square's cells to the best class (H, W) uint8 of each of the image's pixels.

        Some rows at a time: for a photograph of 35 megapixels all logits would take 3 GB.
        """
        strips = []
        for start in range(0, shape[0], STRIP):
            rows = slice(start, start + STRIP)
            of_rows = self.undo_mask(logits, shape, rows)  # (C, STRIP, W)
            best = of_rows.max(0)  # several times faster than argmax
            classes = best.indices.byte()
            strips.append(classes)
        return torch.cat(strips)

    def undo_boxes(self, boxes: Tensor, shape: Sequence[int]) -> Tensor:
        """Boxes (N, 4) XYXY in pixels of the square to boxes in the image's own pixels, cut off at its sides."""
        height, width = shape
        factor = max(height, width) / self.size  # exact, whatever `content` rounds
        inside: Tensor = clip_boxes_to_image(boxes * factor, (height, width))
        return inside


def pixels_from_cells(pixels: int, share: float, cells: int) -> Tensor:
    """(pixels, cells): bilinear interpolation along an axis of which an image fills the first `share` of all cells."""
    pixel = torch.arange(pixels)
    centre = pixel.view(-1, 1) + 0.5  # (pixels, 1)
    position = centre / pixels * share  # as a part of the axis
    return tent_weights(position * cells, cells)


def resize_sample(image: tv_tensors.Image, target: Target, height: int, width: int) -> Sample:
    """A sample resized to a size; masks keep their values, since v2 takes the nearest pixel of a mask."""
    size = [height, width]
    resized = TF.resize(image, size)
    return resized, move_target(TF.resize, target, size)


def pad_sample(image: tv_tensors.Image, target: Target, pad: list[int]) -> Sample:
    """A sample with so many pixels of padding left, above, right and below: GREY, and IGNORE in masks.

    IGNORE keeps padding out of the segmentation loss and of the class weights.
    """
    left, above, _, _ = pad
    height, width = image.shape[-2:]
    right = left + width
    below = above + height
    content = torch.tensor([left, above, right, below], dtype=torch.float32)  # where the image comes to lie
    padded = TF.pad(image, pad, fill=GREY)
    target = move_target(TF.pad, target, pad, fill=IGNORE)
    return padded, target | {"content": content}


def move_target(function: Callable[..., Tensor], target: Target, *args: object, **kwargs: object) -> Target:
    """`function` of the masks and boxes of a target, with these further arguments; other values as they are."""
    moved = {}
    for name, value in target.items():
        if isinstance(value, (tv_tensors.Mask, tv_tensors.BoundingBoxes)):
            value = function(value, *args, **kwargs)
        moved[name] = value
    return moved


def compose(*steps: nn.Module) -> nn.Module:
    """One transform that applies the steps in turn."""
    chain: nn.Module = v2.Compose(steps)
    return chain


def strong_augmentation(task: Task, size: int) -> nn.Module:
    """The training transform: flips, scale jitter and a random window, colour."""
    flip = v2.RandomHorizontalFlip()
    window = RandomWindow(size, SCALES[task])
    # colour comes after the window, which leaves it fewer pixels to change; so the grey of the padding changes too
    colour = v2.ColorJitter(brightness=JITTER, contrast=JITTER, saturation=JITTER)
    return compose(flip, window, colour, DropSmallBoxes())


def longest_side(task: Task, size: int) -> int:
    """Pixels of a photograph's longer side that no augmentation needs more of, for inputs of `size`."""
    _, largest = SCALES[task]
    needed = math.ceil(largest * size)
    return max(TRAIN_SIDE, needed)


def weak_augmentation(size: int) -> nn.Module:
    """The transform of the last epochs: the evaluation's, and flips."""
    flip = v2.RandomHorizontalFlip()
    return compose(flip, Letterbox(size))


def to_batch(images: Sequence[Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Letterbox images (each (3, H, W) uint8) that have no target: images and content as in `Batch`."""
    letterbox = Letterbox(size)
    padded = [letterbox(image, {}) for image in images]  # an empty target: nothing has to move with the image
    return stack_images(padded), stack_content(padded)


def collate(samples: Sequence[Sample], transform: nn.Module, task: Task) -> Batch:
    """Transform samples and make a batch."""
    moved = [transform(*sample) for sample in samples]
    return stack_batch(moved, task)


def stack_batch(moved: Sequence[Sample], task: Task) -> Batch:
    """A batch of samples of one size, in which no tensor is a tv_tensor any more."""
    images = stack_images(moved)
    content = stack_content(moved)
    if task == "cls":
        labels = [target["label"] for _, target in moved]
        return Batch(images, content, torch.stack(labels))
    targets = [plain_target(target) for _, target in moved]
    return Batch(images, content, targets)  # a list, since images have different numbers of boxes


def stack_images(samples: Sequence[Sample]) -> Tensor:
    """The images of samples, each (3, H, W) uint8 of one size, as a tensor (B, 3, H, W) float32 in [0, 1]."""
    plain = [image.as_subclass(Tensor) for image, _ in samples]
    batch = torch.stack(plain).float() / 255  # the model itself subtracts the mean colour
    return batch.contiguous(memory_format=torch.channels_last)  # as the model's weights (see model.place_model)


def stack_content(samples: Sequence[Sample]) -> Tensor:
    """The contents (B, 4) of padded samples."""
    contents = [target["content"] for _, target in samples]
    return torch.stack(contents)


def plain_target(target: Target) -> Target:
    """A target without tv_tensors: outside the transforms, ordinary tensors are faster and can be stored."""
    return {name: value.as_subclass(Tensor) for name, value in target.items()}


def to_device(batch: Batch, device: str | torch.device) -> Batch:
    """A batch of any task on a device."""
    if isinstance(batch.targets, Tensor):
        targets: Targets = batch.targets.to(device)
    else:
        targets = [target_to_device(target, device) for target in batch.targets]
    images = batch.images.to(device)
    content = batch.content.to(device)
    return Batch(images, content, targets)


def target_to_device(target: Target, device: str | torch.device) -> Target:
    """One target on a device."""
    return {name: value.to(device) for name, value in target.items()}
