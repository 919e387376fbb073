"""The breakdown of detection's errors: scenes counted by hand, random ones against plain loops over pairs of boxes."""

import json
from pathlib import Path

import pytest
import torch
from helpers import ListSet, det_set, objects, plain_tensors, random_boxes

from mtl_utils.cli import evaluate
from mtl_utils.evaluation import counted_forwards, detection_metrics, predict_and_evaluate
from mtl_utils.experiments.breakdown import KINDS, Breakdown, SizeScores, analyse
from mtl_utils.run import load_model
from mtl_utils.tasks import TASKS

CAT, DOG, TV = 0, 1, 2
A = [0, 0, 40, 40]  # two objects that lie apart
B = [50, 50, 90, 90]
NOWHERE = [50, 0, 90, 40]  # overlaps neither
LOOSE_A = [0, 0, 40, 10]  # IoU with A: a quarter
LOOSE_B = [50, 50, 90, 60]


def found(*rows: tuple[list, int, float]) -> dict:
    """Detections from rows of box XYXY, label and score."""
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([row[1] for row in rows], dtype=torch.int64)
    return {"boxes": boxes, "labels": labels, "scores": torch.tensor([row[2] for row in rows])}


def one_image(folder: Path, *things: tuple, detections: list[tuple]) -> Breakdown:
    """The breakdown of an image; things are box and label, and True for a crowd."""
    crowd = [len(thing) > 2 for thing in things]
    target = objects([thing[0] for thing in things], [thing[1] for thing in things], crowd)
    return analyse(det_set(folder, [target]), [found(*detections)])


def check(breakdown: Breakdown, map50: float, errors: dict, gains: dict) -> None:
    """Compare with expected values; kinds that are not named do not occur, or gain nothing."""
    assert breakdown.errors == {kind: errors.get(kind, 0) for kind in KINDS}
    assert breakdown.map50 == pytest.approx(map50)
    assert breakdown.gains == pytest.approx({kind: gains.get(kind, 0) for kind in KINDS})


# ---- each kind by hand; of COCO's 101 recalls 51 lie at .5 or below


def test_a_loose_box_is_an_error_of_localisation(tmp_path):
    breakdown = one_image(tmp_path, (A, CAT), detections=[(LOOSE_A, CAT, 0.9)])
    check(breakdown, 0, {"localisation": 1}, {"localisation": 1})


def test_a_wrong_name_is_an_error_of_classification(tmp_path):
    breakdown = one_image(tmp_path, (A, CAT), detections=[(A, DOG, 0.9)])
    check(breakdown, 0, {"classification": 1}, {"classification": 1})


def test_a_loose_box_with_a_wrong_name_is_both(tmp_path):
    """It costs its own class precision, and leaves its object missed. There are two classes."""
    breakdown = one_image(tmp_path, (A, CAT), (B, DOG), detections=[(LOOSE_A, DOG, 0.9), (B, DOG, 0.5)])
    check(breakdown, (0 + 1 / 2) / 2, {"both": 1, "missed": 1}, {"both": 1 / 4})


def test_an_object_found_twice_is_a_duplicate(tmp_path):
    rows = [(A, CAT, 0.9), ([0, 0, 40, 36], CAT, 0.8), (B, CAT, 0.7)]
    breakdown = one_image(tmp_path, (A, CAT), (B, CAT), detections=rows)
    average = (51 * 1 + 50 * 2 / 3) / 101
    check(breakdown, average, {"duplicate": 1}, {"duplicate": 1 - average})


def test_a_box_beside_all_objects_is_background(tmp_path):
    rows = [(A, CAT, 0.9), (NOWHERE, CAT, 0.8), (B, CAT, 0.7)]
    breakdown = one_image(tmp_path, (A, CAT), (B, CAT), detections=rows)
    average = (51 * 1 + 50 * 2 / 3) / 101
    check(breakdown, average, {"background": 1}, {"background": 1 - average})


def test_an_object_without_a_detection_is_missed(tmp_path):
    breakdown = one_image(tmp_path, (A, CAT), (B, CAT), detections=[(A, CAT, 0.9)])
    check(breakdown, 51 / 101, {"missed": 1}, {"missed": 50 / 101})


def test_a_class_of_which_nothing_is_left_stays_at_zero(tmp_path):
    breakdown = one_image(tmp_path, (A, CAT), (B, DOG), detections=[(A, CAT, 0.9)])
    check(breakdown, 1 / 2, {"missed": 1}, {})


# ---- which kind, where several fit


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([0, 0, 20, 40], None),  # IoU with A .5: found
        ([0, 0, 19.9, 40], "localisation"),
        ([0, 0, 4, 40], "localisation"),  # .1
        ([0, 0, 3.9, 40], "background"),
    ],
)
def test_the_limits_of_a_right_name(tmp_path, box, kind):
    breakdown = one_image(tmp_path, (A, CAT), detections=[(box, CAT, 0.9)])
    expected = {} if kind is None else {kind: 1}
    assert {key: count for key, count in breakdown.errors.items() if count and key != "missed"} == expected


@pytest.mark.parametrize(
    ("box", "kind"),
    [([0, 0, 20, 40], "classification"), ([0, 0, 19.9, 40], "both"), ([0, 0, 4, 40], "both"),
     ([0, 0, 3.9, 40], "background")],
)  # fmt: skip
def test_the_limits_of_a_wrong_name(tmp_path, box, kind):
    breakdown = one_image(tmp_path, (A, CAT), detections=[(box, DOG, 0.9)])
    assert breakdown.errors[kind] == 1 and sum(breakdown.errors.values()) == 1 + (kind != "classification")


def test_localisation_comes_before_classification(tmp_path):
    breakdown = one_image(tmp_path, (A, CAT), ([0, 0, 40, 12], DOG), detections=[(LOOSE_A, CAT, 0.9)])
    check(breakdown, 0, {"localisation": 1, "missed": 1}, {"localisation": 1 / 2})


def test_classification_comes_before_duplicate(tmp_path):
    rows = [(A, CAT, 0.9), (A, CAT, 0.8)]
    breakdown = one_image(tmp_path, (A, CAT), ([0, 0, 40, 36], DOG), detections=rows)
    check(breakdown, 1 / 2, {"classification": 1}, {"classification": 1 / 2})


def test_half_of_a_found_object_is_a_duplicate(tmp_path):
    breakdown = one_image(tmp_path, (A, CAT), detections=[(A, CAT, 0.9), ([0, 0, 20, 40], CAT, 0.8)])
    check(breakdown, 1, {"duplicate": 1}, {})


def test_localisation_comes_before_both_however_close_the_other_object_is(tmp_path):
    breakdown = one_image(tmp_path, (A, CAT), ([0, 0, 40, 22], DOG), detections=[(LOOSE_A, CAT, 0.9)])
    assert breakdown.errors["localisation"] == 1 and breakdown.errors["both"] == 0


def test_the_object_that_a_box_overlaps_most_is_its_own(tmp_path):
    """The other cat stays missed."""
    breakdown = one_image(tmp_path, ([0, 0, 20, 10], CAT), (A, CAT), detections=[([0, 0, 40, 12], CAT, 0.9)])
    check(breakdown, 0, {"localisation": 1, "missed": 1}, {"localisation": 51 / 101})


# ---- mending


def test_of_two_mended_names_the_better_stays(tmp_path):
    rows = [(A, TV, 0.8), (A, DOG, 0.9), (NOWHERE, CAT, 0.85), (B, CAT, 0.5)]
    breakdown = one_image(tmp_path, (A, CAT), (B, CAT), detections=rows)
    before = 51 * (1 / 2) / 101  # a false positive, then B
    after = (51 * 1 + 50 * 2 / 3) / 101  # A, the false positive, B
    assert breakdown.errors["classification"] == 2
    assert breakdown.map50 == pytest.approx(before)
    assert breakdown.gains["classification"] == pytest.approx(after - before)


def test_a_mended_box_replaces_a_worse_detection_of_its_object(tmp_path):
    rows = [(LOOSE_A, CAT, 0.9), (NOWHERE, CAT, 0.6), (A, CAT, 0.3)]
    breakdown = one_image(tmp_path, (A, CAT), detections=rows)
    check(breakdown, 1 / 3, {"localisation": 1, "background": 1}, {"localisation": 2 / 3, "background": 1 / 6})


def test_a_mended_box_gives_way_to_a_better_detection_of_its_object(tmp_path):
    rows = [(A, CAT, 0.9), (LOOSE_A, CAT, 0.6), (B, CAT, 0.3)]
    breakdown = one_image(tmp_path, (A, CAT), (B, CAT), detections=rows)
    average = (51 * 1 + 50 * 2 / 3) / 101
    check(breakdown, average, {"localisation": 1}, {"localisation": 1 - average})


def test_a_kind_is_mended_alone(tmp_path):
    """Both kinds concern A: the wrong name has the lower score, and mending it finds A all the same."""
    rows = [(LOOSE_A, CAT, 0.9), (A, DOG, 0.8)]
    breakdown = one_image(tmp_path, (A, CAT), detections=rows)
    check(breakdown, 0, {"localisation": 1, "classification": 1}, {"localisation": 1, "classification": 1 / 2})


def test_a_mended_name_takes_a_false_positive_from_the_wrong_class_too(tmp_path):
    rows = [(A, DOG, 0.9), (B, DOG, 0.5)]
    breakdown = one_image(tmp_path, (A, CAT), (B, DOG), detections=rows)
    check(breakdown, (0 + 1 / 2) / 2, {"classification": 1}, {"classification": 1 - 1 / 4})


# ---- crowds, and nothing at all


def test_a_detection_on_a_crowd_of_its_class_is_no_error_and_a_crowd_is_not_missed(tmp_path):
    rows = [([52, 2, 70, 20], CAT, 0.95), (A, CAT, 0.9), ([70, 10, 90, 40], DOG, 0.8)]
    breakdown = one_image(tmp_path, (A, CAT), (NOWHERE, CAT, True), detections=rows)
    check(breakdown, 1, {"background": 1}, {})  # the dog, which is not of the crowd's class
    assert sum(scores.objects for scores in breakdown.sizes.values()) == 1


def test_no_detections_miss_every_object(tmp_path):
    breakdown = one_image(tmp_path, (A, CAT), (B, DOG), detections=[])
    check(breakdown, 0, {"missed": 2}, {})
    assert breakdown.sizes["medium"] == SizeScores(objects=2, ap50=0, ap=0, matched=0, median_iou=None)


def test_a_set_without_objects_has_none_instead_of_numbers(tmp_path):
    breakdown = one_image(tmp_path, detections=[(A, CAT, 0.9)])
    check(breakdown, 0, {"background": 1}, {})
    nothing = {"objects": 0, "AP@50": None, "AP": None, "matched": 0, "median_iou": None}
    stored = json.loads(json.dumps(breakdown.as_dict(), allow_nan=False))
    assert stored["sizes"] == {"small": nothing, "medium": nothing, "large": nothing}


# ---- by size

SMALL = [10, 10, 30, 30]  # 400 square pixels
MEDIUM = [50, 50, 100, 100]  # 2,500
LARGE = [80, 120, 190, 240]  # 13,200


def three_sizes(folder: Path) -> ListSet:
    return det_set(folder, [objects([SMALL, MEDIUM, LARGE], [CAT, CAT, CAT], size=(260, 260))], (260, 260))


def test_each_size_has_its_own_average_precision(tmp_path):
    """IoUs of .82 with the medium object, of .5 to .8 seven of ten limits, and of .52 with the large one, one."""
    rows = [([50, 50, 100, 91], CAT, 0.9), ([80, 120, 190, 182.4], CAT, 0.8)]
    sizes = analyse(three_sizes(tmp_path), [found(*rows)]).sizes
    assert list(sizes) == ["small", "medium", "large"]
    assert [scores.objects for scores in sizes.values()] == [1, 1, 1]
    assert [scores.ap50 for scores in sizes.values()] == pytest.approx([0, 1, 1])
    assert [scores.ap for scores in sizes.values()] == pytest.approx([0, 0.7, 0.1])


def test_a_hundred_detections_of_a_class_count(tmp_path):
    """Eleven false positives of the object's size stand before it."""
    rows = [([200, 10 * i, 250, 10 * i + 50], CAT, 0.9) for i in range(11)]
    sizes = analyse(three_sizes(tmp_path), [found(*rows, (MEDIUM, CAT, 0.5))]).sizes
    assert sizes["medium"].ap50 == pytest.approx(1 / 12)


def test_the_best_box_is_the_surest_of_the_right_class_with_its_centre_in_the_object(tmp_path):
    rows = [
        ([50, 50, 100, 75], CAT, 0.6),  # IoU 1/2
        ([50, 50, 100, 100], CAT, 0.5),  # tighter, but less sure
        ([50, 50, 100, 100], DOG, 0.9),
        ([50, 80, 100, 121], CAT, 0.8),  # its centre is below the object
        ([80, 120, 190, 150], CAT, 0.1),  # IoU 1/4, however unsure
    ]
    sizes = analyse(three_sizes(tmp_path), [found(*rows)]).sizes
    assert [scores.matched for scores in sizes.values()] == [0, 1, 1]
    assert [scores.median_iou for scores in sizes.values()] == [None, pytest.approx(1 / 2), pytest.approx(1 / 4)]


@pytest.mark.parametrize(
    ("centre", "lies_in"),
    [((10, 75), True), ((9, 75), False), ((30, 75), True), ((31, 75), False), ((20, 60), True), ((20, 59), False),
     ((20, 90), True), ((20, 91), False)],
)  # fmt: skip
def test_a_centre_on_the_edge_lies_in_the_object(tmp_path, centre, lies_in):
    x, y = centre
    breakdown = one_image(tmp_path, ([10, 60, 30, 90], CAT), detections=[([x - 6, y - 4, x + 6, y + 4], CAT, 0.9)])
    assert breakdown.sizes["small"].matched == lies_in


def test_the_median_is_over_the_objects_that_have_a_box(tmp_path):
    """Four in two images: IoUs of 1, 1/2 and 1/4, and one that the other image's box does not help."""
    targets = [objects([A, B], [CAT, CAT]), objects([A, B], [CAT, DOG])]
    detections = [found((A, CAT, 0.9), ([50, 50, 90, 70], CAT, 0.8)), found((LOOSE_B, DOG, 0.9))]
    scores = analyse(det_set(tmp_path, targets), detections).sizes["medium"]
    assert (scores.objects, scores.matched, scores.median_iou) == (4, 3, pytest.approx(1 / 2))


def test_an_area_at_a_limit_counts_on_both_sides_as_in_coco(tmp_path):
    target = objects([[0, 0, 32, 32], [100, 100, 196, 196]], [CAT, CAT], size=(200, 200))
    sizes = analyse(det_set(tmp_path, [target], (200, 200)), [found(([0, 0, 32, 32], CAT, 0.9))]).sizes
    assert [scores.objects for scores in sizes.values()] == [1, 2, 1]
    assert [scores.ap50 for scores in sizes.values()] == pytest.approx([1, 51 / 101, 0])


def test_the_area_is_that_of_the_outline_where_the_file_has_it(tmp_path):
    dataset = det_set(tmp_path, [objects([A], [CAT])])
    dataset.coco.objects[0] = dataset.coco.objects[0]._replace(area=1000)
    sizes = analyse(dataset, [found((A, CAT, 0.9))]).sizes
    assert [scores.objects for scores in sizes.values()] == [1, 0, 0]
    assert sizes["small"].ap50 == pytest.approx(1) and sizes["medium"].ap50 is None


# ---- random scenes against plain loops


def iou(a: list, b: list, of_first: bool = False) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    first, second = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return common / (first if of_first else first + second - common)


def plain_ap(rows: list[tuple[float, bool]], objects_of_class: int) -> float:
    """Average precision from (score, right) by its definition: at each recall the best precision from there on."""
    points, hits = [], 0
    for rank, (_, right) in enumerate(sorted(rows, reverse=True), 1):
        hits += right
        points.append((hits / objects_of_class, hits / rank) if objects_of_class else (0, 0))
    heights = []
    for k in range(101):
        heights.append(max((precision for recall, precision in points if recall >= k / 100 - 1e-12), default=0))
    return sum(heights) / 101


def plain_breakdown(targets: list[dict], detections: list[dict]) -> tuple[float, dict, dict]:
    """mAP@50, errors and gains: rows are [image, label, score, box, state, object], the objects [image, label, box]."""
    things, crowds, rows = [], [], []
    for image, (target, guess) in enumerate(zip(targets, detections, strict=True)):
        target = {key: value.tolist() for key, value in target.items()}
        for box, label, crowd in zip(target["boxes"], target["labels"], target["crowd"], strict=True):
            (crowds if crowd else things).append((image, label, box))
        guess = {key: value.tolist() for key, value in guess.items()}
        for box, label, score in zip(guess["boxes"], guess["labels"], guess["scores"], strict=True):
            rows.append({"image": image, "label": label, "score": score, "box": box, "to": None})
    rows.sort(key=lambda row: -row["score"])

    owner = {}  # row of each object that is found
    for row in rows:
        best, row["state"] = 0.5, "wrong"
        for number, (image, label, box) in enumerate(things):
            is_free = (image, label) == (row["image"], row["label"]) and number not in owner
            if is_free and iou(row["box"], box) >= best:
                best, row["state"], row["to"] = iou(row["box"], box), "right", number
        if row["state"] == "right":
            owner[row["to"]] = row
        for image, label, box in crowds:
            if row["state"] == "wrong" and (image, label) == (row["image"], row["label"]):
                row["state"] = "crowd" if iou(row["box"], box, of_first=True) >= 0.5 else "wrong"

    wrong = [row for row in rows if row["state"] == "wrong"]
    for row in wrong:
        same, other = [(0, None)], [(0, None)]
        for number, (image, label, box) in enumerate(things):
            if image == row["image"]:
                (same if label == row["label"] else other).append((iou(row["box"], box), number))
        (near, own), (far, strange) = max(same, key=lambda p: p[0]), max(other, key=lambda p: p[0])
        if 0.1 <= near < 0.5:
            row["state"], row["to"] = "localisation", own
        elif far >= 0.5:
            row["state"], row["to"] = "classification", strange
        elif near >= 0.5:
            row["state"] = "duplicate"
        else:
            row["state"] = "both" if far >= 0.1 else "background"
    covered = {row["to"] for row in rows}
    missed = [number for number in range(len(things)) if number not in covered]

    def mean_ap(kind: str) -> float:
        kept = [dict(row, right=row["state"] == "right") for row in rows if row["state"] not in (kind, "crowd")]
        if kind in ("localisation", "classification"):
            for number in {row["to"] for row in rows if row["state"] == kind}:
                rivals = [row for row in rows if row["state"] in (kind, "right") and row["to"] == number]
                winner = max(rivals, key=lambda row: row["score"])
                kept = [row for row in kept if not (row["right"] and row["to"] == number)]
                kept.append(dict(winner, right=True, label=things[number][1]))
        values = []
        for c in {label for _, label, _ in things}:
            count = sum(label == c for _, label, _ in things)
            count -= sum(things[number][1] == c for number in missed) if kind == "missed" else 0
            values.append(plain_ap([(row["score"], row["right"]) for row in kept if row["label"] == c], count))
        return sum(values) / len(values)

    errors = {kind: sum(row["state"] == kind for row in rows) for kind in KINDS} | {"missed": len(missed)}
    before = mean_ap("nothing")
    return before, errors, {kind: mean_ap(kind) - before for kind in KINDS}


def random_target(count: int) -> dict:
    target = plain_tensors(objects(random_boxes(count, 96, 12).tolist(), torch.randint(0, 3, (count,)).tolist()))
    return target | {"crowd": torch.rand(count) < 0.2}


def random_detections(target: dict) -> dict:
    """Half of the objects found, with a shift, some twice, some as another class, and boxes of pure invention."""
    chosen = torch.rand(len(target["labels"])) < 0.5
    boxes = target["boxes"][chosen].repeat(2, 1)
    boxes = torch.cat([(boxes + 3 * torch.randn(len(boxes), 1)).clamp(0, 96), random_boxes(6, 96)])
    labels = torch.cat([target["labels"][chosen].repeat(2), torch.randint(0, 3, (6,))])
    labels = torch.where(torch.rand(len(labels)) < 0.3, torch.randint(0, 3, labels.shape), labels)
    return {"boxes": boxes, "scores": torch.rand(len(boxes)), "labels": labels}


@pytest.fixture(params=range(8))
def random_set(request, tmp_path) -> tuple[ListSet, list[dict], list[dict]]:
    """A set with crowds, its targets and detections."""
    torch.manual_seed(request.param)
    targets = [random_target(count) for count in (5, 0, 1, 7, 4)]
    return det_set(tmp_path, targets), targets, [random_detections(target) for target in targets]


def test_random_scenes_agree_with_plain_loops(random_set):
    dataset, targets, detections = random_set
    map50, errors, gains = plain_breakdown(targets, detections)
    breakdown = analyse(dataset, detections)
    assert breakdown.errors == errors
    assert breakdown.map50 == pytest.approx(map50, abs=1e-9)
    assert breakdown.gains == pytest.approx(gains, abs=1e-9)
    assert all(gain >= 0 for gain in breakdown.gains.values())
    assert 0.02 < map50 < 0.98 and max(gains.values()) > 0.02, "a case that says something"


def test_random_scenes_hold_every_kind():
    """Over all seeds of the fixture, so that the comparison above leaves no branch out."""
    totals = dict.fromkeys(KINDS, 0)
    for seed in range(8):
        torch.manual_seed(seed)
        targets = [random_target(count) for count in (5, 0, 1, 7, 4)]
        _, errors, _ = plain_breakdown(targets, [random_detections(target) for target in targets])
        totals = {kind: totals[kind] + errors[kind] for kind in KINDS}
    assert min(totals.values()) >= 5, totals


def test_the_baseline_is_the_metric(random_set):
    dataset, _, detections = random_set
    for detection in detections:
        detection["scores"] = (detection["scores"] * 4).round() / 4  # many equal ones, whose order matters
    assert analyse(dataset, detections).map50 == pytest.approx(detection_metrics(dataset, detections).value, abs=1e-6)


def test_the_order_of_the_images_changes_nothing(random_set):
    dataset, _, detections = random_set
    forwards = analyse(dataset, detections).as_dict()
    dataset.ids.reverse(), dataset.samples.reverse()
    assert analyse(dataset, detections[::-1]).as_dict() == forwards


# ---- the marking command


def test_the_json_of_the_marking_command_holds_the_breakdown(trained_run, tiny_root, tmp_path):
    weights, path = trained_run.folder / "stage3_classification.pt", tmp_path / "marks.json"
    words = ["--weights", str(weights), "--data_root", str(tiny_root), "--json", str(path)]
    assert evaluate.evaluate_command(words) == 0
    tasks = json.loads(path.read_text())["tasks"]
    breakdown = tasks["det"]["breakdown"]
    assert breakdown["mAP@50"] == pytest.approx(tasks["det"]["mAP@50"], abs=1e-6)
    assert set(breakdown["gains"]) == set(breakdown["errors"]) == set(KINDS)
    assert sum(scores["objects"] for scores in breakdown["sizes"].values()) == 8, "two in each of four images"
    assert "breakdown" not in tasks["seg"] and "breakdown" not in tasks["cls"]


def test_without_detection_there_is_no_breakdown(trained_run, tiny_root, tmp_path):
    weights, path = trained_run.folder / "stage3_classification.pt", tmp_path / "marks.json"
    words = ["--weights", str(weights), "--data_root", str(tiny_root), "--tasks", "seg,cls", "--json", str(path)]
    assert evaluate.evaluate_command(words) == 0
    assert "breakdown" not in path.read_text()


def test_predictions_and_metrics_come_from_the_same_forwards(trained_run):
    model, _ = load_model(trained_run.folder / "stage3_classification.pt")
    datasets = [trained_run.data(task, "val") for task in TASKS]
    with counted_forwards(model) as sizes:
        evaluation = predict_and_evaluate(model, datasets, 64)
    images = sum(sizes)
    assert images <= sum(len(dataset) for dataset in datasets)
    assert [len(evaluation.predictions[dataset.task]) for dataset in datasets] == [len(d) for d in datasets]
    assert evaluation.metrics["det"].value == detection_metrics(datasets[1], evaluation.predictions["det"]).value
    assert {metrics.forwards for metrics in evaluation.metrics.values()} == {1.0}
