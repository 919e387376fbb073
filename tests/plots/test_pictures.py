"""Figures that choose what they show."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from helpers import CLASSES, ListSet, objects, photo
from PIL import Image
from torchvision import tv_tensors

from mtl_utils.plots import pictures, scores, style
from mtl_utils.tasks import TASKS


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
    figure = scores.precision_recall(precision, ["cat", "dog", "tv"])
    assert [axis.get_title() for axis in figure.axes] == ["cat (0.50)", "dog (0.00)", "tv (no object)", ""]


def drawn_boxes(axis):
    return [(box.get_x(), box.get_y(), box.get_width(), box.get_height()) for box in axis.patches]


def test_augmentation_moves_the_labels_shown_and_is_the_same_every_time():
    sets = {
        "seg": ListSet("seg", [(photo(64, 64), {"mask": tv_tensors.Mask(torch.full((64, 64), 3, dtype=torch.uint8))})]),
        "det": ListSet("det", [(photo(64, 64), objects([[8, 8, 40, 56]], [0], size=(64, 64)))]),
        "cls": ListSet("cls", [(photo(64, 64), {"label": torch.tensor(1)})]),
    }
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (pictures.augmentation_grid(sets, dict.fromkeys(TASKS, 48), index=0) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()), "looking at it must not change a run"
    boxes = [drawn_boxes(axis) for axis in first.axes[4:8]]
    assert boxes[0] == [(8, 8, 32, 48)] and len({str(b) for b in boxes}) == 4
    assert boxes == [drawn_boxes(axis) for axis in again.axes[4:8]]
    assert first.axes[9].images[0].get_array().shape[:2] == (48, 48)


def test_exemplars_are_shown_by_task_and_missing_ones_leave_an_empty_place():
    stored = {
        "cls": [(photo(8, 8), {"label": torch.tensor(1)})] * 9,
        "det": [(photo(9, 9), objects([], [], size=(9, 9)))],
    }
    figure = pictures.exemplar_grid(stored, CLASSES, count=3)
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 1, 1, 0, 0]
    assert [axis.get_title() for axis in figure.axes[:4]] == [CLASSES.names("cls")[1]] * 3 + ["0 objects"]


def test_heavy_pictures_are_stored_with_256_colours_and_light_ones_as_they_are(tmp_path):
    before = plt.get_fignums()
    figure, axis = plt.subplots(figsize=(6, 6))
    axis.imshow(np.random.default_rng(0).random((400, 400, 3)))
    style.save_png(figure, tmp_path / "photo.png")
    figure, axis = plt.subplots()
    axis.plot([0, 1])
    style.save_png(figure, tmp_path / "line.png")
    modes = [Image.open(tmp_path / name).mode for name in ("photo.png", "line.png")]
    assert modes == ["P", "RGBA"]
    assert plt.get_fignums() == before, "saved figures are closed"


def test_runs_stand_one_below_another_and_a_task_not_learned_yet_is_said_so(monkeypatch):
    monkeypatch.setattr(pictures, "predict", lambda model, task, images, size: [torch.eye(3)[model]])
    sets = {"cls": ListSet("cls", [(photo(8, 8), {"label": torch.tensor(2)})])}
    runs = {"with replay": {"det": 1, "cls": 2}, "without": {"det": 1, "cls": 0}}
    figure = pictures.run_grid(runs, sets, {"cls": 8}, index=5)
    names = CLASSES.names("cls")
    rows = [axis.get_title() or axis.texts[0].get_text() for axis in figure.axes]
    waiting = "not learned yet"
    assert rows == [names[2], waiting, f"{names[2]} (1.00)", names[2], waiting, f"{names[0]} (1.00)"]
    assert [figure.axes[i].texts[0].get_text() for i in (0, 3)] == ["with replay", "without"]
