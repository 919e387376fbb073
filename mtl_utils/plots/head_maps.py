"""The channels of the head's output map for one image, beside the predictions that are read from them."""

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mtl_utils.detection import CONFIDENCE, STRIDE
from mtl_utils.evaluation import predict
from mtl_utils.model import UnifiedModel, split_channels
from mtl_utils.plots.pictures import draw_mask, draw_predictions
from mtl_utils.plots.style import TASK_COLOURS
from mtl_utils.tasks import Classes
from mtl_utils.transforms import Letterbox, to_batch


@torch.inference_mode()
def head_maps(model: UnifiedModel, image: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The slices of the head's map for one letterboxed image, without the padding: each (channels, h, w) float32.

    `image` is (3, H, W) uint8. Returns detection, segmentation and classification.
    """
    letterbox = Letterbox(size)
    device = next(model.parameters()).device
    batch, content = to_batch([image], size)
    features, deep = model.eval().features(batch.to(device), content.to(device))
    hidden = model.head.head_features(features)
    grid = model.head_map(hidden, deep).cpu()  # (1, 5 + C_det + 21 + C_cls, size / 8, size / 8)
    height, width = letterbox.content(image.shape[-2:])
    rows = math.ceil(height / STRIDE)  # a cell that holds a part of the image counts
    columns = math.ceil(width / STRIDE)
    channels = split_channels(grid[:, :, :rows, :columns], model.head.split)
    return channels["det"][0], channels["seg"][0], channels["cls"][0]


def map_contents(model: UnifiedModel, image: Tensor, size: int, classes: Classes) -> Figure:
    """What the map holds for one image: each task's slice cell by cell, above the prediction that is read from it."""
    detection, segmentation, classification = head_maps(model, image, size)
    prediction = predict(model, [image], size)[0]
    names = classes.names("cls")
    best = int(prediction.probabilities.argmax())
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 5.2), layout="constrained")
    slices, results = axes  # a row of three each

    confidence = detection[CONFIDENCE].sigmoid()  # (h, w)
    draw_cells(slices[0], confidence, "detection: is an object here?")
    draw_mask(slices[1], segmentation.argmax(0).byte())
    slices[1].set_title("segmentation: the best class of each cell", fontsize=9)
    probabilities = classification.softmax(0)  # (C, h, w)
    draw_cells(slices[2], probabilities[best], f"classification: {names[best]} here?")
    for axis in slices:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(True)

    picture = image.as_subclass(Tensor)
    draw_predictions(results[0], picture, {"det": prediction.detections}, classes)
    draw_predictions(results[1], picture, {"seg": prediction.mask}, classes)
    draw_probabilities(results[2], prediction.probabilities, names)
    return figure


def draw_cells(axis: Axes, values: Tensor, title: str) -> None:
    """A map (h, w) of probabilities, the highest black; the title gives the highest."""
    axis.imshow(values.numpy(), cmap="Greys", vmin=0)
    axis.set_title(f"{title} (black: {values.max():.2f})", fontsize=9)


def draw_probabilities(axis: Axes, values: Tensor, names: list[str]) -> None:
    """The probability (C,) of every class as a bar."""
    axis.barh(names, values.numpy(), color=TASK_COLOURS["cls"])
    axis.set(xlim=(0, 1), xlabel="probability")
    axis.invert_yaxis()  # the first class at the top
    axis.tick_params(axis="y", labelsize=8, length=0)
