"""The effective receptive field of one cell of the output map."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mtl_utils.detection import STRIDE
from mtl_utils.model import UnifiedModel, whole_input
from mtl_utils.plots.pictures import draw_image
from mtl_utils.transforms import to_batch

SHARES = {0.5: "-", 0.9: "--"}  # of all influence, and the lines of the squares that hold it
LEAST_INFLUENCE = 1e-8  # so that a pixel without influence has a logarithm


def influence(model: UnifiedModel, images: Tensor) -> Tensor:
    """(H, W): how much each pixel moves the head's features in the middle cell, as shares of the whole.

    The effective receptive field: the mean size of the gradient over images (B, 3, H, W) in [0, 1], after W. Luo et
    al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016.
    """
    device = next(model.parameters()).device
    images = images.to(device).requires_grad_()
    features = model.eval().head_features(images, whole_input(images))  # (B, C, h, w)
    height, width = features.shape[2:]
    middle_cell = features[:, :, height // 2, width // 2]
    (gradient,) = torch.autograd.grad(middle_cell.sum(), images)
    mean_size = gradient.abs().mean((0, 1)).cpu()  # (H, W)
    return mean_size / mean_size.sum()


def square_with(shares: Tensor, share: float) -> int:
    """Side in pixels of the smallest square around the middle of a map (H, W) that holds this share of it."""
    height, width = shares.shape
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    distance = torch.maximum(rows[:, None], columns[None, :])  # (H, W): squares are its contour lines
    by_distance = torch.bincount(distance.flatten(), weights=shares.flatten())
    held = by_distance.cumsum(0)  # by squares of side 1, 3, 5, ...
    too_small = int((held < share).sum())
    return 2 * too_small + 1


def receptive_field(model: UnifiedModel, images: Sequence[Tensor], size: int) -> Figure:
    """How far the middle cell of the head sees: an image with squares that hold half and nine tenths, and the map.

    `images` are (3, H, W) uint8, at least one; the map is their mean, after a centre crop to a square of `size` pixels.
    """
    # squares are letterboxed without grey
    squares = [TF.center_crop(image, [min(image.shape[-2:])]) for image in images]
    batch, _ = to_batch(squares, size)
    shares = influence(model, batch)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.9), layout="constrained")
    first_image = (batch[0].detach() * 255).byte()
    draw_image(axes[0], first_image, "the middle cell, and what it looks at")
    draw_cell(axes[0], size)
    for share, line in SHARES.items():
        draw_share(axes[0], size, square_with(shares, share), share, line)
    logarithm = shares.clamp(min=LEAST_INFLUENCE).log10()
    axes[1].imshow(logarithm.numpy(), cmap="Greys", vmin=-7)
    axes[1].set_axis_off()
    axes[1].set_title("influence of each pixel (logarithm)", fontsize=9)
    return figure


def draw_cell(axis: Axes, size: int) -> None:
    """The middle cell of an image of size x size."""
    corner = corner_of(size, STRIDE)
    axis.add_patch(Rectangle(corner, STRIDE, STRIDE, edgecolor="white", facecolor="black"))


def draw_share(axis: Axes, size: int, side: int, share: float, line: str) -> None:
    """The square that holds this share of the influence, dark on light so that it shows on any image, and its side."""
    corner = corner_of(size, side)
    light = Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=4)
    dark = Rectangle(corner, side, side, fill=False, edgecolor="black", linestyle=line, linewidth=1.5)
    axis.add_patch(light)
    axis.add_patch(dark)
    top = size / 2 - side / 2
    text = f"{share:.0%} within {side} × {side} pixels"
    axis.text(size / 2, top - 4, text, ha="center", fontsize=8, bbox={"color": "white", "pad": 1})


def corner_of(size: int, side: int) -> tuple[float, float]:
    """x, y of the top left corner of a square of this side in the middle of an image of size x size."""
    corner = size // 2 - side / 2
    return corner, corner
