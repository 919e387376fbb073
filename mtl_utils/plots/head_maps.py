"""The channels of the head's output map for one image, beside the answers that are read from them."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision import tv_tensors

from mtl_utils.evaluation import predict
from mtl_utils.model import UnifiedModel
from mtl_utils.plots.pictures import draw_answers, draw_mask
from mtl_utils.plots.style import TASK_COLOURS
from mtl_utils.tasks import Classes
from mtl_utils.transforms import Letterbox, collate


@torch.inference_mode()
def head_maps(model: UnifiedModel, image: tv_tensors.Image, size: int) -> tuple[Tensor, ...]:
    """The slices of the head's map for one letterboxed image, without the padding: each (channels, h, w)."""
    batch, _ = collate([(image, {"label": torch.tensor(0)})], Letterbox(size), "cls")
    grid = model.head[-1](model.eval().head_features(batch.to(next(model.parameters()).device))).float()[0].cpu()
    height, width = (-(-side * grid.shape[-1] // size) for side in Letterbox(size).content(image.shape[-2:]))
    return grid[:, :height, :width].split(model.head.split)


def map_contents(model: UnifiedModel, image: tv_tensors.Image, sizes: dict[str, int], classes: Classes) -> Figure:
    """What the map says about one image: each task's slice cell by cell, above the answer that is read off it."""
    size = sizes["det"]
    detection, segmentation, classification = head_maps(model, image, size)
    answers = {task: predict(model, task, [image], sizes[task])[0] for task in sizes}
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 5.2), layout="constrained")
    best = int(answers["cls"].argmax())
    draw_cells(axes[0, 0], detection[4].sigmoid(), "detection: is an object here?")
    draw_mask(axes[0, 1], segmentation.argmax(0).byte())
    axes[0, 1].set_title("segmentation: the best class of each cell", fontsize=9)
    draw_cells(axes[0, 2], classification.softmax(0)[best], f"classification: {classes.names('cls')[best]} here?")
    for axis in axes[0]:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(True)
    picture = image.as_subclass(Tensor)
    draw_answers(axes[1, 0], picture, {"det": answers["det"]}, classes)
    draw_answers(axes[1, 1], picture, {"seg": answers["seg"]}, classes)
    draw_probabilities(axes[1, 2], answers["cls"].numpy(), list(classes.names("cls")))
    return figure


def draw_cells(axis: Axes, values: Tensor, title: str) -> None:
    """A map (h, w) of probabilities, the highest black; the title says how high that is."""
    axis.imshow(values.numpy(), cmap="Greys", vmin=0)
    axis.set_title(f"{title} (black: {values.max():.2f})", fontsize=9)


def draw_probabilities(axis: Axes, values: np.ndarray, names: list[str]) -> None:
    """The probability of every class as a bar."""
    axis.barh(names, values, color=TASK_COLOURS["cls"])
    axis.set(xlim=(0, 1), xlabel="probability")
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=8, length=0)
