"""Figures that choose what they show."""

import numpy as np
import torch
from helpers import ListSet, objects, photo
from torchvision import tv_tensors

from mtl_utils import pictures, plots
from mtl_utils.settings import TASKS


def test_the_best_and_the_worst_image_of_each_task_are_shown(monkeypatch):
    mask, boxes = torch.zeros(8, 8, dtype=torch.uint8), objects([[0, 0, 20, 20]], [0], size=(32, 32))
    right = {"boxes": torch.tensor([[0.0, 0, 20, 20]]), "labels": torch.tensor([0]), "scores": torch.tensor([0.9])}
    wrong = right | {"labels": torch.tensor([2])}
    sets = {
        "seg": ListSet("seg", [(photo(8, 8), {"mask": tv_tensors.Mask(mask)})] * 3),
        "det": ListSet("det", [(photo(32, 32), boxes)] * 3),
        "cls": ListSet("cls", [(photo(8, 8), {"label": torch.tensor(1)})] * 3),
    }
    half = torch.cat([torch.zeros(4, 8), torch.ones(4, 8)]).byte()
    answers = {
        "seg": [half, mask, mask + 1],
        "det": [wrong, right, wrong],
        "cls": list(torch.tensor([[0.4, 0.5, 0.1], [0.9, 0.1, 0.0], [0.1, 0.8, 0.1]])),
    }
    monkeypatch.setattr(pictures, "predict_set", lambda model, dataset, size: answers[dataset.task])
    figure = pictures.best_and_worst(None, sets, dict.fromkeys(TASKS, 32))
    said = [text.get_text() for axis in figure.axes for text in axis.texts if ":" in text.get_text()]
    assert said == ["best: 1.00", "worst: 0.00", "best: 1.00", "worst: 0.00", "best: 0.80", "worst: 0.10"]


def test_precision_recall_names_each_class_with_its_average_precision():
    precision = np.zeros((10, 101, 3))
    precision[0, :51, 0], precision[0, :, 2] = 1.0, -1.0
    figure = plots.precision_recall(precision, ["cat", "dog", "tv"])
    assert [axis.get_title() for axis in figure.axes] == ["cat (0.50)", "dog (0.00)", "tv (no object)", ""]
