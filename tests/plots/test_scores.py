"""Figures of one run's metrics: what each panel shows, in text that can be read."""

import numpy as np
import pytest
from matplotlib.text import Text

from mtl_utils.evaluation import TaskMetrics
from mtl_utils.plots import scores
from mtl_utils.plots.style import SMALLEST_TEXT
from mtl_utils.tasks import TASKS

CONFUSION = [[3, 1], [0, 0]]  # the second class has no examples
FINAL = {
    "seg": TaskMetrics("seg", 0.4, 0.1, {"cat": 0.6, "dog": 0.2}, images=2, confusion=CONFUSION),
    "det": TaskMetrics("det", 0.3, 0.0, {"cat": 0.3, "dog": None}, images=2, mean_ap=0.1),
    "cls": TaskMetrics("cls", 0.9, 0.5, {"cat": 1.0, "dog": 0.8}, images=2, confusion=CONFUSION),
}
OWN = {
    "seg": TaskMetrics("seg", 0.5, 0.1, {"cat": 0.8, "sheep": 0.2, "tvmonitor": 0.5}, images=2),
    "det": TaskMetrics("det", 0.3, 0.0, {"cat": 0.1, "dog": None, "tv": None}, images=2),
}
LATER = TaskMetrics("seg", 0.4, 0.1, {"cat": 0.6, "sheep": 0.3, "tvmonitor": 0.5}, images=2)
MORE = TaskMetrics("det", 0.3, 0.0, {"cat": 0.3, "dog": None, "tv": None}, images=2)
NAMES = {task: ["cat", "dog"] for task in TASKS}
PRECISION = np.stack([np.full(101, 0.5), np.full(101, -1.0)], axis=1)[None]  # (1, 101, 2); no dog in the set
FIGURES = {
    "heatmap": lambda: scores.matrix_heatmap({"cls": FINAL}),
    "confusion": lambda: scores.confusion_matrices(FINAL, NAMES),
    "precision": lambda: scores.precision_recall(
        np.stack([np.full(101, 0.5), np.full(101, -1.0)], 1)[None], NAMES["det"]
    ),
    "bars": lambda: scores.class_bars(FINAL),
    "changes": lambda: scores.class_changes({"seg": OWN, "det": OWN, "cls": FINAL | {"seg": LATER, "det": MORE}}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_too_small(name):
    texts = [text for text in FIGURES[name]().findobj(Text) if text.get_text()]
    assert texts and min(text.get_fontsize() for text in texts) >= SMALLEST_TEXT


def test_bars_mark_the_classes_without_a_metric():
    axes = FIGURES["bars"]().axes
    assert [bar.get_width() for bar in axes[1].patches] == [0.3, 0]
    assert [text.get_text() for text in axes[1].texts] == ["0.30", "×"]
    assert [line.get_xdata()[0] for line in axes[0].lines] == [0.4, 0.1], "mean and floor"


def test_classes_move_from_their_own_stage_to_the_last():
    left, right = FIGURES["changes"]().axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["cat *", "sheep", "tvmonitor *"], "COCO calls it tv"
    assert [line.get_xdata().tolist() for line in left.lines] == [[0.8, 0.2, 0.5], [0.6, 0.3, 0.5]]
    assert [line.get_xdata().tolist() for line in right.lines] == [[0.1], [0.3]], "no dog in these images"


def test_confusion_is_a_share_of_the_true_class():
    values = FIGURES["confusion"]().axes[0].collections[0].get_array()
    assert np.array_equal(np.asarray(values).reshape(2, 2), [[0.75, 0.25], [0, 0]])


def test_the_area_of_a_panel_is_its_average_precision():
    titles = [axis.get_title() for axis in FIGURES["precision"]().axes]
    assert titles == ["cat (0.50)", "dog (no object)"]
