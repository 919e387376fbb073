"""Folded answers below figures: hand-made cases whose lines can be written down."""

import numpy as np
import pytest
import torch
from helpers import CLASSES, Fixed, ListSet, objects, photo, stage_metrics, task_metrics
from torchvision import tv_tensors

from mtl_utils.evaluation import TaskMetrics, found_objects
from mtl_utils.experiments import answers
from mtl_utils.experiments.breakdown import Breakdown
from mtl_utils.experiments.results import RunSummary
from mtl_utils.settings import Settings
from mtl_utils.training import EpochRecord


def lines(markdown) -> list[str]:
    """The lines of an answer without what folds them."""
    text = markdown.data
    assert text.startswith("<details><summary>Answer from these results</summary>\n\n") and text.endswith(
        "\n\n</details>"
    )
    return text.split("\n")[2:-2]


def epoch(number: int, loss: dict, val: dict | None = None) -> EpochRecord:
    return EpochRecord(number, loss, lr=0.0, seconds=0.0, val=val)


HISTORY = [
    epoch(1, {"seg": 0.4, "det": 5.0}),
    epoch(2, {"seg": 0.6, "det": 4.0}, {"seg": 0.3, "det": 0.1}),
    epoch(3, {"seg": 0.5, "det": 3.0}, {"seg": 0.45, "det": 0.4}),
    epoch(4, {"seg": 0.5, "det": 2.0}, {"seg": 0.4, "det": 0.3}),
]


def test_a_stage_is_told_by_its_first_highest_and_last_values():
    assert lines(answers.curves(HISTORY, {"seg": task_metrics("seg", 0.5)})) == [
        "- **mIoU**: 0.500 at the end of the stage before; "
        "0.300 in epoch 2, 0.400 in epoch 4; highest in epoch 3 (0.450).",
        "- **mAP@50**: 0.100 in epoch 2, 0.300 in epoch 4; highest in epoch 3 (0.400).",
        "- Loss of **segmentation**: 0.400 in epoch 1, 0.500 in epoch 4; highest in epoch 2 (0.600).",
        "- Loss of **detection**: 5.000 in epoch 1, 2.000 in epoch 4.",
    ]


def test_later_stages_tell_of_earlier_tasks_alone():
    stages = stage_metrics([{"seg": 0.5}, {"seg": 0.4, "det": 0.3}, {"seg": 0.4, "det": 0.2, "cls": 0.9}])
    last = [epoch(1, {}, {"seg": 0.4, "det": 0.2, "cls": 0.9})]
    told = lines(answers.later_stages(stages, {"seg": [], "det": HISTORY, "cls": last}))
    assert told[2] == "- Stage 3, **mAP@50**: 0.300 at the end of the stage before; 0.200 in epoch 1."
    starts = [line.split(" at the end")[0] for line in told]
    assert starts == ["- Stage 2, **mIoU**: 0.500", "- Stage 3, **mIoU**: 0.400", "- Stage 3, **mAP@50**: 0.300"]


def test_a_mask_in_words():
    """A cat of 8 pixels: 4 right, 3 called dog, 1 background; 4 pixels of background are called cat."""
    true, predicted = torch.zeros(4, 8, dtype=torch.uint8), torch.zeros(4, 8, dtype=torch.uint8)
    true[0] = 8
    predicted[0, :4], predicted[0, 4:7], predicted[1, :4] = 8, 12, 8
    predicted_rarely = torch.full((20, 20), 8, dtype=torch.uint8)
    predicted_rarely[0, 0] = 12  # one pixel of 400
    all_cat = {"mask": tv_tensors.Mask(torch.full((20, 20), 8, dtype=torch.uint8))}
    assert answers.mask_words(predicted_rarely, all_cat) == "cat has an IoU of 1.00"
    words = answers.mask_words(predicted, {"mask": tv_tensors.Mask(true)})
    assert words == "cat has an IoU of 0.33 (38 % of its pixels are called dog)"
    assert answers.mask_words(true, {"mask": tv_tensors.Mask(true)}) == "cat has an IoU of 1.00"


def test_boxes_in_words():
    """Two of four objects are found; a second box on the first, a wrong class and a weak one find nothing."""
    target = objects([[0, 0, 20, 20], [30, 0, 50, 20], [0, 30, 20, 50], [60, 60, 90, 90]], [0, 1, 2, 0])
    found = {
        "boxes": torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [30, 0, 50, 18], [0, 30, 20, 50], [60, 60, 90, 90]]),
        "labels": torch.tensor([0, 0, 1, 1, 0]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1]),
    }
    assert found_objects(found, target) == {0: pytest.approx(1.0), 1: pytest.approx(0.9)}
    assert answers.box_words(found, target) == "2 of 4 objects found (IoU of the boxes: 1.00, 0.90), other boxes: 2"
    nothing = {key: value[:0] for key, value in found.items()}
    assert answers.box_words(nothing, target) == "0 of 4 objects found, other boxes: 0"


def test_each_image_that_is_shown_has_a_line():
    logits = torch.tensor([[0.0, 2.0, 1.0]] * 2)
    model = Fixed(classification=logits)
    samples = [(photo(40, 40), {"label": torch.tensor(label)}) for label in (1, 2, 1)]
    told = lines(answers.shown_predictions(model, ListSet("cls", samples), [0, 1], 64))
    names = CLASSES.names("cls")
    first, second = (f"{names[1]} (0.67)", f"{names[2]} (0.24)")
    assert told == [
        f"- Image 1: {first}, then {second}; the label is {names[1]}.",
        f"- Image 2: {first}, then {second}; the label is {names[2]}.",
    ]
    assert (
        f"predicts {first}; the next class is {second}"
        in answers.one_map(Fixed(classification=logits[:1]), photo(40, 40), 64, names).data
    )


def test_the_score_of_one_image_is_told_from_its_tasks_own_stage_on():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    sets = {"cls": ListSet("cls", [(photo(40, 40), {"label": torch.tensor(1)})])}
    models = {"det": Fixed(classification=logits), "cls": Fixed(classification=logits)}
    told = lines(answers.one_image_by_stage(models, sets, 64, index=7))
    assert told == ["- **classification**, score of this image: 0.67 after stage 3."]


def summary(name: str, metrics: dict) -> RunSummary:
    names = ("overrides", "data_fingerprints", "provenance", "minutes", "before", "val_curve", "bootstrap_draws")
    empty = {field: {} for field in names}
    known = {"name": name, "settings": Settings(), "metrics": metrics}
    return RunSummary(initial_weights="nothing", source="by hand", device="cpu", stored_bytes=0, **known, **empty)


def test_the_task_that_keeps_least_is_named():
    ends = {
        "replay": {"seg": 0.49, "det": 0.27, "cls": 0.9},
        "lwf": {"seg": 0.48, "det": 0.3, "cls": 0.9},
    }
    results = []
    for name, end in ends.items():
        results.append(summary(name, stage_metrics([{"seg": 0.5}, {"seg": 0.5, "det": 0.3}, end])))
    singles = []
    for task, value in {"det": 0.3, "cls": 0.9}.items():
        singles.append(summary(f"single-{task}", {task: {task: task_metrics(task, value)}}))
    assert lines(answers.rule_by_run(results + singles, ["replay", "lwf"])) == [
        "- `replay` fails; mAP@50 keeps least (90.0 % of its baseline).",
        "- `lwf` passes; mIoU keeps least (96.0 % of its baseline).",
    ]
    assert lines(answers.rule_by_run(results, ["lwf"])) == ["- `lwf`: no verdict, as a baseline is missing."]


def test_the_rank_correlation_of_images_and_values(monkeypatch):
    """Three classes in the same order have a rank correlation of 1; background has no images and is left out."""
    values = {"background": 0.9, "cat": 0.2, "dog": 0.4, "cow": 0.8, "sheep": None}
    metrics = {
        "seg": TaskMetrics("seg", 0.5, 0.0, values, images=2),
        "det": TaskMetrics("det", 0.5, 0.0, {"bus": 0.3, "car": 0.5}, images=2),
        "cls": TaskMetrics("cls", 0.5, 0.0, {"horn": 0.7, "church": 0.7}, images=2),
    }
    counts = {
        "seg": {"background": 0, "cat": 3, "dog": 5, "cow": 40, "sheep": 9},
        "det": {"bus": 24, "car": 24},
        "cls": {"horn": 1, "church": 2},
    }
    monkeypatch.setattr(answers, "images_by_class", lambda dataset: dataset)
    assert lines(answers.rare_and_low(metrics, counts)) == [
        "- **segmentation**, IoU: from 0.20 to 0.80; rank correlation with a class's number of training images: 1.00.",
        "- **detection**, AP@50: from 0.30 to 0.50; all classes have 24 training images.",
        "- **classification**, recall: from 0.70 to 0.70.",
    ]


def test_curves_that_begin_at_a_precision_of_1_are_counted():
    precision = np.zeros((10, 101, 4))
    precision[0, 0] = [1.0, 0.5, -1.0, 1.0]
    told = lines(answers.first_detections(precision, ["bus", "car", "cat", "dog"]))
    assert told == ["2 of 3 curves begin at a precision of 1. The others: car (0.50)."]


def test_the_costliest_error_need_not_be_the_most_frequent():
    breakdown = Breakdown(0.3, {"class": 9, "missed": 4}, {"class": 0.01, "missed": 0.2}, {})
    assert lines(answers.count_and_cost(breakdown)) == [
        "- *missed* costs most: 4 errors; mAP@50 would be 0.200 higher without them.",
        "- *class* is most frequent: 9 errors; mAP@50 would be 0.010 higher without them.",
    ]
