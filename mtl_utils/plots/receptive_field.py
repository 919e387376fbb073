"""The effective receptive field of one cell of the output map."""

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision import tv_tensors

from mtl_utils.model import UnifiedModel
from mtl_utils.plots.pictures import draw_image
from mtl_utils.transforms import collate, eval_transform

SHARES = {0.5: "-", 0.9: "--"}  # of all influence, and the lines of the squares that hold it


def influence(model: UnifiedModel, images: Tensor) -> Tensor:
    """(H, W): how much each pixel moves the head's features in the middle cell, as shares of the whole.

    The effective receptive field: the mean size of the gradient over images (B, 3, H, W) in [0, 1], after W. Luo et
    al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016.
    """
    device = next(model.parameters()).device
    images = images.to(device).requires_grad_()
    hidden = model.eval().head_features(images)
    middle = hidden[:, :, hidden.shape[2] // 2, hidden.shape[3] // 2]
    (gradient,) = torch.autograd.grad(middle.sum(), images)
    found = gradient.abs().mean((0, 1)).cpu()
    return found / found.sum()


def square_with(found: Tensor, share: float) -> int:
    """Side in pixels of the smallest square around the middle of a map (H, W) that holds this share of it."""
    middle = [side // 2 for side in found.shape]
    far = [(torch.arange(side) - m).abs() for side, m in zip(found.shape, middle, strict=True)]
    distance = torch.maximum(far[0][:, None], far[1][None, :])
    held = torch.bincount(distance.flatten(), weights=found.flatten()).cumsum(0)
    return 2 * int((held < share).sum()) + 1


def receptive_field(model: UnifiedModel, images: list[tv_tensors.Image], size: int) -> Figure:
    """How far the middle cell of the head sees: an image with squares that hold half and nine tenths, and the map."""
    batch, _ = collate([(image, {"label": torch.tensor(0)}) for image in images], eval_transform("cls", size), "cls")
    found = influence(model, batch)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.9), layout="constrained")
    draw_image(axes[0], (batch[0].detach() * 255).byte(), "the middle cell, and what it looks at")
    draw_square(axes[0], size // 2, 8, edgecolor="white", facecolor="black")
    for share, line in SHARES.items():
        side = square_with(found, share)
        draw_square(axes[0], size // 2, side, fill=False, edgecolor="white", linewidth=4)
        draw_square(axes[0], size // 2, side, fill=False, edgecolor="black", linestyle=line, linewidth=1.5)
        note = f"{share:.0%} within {side} × {side} pixels"
        axes[0].text(
            size / 2, size / 2 - side / 2 - 4, note, ha="center", fontsize=8, bbox={"color": "white", "pad": 1}
        )
    axes[1].imshow(found.clamp(min=1e-8).log10().numpy(), cmap="Greys", vmin=-7)
    axes[1].set_axis_off()
    axes[1].set_title("influence of each pixel (logarithm)", fontsize=9)
    return figure


def draw_square(axis: Axes, middle: float, side: float, **look) -> None:
    """A square around a point on the diagonal."""
    axis.add_patch(Rectangle((middle - side / 2, middle - side / 2), side, side, **look))
