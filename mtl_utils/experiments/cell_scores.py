"""The class scores of single cells before and after: does the true class fall, or does another one rise?"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from mtl_utils.data import Sample
from mtl_utils.detection import STRIDE
from mtl_utils.evaluation import EVAL_BATCH
from mtl_utils.model import UnifiedModel
from mtl_utils.tasks import IGNORE, VOC_CLASSES
from mtl_utils.transforms import Letterbox, collate, to_device

BACKGROUND = 0  # its class
NAMED = 5  # classes whose scores are shown
COLUMNS = [
    "share of cells",
    "true class, before",
    "true class, after",
    "other class, before",
    "other class, after",
    "the latter, before",
]


class Cells(NamedTuple):
    """Cells of true objects, and what two networks compute there.

    Scores are a mask's logits less their mean over the classes, on which softmax does not depend.
    """

    places: Tensor  # (N, 3) int64: image, row and column of each cell
    classes: Tensor  # (N,) int64: the true class at its centre
    before: Tensor  # (N, 21) scores of the network before
    after: Tensor  # (N, 21) scores of the network after

    @property
    def right(self) -> Tensor:
        """Which cells (N,) bool the network before gets right."""
        return self.before.argmax(1) == self.classes

    @property
    def lost(self) -> Tensor:
        """Which cells (N,) bool the network before gets right and the one after wrong."""
        return self.right & (self.after.argmax(1) != self.classes)


@torch.inference_mode()
def find_cells(before: UnifiedModel, after: UnifiedModel, samples: Sequence[Sample], size: int) -> Cells:
    """All cells of objects in letterboxed images; `size`: side of the input."""
    places, classes = object_cells(samples, size)
    chosen = tuple(places.T)
    old = scores_of(before, samples, size)[chosen]  # (N, 21)
    new = scores_of(after, samples, size)[chosen]  # (N, 21)
    return Cells(places, classes, old, new)


def object_cells(samples: Sequence[Sample], size: int) -> tuple[Tensor, Tensor]:
    """The places (N, 3) and classes (N,) of all cells whose centre shows an object, neither background nor void."""
    masks = [target["mask"] for target in collate(samples, Letterbox(size), "seg").targets]
    centres = torch.stack(masks)[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].long()  # (B, h, w)
    objects = (centres != BACKGROUND) & (centres != IGNORE)
    return objects.nonzero(), centres[objects]


def scores_of(model: UnifiedModel, samples: Sequence[Sample], size: int) -> Tensor:
    """The mask logits (B, h, w, 21) of letterboxed images, less their mean over the classes."""
    device = next(model.parameters()).device
    maps = []
    for start in range(0, len(samples), EVAL_BATCH):
        batch = to_device(collate(samples[start : start + EVAL_BATCH], Letterbox(size), "seg"), device)
        outputs = model.eval()(batch.images, batch.content)
        logits = outputs.segmentation.movedim(1, -1)  # (b, h, w, 21)
        centred = logits - logits.mean(-1, keepdim=True)
        maps.append(centred.cpu())
    return torch.cat(maps)


def mean_scores(cells: Cells) -> pd.DataFrame:
    """The mean scores of the true class and of the strongest other class, each network's own.

    *The latter, before* is what the network before gives to the class that is the strongest other one after. A row for
    all cells, one for those that are right before and after, and one for those that are lost.
    """
    groups = {
        "all": torch.ones_like(cells.right),
        "right before and after": cells.right & ~cells.lost,
        "right before, wrong after": cells.lost,
    }
    true = cells.classes[:, None]  # (N, 1)
    values = {}
    for name, scores in {"before": cells.before, "after": cells.after}.items():
        others = scores.scatter(1, true, -torch.inf)  # (N, 21), all but the true class
        values[f"true class, {name}"] = scores.gather(1, true)[:, 0]  # (N,)
        values[f"other class, {name}"] = others.amax(1)  # (N,)
        strongest = others.argmax(1, keepdim=True)  # (N, 1); after the loop that of the network after
    values["the latter, before"] = cells.before.gather(1, strongest)[:, 0]  # (N,)
    rows = {}
    for group, chosen in groups.items():
        means = {name: of_cells[chosen].mean().item() for name, of_cells in values.items()}
        rows[group] = {"share of cells": chosen.double().mean().item()} | means
    return pd.DataFrame.from_dict(rows, orient="index")[COLUMNS]


def typical_loss(cells: Cells) -> int:
    """The number of the lost cell whose true class falls by the median; of all cells where none is lost."""
    true = cells.classes[:, None]  # (N, 1)
    falls = (cells.before - cells.after).gather(1, true)[:, 0]  # (N,)
    numbers = torch.arange(len(falls))
    if cells.lost.any():
        numbers = numbers[cells.lost]
    place = falls[numbers].median(0).indices
    return int(numbers[place])


def named_scores(cells: Cells, number: int) -> pd.DataFrame:
    """The scores of one cell before and after, a row for each of the NAMED classes that are highest in either."""
    highest = torch.maximum(cells.before[number], cells.after[number])
    classes = highest.topk(NAMED).indices.tolist()
    names = [VOC_CLASSES[index] for index in classes]
    before = cells.before[number][classes].tolist()
    after = cells.after[number][classes].tolist()
    return pd.DataFrame({"before": before, "after": after}, index=names)
