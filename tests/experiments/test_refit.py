"""Fitting the mask channels anew: what each rung may change, a case that a bias mends, one that only rows mend."""

import copy

import pytest
import torch
from helpers import photo
from torchvision import tv_tensors

from mtl_utils.experiments import autopsy, refit
from mtl_utils.model import UnifiedModel, fold_batchnorm

WEIGHTS = torch.ones(21)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = UnifiedModel(3, 3)
    fold_batchnorm(model)
    return model.eval()


def two_classes(model, shift):
    """Features of two classes that the rows of 0 and 1 tell apart, and a bias that calls everything background."""
    model = copy.deepcopy(model)
    first = model.head.split[0]
    width = model.head.last.weight.shape[1]
    with torch.no_grad():
        model.head.last.weight.zero_()
        model.head.last.bias.zero_()
        model.head.last.bias[first + 2 : first + 21] = -20  # the other classes never win
        model.head.last.weight[first, 0], model.head.last.weight[first + 1, 1] = 4, 4
        model.head.last.bias[first] = shift
    features = torch.zeros(200, width)
    features[:100, 0] = 1
    features[100:, 1] = 1
    return model, features, torch.arange(2).repeat_interleave(100)


def right(model, features, labels):
    first = model.head.split[0]
    logits = (
        features @ model.head.last.weight[first : first + 21].flatten(1).mT + model.head.last.bias[first : first + 21]
    )
    return (logits.argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize(
    ("rung", "rows", "biases"), [(refit.RUNGS[0], 0, 1), (refit.RUNGS[1], 0, 21), (refit.RUNGS[2], 21, 21)]
)
def test_each_rung_changes_what_it_names(model, rung, rows, biases):
    fitted = copy.deepcopy(model)
    width = model.head.last.weight.shape[1]
    torch.manual_seed(1)
    refit.fit(fitted, rung, torch.rand(300, width), torch.randint(0, 21, (300,)), WEIGHTS)
    changed = (fitted.head.last.weight != model.head.last.weight).flatten(1).any(1)
    assert changed.sum() == rows and (fitted.head.last.bias != model.head.last.bias).sum() == biases
    other = [name for name, value in fitted.state_dict().items() if not torch.equal(value, model.state_dict()[name])]
    assert set(other) <= {"head.2.weight", "head.2.bias"}


def test_one_bias_mends_a_shift_towards_background(model):
    shifted, features, labels = two_classes(model, shift=10)
    assert right(shifted, features, labels) == 0.5, "all are called background"
    refit.fit(shifted, refit.RUNGS[0], features, labels, WEIGHTS)
    assert right(shifted, features, labels) == 1


def test_rows_mend_what_no_bias_can(model, monkeypatch):
    """Two classes whose features have changed places: the knowledge is there, and only the rows can read it."""
    monkeypatch.setattr(refit, "PULL", 1e-3)  # they have to turn round
    swapped, features, labels = two_classes(model, shift=0)
    features = features.roll(100, dims=0)
    with_biases = copy.deepcopy(swapped)
    refit.fit(with_biases, refit.RUNGS[1], features, labels, WEIGHTS)
    assert right(with_biases, features, labels) <= 0.5
    refit.fit(swapped, refit.RUNGS[2], features, labels, WEIGHTS)
    assert right(swapped, features, labels) == 1


def test_a_strong_pull_leaves_the_rows_as_they_are_and_a_weak_one_does_not(model, monkeypatch):
    width = model.head.last.weight.shape[1]
    torch.manual_seed(1)
    features, labels = torch.rand(300, width), torch.randint(0, 21, (300,))
    moved = {}
    for pull in (1e-3, 1e6):
        monkeypatch.setattr(refit, "PULL", pull)
        fitted = copy.deepcopy(model)
        refit.fit(fitted, refit.RUNGS[2], features, labels, WEIGHTS)
        moved[pull] = (fitted.head.last.weight - model.head.last.weight).norm().item()
    assert moved[1e6] < 1e-3 < 0.1 < moved[1e-3]


def test_cells_and_labels_are_those_of_their_own_image(model):
    """Two images of other sizes in one batch give what each gives alone."""
    samples = []
    for index, (height, width) in enumerate(((64, 64), (32, 64))):
        mask = torch.full((height, width), 3 + index, dtype=torch.uint8)
        samples.append((photo(height, width), {"mask": tv_tensors.Mask(mask)}))
    features, labels = refit.labelled_cells(model, samples, 64)
    first, of_first = refit.labelled_cells(model, samples[:1], 64)
    assert torch.equal(labels[: len(of_first)], of_first) and set(labels[len(of_first) :].tolist()) == {4}
    assert torch.allclose(features[: len(first)], first, atol=1e-4)
    assert len(of_first) == 64, "all cells of a small image"


def test_no_more_cells_than_asked_for_are_drawn(model):
    classes = torch.zeros(500)
    classes[:100] = 255
    drawn = refit.draw_cells(classes, torch.Generator().manual_seed(0))
    assert len(drawn) == refit.CELLS == len(set(drawn.tolist())) and drawn.min() >= 100


def test_cells_have_the_class_at_their_centre(model):
    mask = torch.full((64, 64), 255, dtype=torch.uint8)
    mask[12, 20] = 7  # the centre of the cell in row 1, column 2
    sample = (photo(64, 64), {"mask": tv_tensors.Mask(mask)})
    features, labels = refit.labelled_cells(model, [sample], 64)
    images = sample[0].as_subclass(torch.Tensor)[None].float() / 255
    maps = model.head_features(images, torch.tensor([[0.0, 0.0, 64.0, 64.0]]))
    assert labels.tolist() == [7]
    assert torch.allclose(features[0], maps[0, :, 1, 2], atol=1e-4)


def test_the_ladder_leaves_the_model_as_it_is(model):
    before = copy.deepcopy(model.state_dict())
    halves = torch.full((64, 64), 3, dtype=torch.uint8)
    halves[:, 32:] = 5
    image = tv_tensors.Image(torch.where(halves == 3, 10, 240).byte().expand(3, -1, -1))  # dark and bright
    samples = [(image, {"mask": tv_tensors.Mask(halves)})] * 3
    pixels = refit.ladder(model, samples, samples, 64)
    scores = refit.scores({"model": pixels}).loc["model"]
    assert list(scores.index) == ["as it is", *refit.RUNGS]
    assert scores["as it is"] == autopsy.mask_score(model, samples, 64)
    assert scores["all 21 rows"] > scores["background's bias"], "fitted on the very pixels that are scored"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
