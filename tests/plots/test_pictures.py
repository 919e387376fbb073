"""Figures that choose what they show."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import CLASSES, ListSet, objects, photo
from PIL import Image
from torchvision import tv_tensors

from mtl_utils.evaluation import Prediction
from mtl_utils.plots import pictures, scores, style
from mtl_utils.tasks import TASKS


@pytest.fixture(autouse=True)
def close_figures():
    """No figure outlives its test."""
    yield
    plt.close("all")


def texts(figure):
    """What is written into a figure's axes, titles left out."""
    written = []
    for axis in figure.axes:
        written += [text.get_text() for text in axis.texts]
    return written


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
    predictions = {
        "seg": [half, mask, mask + 1],
        "det": [wrong, right, wrong],
        "cls": list(torch.tensor([[0.4, 0.5, 0.1], [0.9, 0.1, 0.0], [0.1, 0.8, 0.1]])),
    }
    asked = []

    def predict_sets(model, datasets, size):
        asked.append(([dataset.task for dataset in datasets], size))
        return predictions

    monkeypatch.setattr(pictures, "predict_sets", predict_sets)
    figure = pictures.best_and_worst(None, sets, 32)
    assert asked == [(list(TASKS), 32)], "all sets at once"
    below = [text for text in texts(figure) if ":" in text]
    assert below == ["best: 1.00", "worst: 0.00", "best: 1.00", "worst: 0.00", "best: 0.80", "worst: 0.10"]


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
    boxes = [drawn_boxes(axis) for axis in first.axes[4:8]]  # the row of detection
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
    monkeypatch.setattr(pictures, "predict", lambda model, images, size: [Prediction(None, None, torch.eye(3)[model])])
    sets = {"cls": ListSet("cls", [(photo(8, 8), {"label": torch.tensor(2)})])}
    runs = {"with replay": {"det": 1, "cls": 2}, "without": {"det": 1, "cls": 0}}
    figure = pictures.run_grid(runs, sets, 8, index=5)
    names = CLASSES.names("cls")
    rows = [axis.get_title() or axis.texts[0].get_text() for axis in figure.axes]
    waiting = "not learned yet"
    assert rows == [names[2], waiting, f"{names[2]} (1.00)", names[2], waiting, f"{names[0]} (1.00)"]
    assert [figure.axes[i].texts[0].get_text() for i in (0, 3)] == ["with replay", "without"]


CORNERS = [[0, 0, 60, 30], [95, 0, 120, 30], [0, 50, 20, 80], [100, 60, 120, 90]]


@pytest.mark.parametrize("size", [(90, 120), (375, 500)])
@pytest.mark.parametrize("scores", [{}, {"scores": torch.tensor([0.9, 0.8, 0.7, 0.6])}])
def test_the_texts_of_boxes_can_be_read_wherever_a_box_lies(size, scores):
    boxes = torch.tensor(CORNERS) * size[0] / 90
    shown = objects(boxes.tolist(), [0, 1, 2, 0], size=size) | scores
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained")
    pictures.draw_det(axes[0], photo(*size), shown, CLASSES)
    figure.draw_without_rendering()
    frame = axes[0].get_window_extent()
    assert len(axes[0].texts) == 4
    for text in axes[0].texts:
        letters = text.get_window_extent()
        assert text.get_fontsize() >= 8
        assert letters.x0 >= frame.x0 - 1 and letters.x1 <= frame.x1 + 1, text.get_text()
        assert letters.y0 >= frame.y0 - 1 and letters.y1 <= frame.y1 + 1, text.get_text()


def test_detections_below_the_threshold_are_not_drawn_and_crowds_are_dashed():
    detections = objects([[0, 0, 9, 9], [9, 9, 30, 30]], [0, 1]) | {"scores": torch.tensor([0.4, 0.6])}
    _, (left, right) = plt.subplots(1, 2)
    assert pictures.draw_boxes(left, detections, CLASSES, threshold=0.5) == 1
    assert [text.get_text() for text in left.texts] == ["dog 0.60"]
    labelled = objects([[0, 0, 9, 9], [9, 9, 30, 30]], [0, 1], crowd=[True, False])
    assert pictures.draw_boxes(right, labelled, CLASSES, threshold=0.5) == 2
    assert [box.get_linestyle() for box in right.patches] == ["--", "-"]


def test_a_figure_is_saved_below_its_name_with_its_source_in_readable_text(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    with plt.rc_context():
        show = style.figure_saver(tmp_path / "figures", "synthetic mini sets")
        figure, _ = plt.subplots()
        show(figure, "curve")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["curve.png"]
    assert shown[0].data == (tmp_path / "figures" / "curve.png").read_bytes()
    source = figure._supxlabel
    assert source.get_text() == "synthetic mini sets" and source.get_fontsize() >= 8


def test_what_a_model_finds_is_called_a_detection():
    label = objects([[0, 0, 20, 20]], [1])
    found = {"boxes": torch.tensor([[0.0, 0, 20, 20]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    figure, axes = pictures.make_grid(1, 2, (4, 2))
    pictures.draw_det(axes[0, 0], photo(40, 40), label, CLASSES)
    pictures.draw_det(axes[0, 1], photo(40, 40), found, CLASSES)
    assert [axis.get_title() for axis in figure.axes] == ["1 object", "1 detection"]
