"""Tables and verdicts from a hand-made metrics.json."""

import json

import numpy as np
import pytest
from helpers import stage_metrics, task_metrics

from mtl_utils import forgetting, stages
from mtl_utils.experiments import tables
from mtl_utils.files import COMMITTED_METRICS, UserError
from mtl_utils.run import RunKey, RunMetrics, StageResult, read_metrics
from mtl_utils.settings import Settings
from mtl_utils.tasks import TASKS
from mtl_utils.training import EpochRecord

# the example of the assignment: its numbers, and the text it wants
BASE = {"seg": 0.6548, "det": 0.5123, "cls": 0.7812}
FINAL = {"seg": 0.6412, "det": 0.5057, "cls": 0.7710}
EXAMPLE = """\
Stage1 best mIoU: 0.6548
Stage2 best mAP@50: 0.5123
Stage3 best Top1 Acc: 0.7812
→ Final Seg mIoU: 0.6412, Det mAP@50: 0.5057, Cls Acc: 0.7710
Seg mIoU: baseline=0.6548, final=0.6412, drop=0.0136 → ✅ PASS
Det mAP@50: baseline=0.5123, final=0.5057, drop=0.0066 → ✅ PASS
Cls Top1 Acc: baseline=0.7812, final=0.7710, drop=0.0102 → ✅ PASS"""


METRICS = stage_metrics([{"seg": 0.4}, {"seg": 0.39, "det": 0.1}, {"seg": 0.36, "det": 0.12, "cls": 0.9}])


def test_r_matrix_has_stages_by_row_and_nan_above_the_diagonal():
    expected = [[0.4, np.nan, np.nan], [0.39, 0.1, np.nan], [0.36, 0.12, 0.9]]
    np.testing.assert_array_equal(forgetting.r_matrix(METRICS), expected)


def test_drop_is_baseline_minus_final_and_a_gain_is_negative():
    seg, det, cls = forgetting.drops(METRICS)
    assert seg.drop == pytest.approx(0.04) and det.drop == pytest.approx(-0.02) and cls.drop == 0


@pytest.mark.parametrize(
    ("baseline", "final", "points", "relative"),
    [
        (0.40, 0.36, True, False),  # 4 points, but 10 % of the baseline
        (0.40, 0.385, True, True),
        (0.90, 0.80, False, False),
        (0.40, 0.44, True, True),  # a gain
        (0.03, 0.03, False, False),  # not above the floor: nothing was learned
        (0.0, 0.0, False, False),
    ],
)
def test_both_readings_of_five_per_cent(baseline, final, points, relative):
    drop = forgetting.five_percent_rule("seg", final, [baseline], floor=0.03)
    assert (drop.within_points, drop.within_relative) == (points, relative)
    assert drop.passed == relative


def test_the_largest_baseline_counts():
    assert forgetting.five_percent_rule("seg", 0.48, [0.5, 0.4], floor=0.03).passed
    assert not forgetting.five_percent_rule("seg", 0.48, [0.5, 0.6], floor=0.03).passed


def test_exactly_five_per_cent_less_passes_both_readings():
    drop = forgetting.five_percent_rule("seg", 0.95, [1.0], floor=0.0)
    assert (drop.within_points, drop.within_relative, drop.passed) == (True, True, True)


def test_closing_report_has_the_assignments_form(monkeypatch):
    rows = [forgetting.five_percent_rule(task, FINAL[task], [BASE[task]], 0.0) for task in TASKS]
    monkeypatch.setattr(forgetting, "drops", lambda metrics: rows)
    assert forgetting.closing_report({}) == EXAMPLE


def test_closing_report_says_fail_when_a_task_is_forgotten():
    lines = forgetting.closing_report(METRICS).splitlines()
    assert lines[-3].endswith("❌ FAIL") and lines[-2].endswith("✅ PASS")


def test_tables_show_floor_gain_and_verdict():
    before = {"seg": task_metrics("seg", 0.035), "cls": task_metrics("cls", 0.12)}
    stages = tables.stage_table(METRICS, before)
    assert list(stages.index) == ["trivial floor", "before any stage"] + [f"after stage {n}" for n in (1, 2, 3)]
    assert stages.loc["trivial floor", "mIoU"] == "0.030" and stages.loc["after stage 1", "Top-1"] == ""
    assert stages.loc["before any stage"].tolist() == ["0.035", "", "0.120"]
    forgetting = tables.forgetting_table(METRICS)
    assert forgetting.loc["mAP@50", "drop"] == "-0.020"
    assert forgetting.loc["mIoU", "drop, % of baseline"] == "+10.0"


def test_scores_stand_beside_the_committed_run():
    table = tables.scores_so_far({"seg": task_metrics("seg", 0.4), "det": task_metrics("det", 0.1)}, "det")
    committed = json.loads(COMMITTED_METRICS.read_text())
    theirs = committed["stages"]["det"]["metrics"]
    *own, column = table.columns
    assert own == ["value", "floor"] and column == "committed run (full, seed 0)"
    assert table[column].tolist() == [f"{theirs['seg']['mIoU']:.3f}", f"{theirs['det']['mAP@50']:.3f}"]
    assert table["value"].tolist() == ["0.400", "0.100"]


def test_the_table_judges_against_the_larger_of_single_task_and_own_stage():
    alone = {"seg": 0.35, "cls": 0.95}  # below and above the own stage; detection was not learned alone
    seg, det, cls = tables.largest_baseline_drops(METRICS, alone)
    assert (seg.baseline, det.baseline, cls.baseline) == (0.4, 0.1, 0.95)
    assert cls.final == 0.9 and not cls.passed
    table = tables.forgetting_table(METRICS, alone)
    assert table["single-task"].tolist() == ["0.350", "–", "0.950"]
    assert table["own stage"].tolist() == ["0.400", "0.100", "0.900"]
    assert table.loc["Top-1", "within 5 points"] == "✅ PASS"
    assert table.loc["Top-1", "within 5 % of baseline"] == "❌ FAIL"


def test_a_missing_stage_is_named():
    with pytest.raises(UserError, match="all three stages"):
        forgetting.drops(stage_metrics([{"seg": 0.4}]))


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"stages": {}}'])
def test_damaged_metrics_file(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.json"):
        read_metrics(tmp_path / "metrics.json")


def test_the_committed_metrics_survive_a_round_trip():
    stored = json.loads(COMMITTED_METRICS.read_text())
    assert RunMetrics.from_dict(stored).as_dict() == stored


def stage(first, last, **scores):
    """A finished stage: training losses of its first and last epoch, and (value, floor) of each task."""
    metrics = {task: task_metrics(task, *pair) for task, pair in scores.items()}
    history = [EpochRecord(epoch=i, loss=loss, lr=0.0, seconds=0.0) for i, loss in ((1, first), (2, last))]
    return StageResult(RunKey(Settings(), "", ""), history, metrics=metrics)


def test_a_stage_that_learned_passes():
    stages.assert_learned(stage({"seg": 3.8}, {"seg": 3.2}, seg=(0.056, 0.037)), "seg")
    losses = {"seg": 3.2, "det": 5.6}, {"seg": 2.9, "det": 5.0}
    stages.assert_learned(stage(*losses, seg=(0.09, 0.037), det=(0.02, 0.0)), "det")


@pytest.mark.parametrize(
    ("task", "result", "word"),
    [
        ("seg", stage({"seg": 3.8}, {"seg": 3.7}, seg=(0.3, 0.04)), "did not fall"),
        ("seg", stage({"seg": 3.8}, {"seg": 3.2}, seg=(0.045, 0.04)), "floor"),
        ("det", stage({"det": 5.6}, {"det": 5.0}, seg=(0.3, 0.04), det=(0.1, 0)), "seg was not replayed"),
        ("det", stage({"seg": 0, "det": 5.6}, {"seg": 0, "det": 5}, seg=(0.3, 0.04), det=(0.1, 0)), "not replayed"),
        ("det", stage({"seg": 1, "det": 5.6}, {"seg": 1, "det": 5}, seg=(0.3, 0.04), det=(0.0, 0)), "det scores"),
        ("cls", stage({"seg": 1, "det": 1, "cls": 3}, {"seg": 1, "det": 1, "cls": 2.4}, cls=(0.5, 0.1)), "guessing"),
    ],
)
def test_a_stage_that_did_not_is_named(task, result, word):
    with pytest.raises(AssertionError, match=word):
        stages.assert_learned(result, task)
