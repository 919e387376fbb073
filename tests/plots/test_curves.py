"""Learning curves: what is drawn of a history, and where."""

from types import SimpleNamespace

import IPython.display
import pytest

from mtl_utils.evaluation import TaskMetrics
from mtl_utils.plots import curves
from mtl_utils.training import EpochRecord


def record(epoch, loss, val=None):
    return EpochRecord(epoch, loss, lr=1e-3, seconds=1.0, val=val)


SEG = [record(1, {"seg": 0.9}), record(2, {"seg": 0.7}, {"seg": 0.4})]
DET = [record(1, {"seg": 0.5, "det": 2.0, "boxes_from_masks": 8.0, "remedies": 9.0}, {"seg": 0.3, "det": 0.1})]


def drawn(axis):
    """The points of each labelled curve."""
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines if line.get_label()[0] != "_"}


def test_stages_stand_on_one_axis_of_epochs():
    losses, metrics = curves.learning_curves({"seg": SEG, "det": DET}).axes
    assert drawn(losses)["segmentation"] == [[1, 0.9], [2, 0.7], [3, 0.5]]
    assert drawn(losses)["learning rate (scaled)"] == [[1, 9.0], [2, 9.0], [3, 9.0]], "the largest as high as any loss"
    assert drawn(metrics) == {"mIoU": [[2, 0.4], [3, 0.3]], "mAP@50": [[3, 0.1]]}
    assert [text.get_text().strip() for text in losses.texts] == ["segmentation", "detection"]


def test_every_term_of_the_loss_is_drawn():
    """Boxes from masks and remedies are terms of the loss too, but belong to no single task."""
    losses, _ = curves.learning_curves({"det": DET}).axes
    terms = drawn(losses)
    assert terms.pop("learning rate (scaled)") == [[1, 9.0]]
    tasks = {"segmentation": [[1, 0.5]], "detection": [[1, 2.0]]}
    assert terms == tasks | {"boxes from masks": [[1, 8.0]], "remedies": [[1, 9.0]]}
    assert losses.get_ylim() == pytest.approx((0, 1.3 * 9.0))


def test_the_rate_is_drawn_in_proportion():
    history = [record(1, {"seg": 2.0}), record(2, {"seg": 1.0})]
    history[1].lr = 5e-4
    losses, _ = curves.learning_curves({"seg": history}).axes
    assert drawn(losses)["learning rate (scaled)"] == [[1, 2.0], [2, 1.0]]


def test_the_curves_begin_at_the_end_of_the_stage_before():
    before = {"seg": TaskMetrics("seg", value=0.45, floor=0.0, per_class={}, images=2)}
    _, metrics = curves.learning_curves({"det": DET}, before).axes
    assert drawn(metrics) == {"mIoU": [[0, 0.45], [1, 0.3]], "mAP@50": [[1, 0.1]]}


def test_without_an_evaluation_there_is_no_curve_on_val():
    _, metrics = curves.learning_curves({"seg": SEG[:1]}).axes
    assert drawn(metrics) == {} and metrics.get_legend() is None


def test_the_live_curve_is_redrawn_in_place(monkeypatch):
    shown, updated = [], []

    def display(figure, display_id):
        shown.append(figure)
        return SimpleNamespace(update=updated.append)

    monkeypatch.setattr(IPython.display, "display", display)
    live = curves.LiveCurve()
    live(SimpleNamespace(task="seg", history=SEG[:1]))
    live(SimpleNamespace(task="seg", history=SEG))
    assert len(shown) == 1 and updated == shown
    assert drawn(shown[0].axes[0])["segmentation"] == [[1, 0.9], [2, 0.7]]
