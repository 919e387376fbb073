"""The table over input sizes: every row is an evaluation of its own, and the file holds what the table shows."""

from types import SimpleNamespace

import pytest

from mtl_utils.evaluation import evaluate
from mtl_utils.experiments import sizes
from mtl_utils.experiments.sizes import SizeRow
from mtl_utils.files import UserError
from mtl_utils.tasks import TASKS

ROWS = [
    SizeRow(64, {"seg": 0.1234, "det": 0.5, "cls": 1.0}, 12.4),
    SizeRow(96, {"seg": 0.25, "det": 0.0626, "cls": 0.9}, 30.6),
]


def test_each_row_is_an_evaluation_at_its_size(trained_run):
    datasets = [trained_run.data(task, "val") for task in TASKS]
    model = trained_run.model("cls")
    rows = sizes.measure_sizes(model, datasets, sizes=(32, 96))
    assert [row.size for row in rows] == [32, 96]
    for row in rows:
        expected = evaluate(model, datasets, row.size)
        assert row.values == {task: expected[task].value for task in TASKS}
        assert row.milliseconds > 0


def test_the_median_leaves_the_first_calls_out(monkeypatch):
    readings = iter(n**2 for n in range(100))  # the n-th call takes (2n - 1)^2 - (2n - 2)^2 = 4n - 3 seconds
    monkeypatch.setattr(sizes, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    monkeypatch.setattr(sizes, "predict", lambda model, images, size: None)
    middle = sizes.WARMUP + (sizes.TIMED + 1) // 2
    assert sizes.median_milliseconds(None, None, 64) == 1000 * (4 * middle - 3)


def test_the_file_holds_the_rows(tmp_path):
    sizes.save_sizes(ROWS, tmp_path / "sizes.json")
    assert sizes.read_sizes(tmp_path / "sizes.json") == ROWS
    with pytest.raises(UserError, match=r"sizes\.json.*execute notebook 06 again"):
        sizes.read_sizes(tmp_path / "nowhere" / "sizes.json")


def test_the_table_marks_the_size_that_is_used():
    table = sizes.size_table(ROWS, chosen=96)
    assert table.index.tolist() == ["64", "96 *"]
    assert table.loc["64"].tolist() == ["0.123", "0.500", "1.000", "12"]
    assert table.loc["96 *"].tolist() == ["0.250", "0.063", "0.900", "31"]
    assert table.columns.tolist() == ["mIoU", "mAP@50", "Top-1", "milliseconds"]
