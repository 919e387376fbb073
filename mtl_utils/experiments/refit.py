"""Is what was learned of masks gone, or misread? The mask channels are fitted anew to features that stay as they are.

A probe, not a remedy: it reads the old labels. G. Alain and Y. Bengio, "Understanding intermediate layers using linear
classifier probes", ICLR workshop 2017.
"""

import copy
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_utils.data import Sample
from mtl_utils.detection import STRIDE
from mtl_utils.evaluation import EVAL_BATCH
from mtl_utils.experiments.autopsy import mask_channels, mean_iou_of, pixels_by_image
from mtl_utils.losses import class_weights, pixel_counts
from mtl_utils.model import UnifiedModel
from mtl_utils.tasks import IGNORE
from mtl_utils.transforms import Letterbox, collate, to_device

UNFITTED = "as it is"
RUNGS = ("background's bias", "all 21 biases", "all 21 rows")  # what is fitted, from one number to all
CELLS = 100  # drawn from each image of train, 255 left out
ROUNDS = 60  # of L-BFGS
# of the rows towards the old ones, so that few cells do not bend many numbers far: of 1e-3, 1e-2 and 1e-1 the one that
# does not harm the network of stage 1, which was trained on these very masks; nothing pulls biases, which are few
PULL = 0.1


def ladder(model: UnifiedModel, train: Sequence[Sample], val: Sequence[Sample], size: int) -> dict[str, Tensor]:
    """The masks of val by the model as it is, and after each of RUNGS is fitted on masks of train.

    Confusion matrices (images, 21, 21), as autopsy.pixels_by_image makes them. The model itself is not changed.
    """
    features, labels = labelled_cells(model, train, size)
    weights = class_weights(pixel_counts([target["mask"] for _, target in train]))  # (21,), as in training
    pixels = {UNFITTED: pixels_by_image(model, val, size)}
    for rung in RUNGS:
        fitted = copy.deepcopy(model)
        fit(fitted, rung, features, labels, weights)
        pixels[rung] = pixels_by_image(fitted, val, size)
    return pixels


def scores(ladders: Mapping[str, Mapping[str, Tensor]]) -> pd.DataFrame:
    """The mIoU of some ladders by name: a row for each ladder, a column for each rung."""
    rows = {}
    for name, pixels in ladders.items():
        rows[name] = {rung: mean_iou_of(matrices) for rung, matrices in pixels.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


@torch.no_grad()
def labelled_cells(model: UnifiedModel, samples: Sequence[Sample], size: int) -> tuple[Tensor, Tensor]:
    """Head features (N, C) of cells drawn from letterboxed images, and the classes (N,) at the cells' centres."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)  # the same cells for all models
    features, labels = [], []
    for start in range(0, len(samples), EVAL_BATCH):
        batch = to_device(collate(samples[start : start + EVAL_BATCH], Letterbox(size), "seg"), device)
        maps = model.eval().head_features(batch.images, batch.content)  # (B, C, h, w)
        for cells, target in zip(maps.cpu(), batch.targets, strict=True):
            centres = target["mask"][STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]  # (h, w)
            drawn = draw_cells(centres.flatten(), generator)
            features.append(cells.flatten(1).mT[drawn])  # (CELLS, C)
            labels.append(centres.flatten()[drawn].long().cpu())
    return torch.cat(features), torch.cat(labels)


def draw_cells(classes: Tensor, generator: torch.Generator) -> Tensor:
    """The numbers (CELLS,) of cells drawn from those of one image, whose classes are (N,); 255 is not drawn."""
    usable = (classes.cpu() != IGNORE).nonzero().flatten()
    order = torch.randperm(len(usable), generator=generator)
    return usable[order[:CELLS]]


def fit(model: UnifiedModel, rung: str, features: Tensor, labels: Tensor, weights: Tensor) -> None:
    """Fit one of RUNGS in the model's last layer to cells: features (N, C), labels (N,), weights (21,) of the classes.

    Cross-entropy, and a pull of the rows towards those before.
    """
    last = model.head.last
    assert last.bias is not None
    channels = mask_channels(model)
    device = last.weight.device
    features, labels, weights = features.to(device), labels.to(device), weights.to(device)
    old_rows = last.weight.detach()[channels].flatten(1)  # (21, C)
    old_biases = last.bias.detach()[channels]  # (21,)
    row_change = torch.zeros_like(old_rows, requires_grad=True)
    bias_change = torch.zeros_like(old_biases, requires_grad=True)
    learned = [row_change, bias_change] if rung == RUNGS[2] else [bias_change]
    allowed = torch.ones_like(old_biases)
    if rung == RUNGS[0]:
        allowed[1:] = 0  # background is class 0
    optimiser = torch.optim.LBFGS(learned, max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        rows = old_rows + row_change
        biases = old_biases + allowed * bias_change
        logits = features @ rows.mT + biases  # (N, 21)
        value = F.cross_entropy(logits, labels, weights)
        value = value + PULL * row_change.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        last.weight[channels] += row_change.view_as(last.weight[channels])
        last.bias[channels] += allowed * bias_change
