"""Class scores of single cells: which cells count, and means that are computed by hand."""

import matplotlib.pyplot as plt
import pytest
import torch
from helpers import photo
from torchvision import tv_tensors

from mtl_utils.experiments import cell_scores
from mtl_utils.experiments.cell_scores import Cells
from mtl_utils.model import UnifiedModel, fold_batchnorm
from mtl_utils.plots import autopsy as figures
from mtl_utils.transforms import to_batch

# three cells of the classes 1, 1 and 2, and scores of three classes; the second becomes wrong, the third is never right
CELLS = Cells(
    torch.tensor([[0, 0, 0], [0, 2, 5], [1, 3, 3]]),
    torch.tensor([1, 1, 2]),
    torch.tensor([[-5.0, 4.0, 1.0], [-4.0, 2.0, 2.0 - 1e-3], [3.0, -1.0, -2.0]]),
    torch.tensor([[-3.0, 3.0, 0.0], [-1.0, 0.0, 1.0], [2.0, -4.0, 2.0 - 1e-3]]),
)


def folded_model(seed: int) -> UnifiedModel:
    torch.manual_seed(seed)
    model = UnifiedModel(3, 3)
    fold_batchnorm(model)
    return model.eval()


def sample(mask: torch.Tensor):
    return photo(*mask.shape), {"mask": tv_tensors.Mask(mask.byte())}


def test_means_by_hand():
    table = cell_scores.mean_scores(CELLS)
    assert list(table.index) == ["all", "right before and after", "right before, wrong after"]
    kept, lost = table.iloc[1], table.iloc[2]
    assert kept.tolist() == pytest.approx([1 / 3, 4, 3, 1, 0, 1]), "true class 1; the strongest other is class 2"
    assert lost.tolist() == pytest.approx([1 / 3, 2, 0, 2 - 1e-3, 1, 2 - 1e-3])
    of_all = [1, (4 + 2 - 2) / 3, (3 + 0 + 2) / 3, (1 + 2 + 3) / 3, (0 + 1 + 2) / 3, (1 + 2 + 3) / 3]
    assert table.iloc[0].tolist() == pytest.approx(of_all, abs=1e-3), "cells that are never right count here alone"


def test_the_class_that_takes_over_may_be_another_than_the_strongest_before():
    """Class 0 is the strongest other one before, class 2 after: it had a score of 1."""
    cells = Cells(
        torch.zeros(1, 3), torch.tensor([1]), torch.tensor([[3.0, 5.0, 1.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    )
    lost = cell_scores.mean_scores(cells).loc["right before, wrong after"]
    assert lost.tolist() == [1, 5, 1, 3, 2, 1]


def test_the_typical_cell_is_the_lost_one_whose_true_class_falls_by_the_median():
    """Of five cells of class 0 four are lost, falling by 9, 2, 4 and 5: the lower one of the middle two is 4."""
    before = torch.tensor([[9.0, 0.0]]).repeat(5, 1)
    after = torch.tensor([[0.0, 1.0], [7.0, 8.0], [8.0, 0.0], [5.0, 6.0], [4.0, 6.0]])
    cells = Cells(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64), before, after)
    assert cells.lost.tolist() == [True, True, False, True, True]
    assert cell_scores.typical_loss(cells) == 3
    assert CELLS.lost.tolist() == [False, True, False]
    assert cell_scores.typical_loss(CELLS) == 1
    kept = Cells(*(part[:1] for part in CELLS))
    assert cell_scores.typical_loss(kept) == 0, "no cell is lost"


def test_cells_are_those_whose_centre_shows_an_object():
    mask = torch.zeros(64, 64)
    mask[8:24, 16:24] = 8  # two cells of a cat, rows 1 and 2, column 2
    mask[40:48, 40:44] = 12  # a dog that ends before the cell's centre, row 44, column 44
    mask[56:64, 0:8] = 255  # void
    places, classes = cell_scores.object_cells([sample(torch.zeros(64, 64)), sample(mask)], 64)
    assert places.tolist() == [[1, 1, 2], [1, 2, 2]] and classes.tolist() == [8, 8]


def test_scores_are_the_networks_logits_less_their_mean():
    before, after = folded_model(0), folded_model(1)
    mask = torch.zeros(64, 64)
    mask[8:16, 16:24] = 8
    samples = [sample(mask)]
    cells = cell_scores.find_cells(before, after, samples, 64)
    batch, content = to_batch([samples[0][0]], 64)
    for model, scores in ((before, cells.before), (after, cells.after)):
        logits = model(batch, content).segmentation[0, :, 1, 2]
        assert torch.allclose(scores[0], logits - logits.mean(), atol=1e-5)
        assert torch.allclose(scores[0].softmax(0), logits.softmax(0), atol=1e-5), "softmax does not notice"


def test_the_picture_shows_the_five_highest_scores_and_where_the_cell_is():
    before, after = folded_model(0), folded_model(1)
    mask = torch.zeros(64, 64)
    mask[8:16, 16:24] = 8
    samples = [sample(mask)]
    cells = cell_scores.find_cells(before, after, samples, 64)
    figure = figures.one_cell(cells, 0, samples, 64)
    left, right = figure.axes
    assert left.get_title() == "a cell of the class cat"
    assert [patch.center for patch in left.patches] == [(20, 12)] * 2
    heights = [bar.get_height() for bar in right.patches]
    assert max(heights[:5]) == pytest.approx(cells.before[0].max().item())
    assert max(heights[5:]) == pytest.approx(cells.after[0].max().item())
    assert len(heights) == 10
    plt.close("all")
