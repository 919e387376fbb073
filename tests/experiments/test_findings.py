"""Sentences that notebooks print about results: hand-made cases whose sentences can be written down."""

import dataclasses

import numpy as np
import pytest
from helpers import ListSet, objects, photo, stage_metrics, task_metrics

from mtl_utils.evaluation import TaskMetrics
from mtl_utils.experiments import findings, tables
from mtl_utils.experiments.breakdown import Breakdown, SizeScores
from mtl_utils.experiments.results import RunSummary
from mtl_utils.experiments.sizes import SizeRow
from mtl_utils.files import UserError
from mtl_utils.forgetting import Drop
from mtl_utils.settings import Settings

NAMES = {"seg": ["background", "cat", "dog", "cow"], "cls": ["church", "horn"]}
PIXELS = [
    [90, 10, 0, 0],  # background that is taken for a cat is no confusion of two objects
    [30, 60, 10, 0],
    [1, 0, 3, 0],
    [0, 0, 0, 0],  # no pixel of a cow
]
IMAGES = [[4, 2], [0, 6]]


def metrics(task: str, per_class: dict, confusion: list | None = None) -> TaskMetrics:
    """Metrics of a task of which classes and confusions matter."""
    return TaskMetrics(task, 0.5, 0.1, per_class, images=2, confusion=confusion)


FINAL = {
    "seg": metrics("seg", {"background": 0.9, "cat": 0.5, "dog": 0.25, "cow": None}, PIXELS),
    "det": metrics("det", {"bus": 0.5}),
    "cls": metrics("cls", {name: 1.0 for name in "abcde"} | {"f": 0.8, "g": 0.5, "h": 0.0}, IMAGES),
}


# ---- one run


def test_what_is_kept_is_said_of_the_larger_baseline():
    drops = [
        Drop("seg", baseline=0.5, final=0.48, floor=0.03),
        Drop("det", baseline=0.2, final=0.16, floor=0.0),
        Drop("cls", baseline=0.1, final=0.1, floor=0.1),
    ]
    assert findings.what_is_kept(drops).splitlines() == [
        "- **mIoU** ends at 0.480, 96.0 % of its baseline 0.500: kept by the 5 % rule.",
        "- **mAP@50** ends at 0.160, 80.0 % of its baseline 0.200: not kept by the 5 % rule.",
        "- **Top-1** ends at 0.100; its baseline is not above the floor.",
    ]


def test_the_class_that_falls_most_is_named(monkeypatch):
    """Cow falls further than cat, but a single image shows it; each task begins at its own stage."""
    after_seg = {"seg": metrics("seg", {"cat": 0.5, "dog": 0.9, "cow": 0.9, "sheep": None})}
    after_det = {
        "seg": metrics("seg", {"cat": 0.2, "dog": 0.2, "cow": 0.2, "sheep": 0.2}),
        "det": metrics("det", {"bus": 0.2}),
    }
    last = {
        "seg": metrics("seg", {"cat": 0.1, "dog": 0.7, "cow": 0.0, "sheep": 0.3}),
        "det": metrics("det", {"bus": 0.2}),
    }
    stages = {"seg": after_seg, "det": after_det, "cls": last}
    monkeypatch.setattr(findings, "images_by_class", lambda dataset: dataset)
    val = {"seg": {"cat": 3, "dog": 7, "cow": 1, "sheep": 9}, "det": {"bus": 5}}
    masks, boxes = findings.largest_class_falls(stages, val).splitlines()
    assert masks.endswith(
        "*cat* falls most, from 0.50 to 0.10 (3 images). "
        "*cow* falls further, from 0.90 to 0.00 (1 image): it alone lowers the mean by 0.300."
    ), "a third of .9: sheep has no value in its own stage"
    assert boxes.endswith("none falls.")


def test_images_are_counted_once_for_each_class_they_show():
    twice = objects([[0, 0, 9, 9], [20, 20, 30, 30], [5, 5, 30, 30]], [1, 1, 2])
    dataset = ListSet("det", [(photo(40, 40), target) for target in (twice, objects([[0, 0, 9, 9]], [2]))])
    names = dataset.classes.names("det")
    assert findings.images_by_class(dataset) == {names[1]: 1, names[2]: 2}


# ---- with and without replay


def run(name: str, *after: dict, seed: int = 0) -> RunSummary:
    """A summary from the metrics after each stage."""
    known = {"name": name, "settings": Settings(seed=seed), "metrics": stage_metrics(list(after))}
    names = ("overrides", "data_fingerprints", "provenance", "minutes", "before", "val_curve", "bootstrap_draws")
    empty = {field: {} for field in names}
    return RunSummary(initial_weights="nothing", source="by hand", device="cpu", stored_bytes=0, **known, **empty)


REPLAY = run("replay", {"seg": 0.5}, {"seg": 0.5, "det": 0.3}, {"seg": 0.48, "det": 0.29, "cls": 0.9})
FORGETS = run("no-replay", {"seg": 0.5}, {"seg": 0.2, "det": 0.3}, {"seg": 0.1, "det": 0.31, "cls": 0.95})


def test_the_largest_fall_of_each_task_and_both_ends():
    assert findings.cost_without_replay([REPLAY, FORGETS]).splitlines() == [
        "- Without replay **mIoU** falls most in stage 2, from 0.500 to 0.200. "
        "It ends at 0.100; with replay it ends at 0.480.",
        "- Without replay **mAP@50** does not fall in any later stage. It ends at 0.310; with replay it ends at 0.290.",
        "- Without replay **Top-1** is learned last, so no later stage can lower it. "
        "It ends at 0.950; with replay it ends at 0.900.",
    ]


def test_a_run_that_is_missing_is_named():
    with pytest.raises(UserError, match="no-replay is missing"):
        findings.cost_without_replay([REPLAY, run("no-replay", {"seg": 0.5}, seed=1)])


def alone(task: str, value: float, seed: int) -> RunSummary:
    """The run of a single task."""
    values = {task: {task: task_metrics(task, value)}}
    return dataclasses.replace(run(f"single-{task}", seed=seed), metrics=values)


def test_each_seed_is_compared_with_the_tasks_alone_of_that_seed():
    """The sequence ends at .48 of .5, .29 of .3 and .9: seed 1's detection alone is much better than that."""
    stages = [{"seg": 0.5}, {"seg": 0.5, "det": 0.3}, {"seg": 0.48, "det": 0.29, "cls": 0.9}]
    runs = []
    for seed, det in enumerate((0.3, 0.4, 0.3)):
        runs += [run("replay", *stages, seed=seed), alone("det", det, seed), alone("cls", 0.9, seed)]
    runs.append(run("replay", *stages, seed=3))  # without the tasks alone it has no verdict
    assert findings.seeds_that_pass(runs) == "- Of the study's 3 seeds of `replay`, 2 pass the rule in all three tasks."


# ---- few stored images


def test_classes_that_keep_less_than_a_tenth_are_lost():
    """Cat (8): 40 of 80 pixels, then 4 and none; dog (12) was never learned, so it cannot be lost."""
    before = [[[0, 0, 500], [8, 8, 40], [8, 0, 40], [12, 0, 40]]]
    few = [[[0, 0, 500], [8, 8, 4], [8, 0, 76], [12, 0, 40]]]
    none = [[[0, 0, 500], [8, 0, 80], [12, 12, 40]]]
    ious = tables.class_ious({"before": before, "few": few, "none": none})
    assert ious.loc["cat"].tolist() == [0.5, 0.05, 0.0] and ious.loc["dog", "none"] == 1.0
    assert ious.loc["person"].isna().all()
    assert findings.lost_classes(ious).splitlines() == ["- `few`: 0 of 2 classes", "- `none`: 1 of 2 classes: cat"]


# ---- class by class


def test_the_highest_and_the_lowest_classes_with_those_of_the_same_value():
    assert findings.class_extremes(FINAL).splitlines() == [
        "- **segmentation**, IoU: highest background 0.90; lowest dog 0.25.",
        "- **detection**, AP@50: highest bus 0.50; lowest bus 0.50.",
        "- **classification**, recall: highest a 1.00, b 1.00, c 1.00 (and 2 more); lowest h 0.00, g 0.50, f 0.80.",
    ]


def test_confusions_are_shares_of_the_true_class_the_largest_first():
    assert findings.largest_confusions(FINAL, NAMES).splitlines() == [
        "- **segmentation**, pixels taken for another class: cat → dog (10 %).",
        "- **segmentation**, pixels taken for background: cat → background (30 %), dog → background (25 %).",
        "- **classification**, images taken for another class: church → horn (33 %).",
    ]


def test_at_most_three_confusions_are_named_and_none_is_said():
    four = [[0, 1, 2, 3], [1, 9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    perfect = [[6, 0], [0, 6]]
    final = {"seg": metrics("seg", {}, perfect), "cls": metrics("cls", {}, four)}
    lines = findings.largest_confusions(final, {"seg": NAMES["seg"][:2], "cls": list("abcd")}).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["none.", "none.", "a → d (50 %), a → c (33 %), a → b (17 %)."]


# ---- detection


def curve(reached: int) -> list[float]:
    """COCO's precision (101,) of a class of which this percentage is found."""
    return [0.5] * (reached + 1) + [0.0] * (100 - reached)


def test_the_recall_that_each_curve_reaches():
    values = [curve(49), curve(50), [-1.0] * 101, [0.0] * 101]
    precision = np.array([values]).transpose(0, 2, 1)  # (1, 101, 4)
    assert findings.recall_reached(precision, ["cat", "dog", "cow", "bus"]) == (
        "In 2 of 3 classes fewer than half of the objects are found at any score. "
        "The curve of *bus* ends first (recall 0.00), that of *dog* last (0.50)."
    )
    assert findings.recall_reached(precision[:, :, 2:3], ["cow"]) == "There is no object."


def breakdown(gains: dict, ap50: dict) -> Breakdown:
    """A breakdown with five errors of each kind."""
    sizes = {name: SizeScores(1, value, value, 0, None) for name, value in ap50.items()}
    return Breakdown(0.4, dict.fromkeys(gains, 5), gains, sizes)


def test_the_error_and_the_size_that_cost_most():
    errors = breakdown({"localisation": 0.1, "missed": 0.2}, {"small": 0.01, "medium": None, "large": 0.5})
    assert findings.costliest_error(errors) == (
        "*missed* costs most: without these 5 errors mAP@50 would be 0.200 higher. "
        "AP@50 is lowest for *small* objects (0.010) and highest for *large* ones (0.500)."
    )


def test_where_no_error_costs_anything_none_is_named():
    errors = breakdown({"localisation": 0.0, "missed": 0.0}, {"small": None, "large": 1.0})
    assert findings.costliest_error(errors) == "No kind of error would raise mAP@50 if it alone were mended."


# ---- the side of the input


def test_the_metric_that_depends_most_on_the_side():
    rows = [
        SizeRow(256, {"seg": 0.5, "det": 0.1, "cls": 0.9}, 10),
        SizeRow(320, {"seg": 0.4, "det": 0.2, "cls": 0.9}, 20),
    ]
    assert findings.size_dependence(rows).splitlines() == [
        "- **mIoU**: lowest 0.400 (side 320), highest 0.500 (side 256); the lowest is 20 % below the highest.",
        "- **mAP@50**: lowest 0.100 (side 256), highest 0.200 (side 320); the lowest is 50 % below the highest.",
        "- **Top-1**: lowest 0.900 (side 256), highest 0.900 (side 256); the lowest is 0 % below the highest.",
        "",
        "**mAP@50** depends most on the side of the input.",
    ]


def test_where_nothing_depends_on_the_side_no_metric_is_named():
    rows = [SizeRow(side, {"seg": 0.5, "det": 0.0, "cls": 0.9}, 10) for side in (256, 320)]
    assert "depends most" not in findings.size_dependence(rows)
