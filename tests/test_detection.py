import math

import pytest
import torch
from helpers import det_set, objects, outputs, plain_tensors, random_boxes
from torchvision.ops import box_iou

from mtl_utils.detection import (
    MAX_DETECTIONS,
    assign_targets,
    box_voting,
    cell_centres,
    centers_in_boxes,
    decode,
    decode_boxes,
    encode,
    encode_boxes,
)
from mtl_utils.evaluation import detection_metrics, read_detections

SURE = 20.0  # a logit whose sigmoid is 1


def owners(boxes: torch.Tensor, height: int = 12, width: int = 12) -> list[int]:
    """Which object each cell of a map learns, -1 for none."""
    cells, found = assign_targets(boxes, cell_centres(height, width))
    result = [-1] * (height * width)
    for cell, owner in zip(cells.tolist(), found.tolist(), strict=True):
        result[cell] = owner
    return result


def raw_map(entries: list, classes: int = 3, height: int = 12, width: int = 12) -> torch.Tensor:
    """A map (1, 5 + C, h, w) on which only the given cells say something: (cell, box, class, confidence logit)."""
    raw = torch.zeros(height * width, 5 + classes)
    raw[:, 4] = -SURE
    centres = cell_centres(height, width)
    for cell, box, label, confidence in entries:
        raw[cell, :4] = encode_boxes(torch.tensor([box]), centres[cell : cell + 1])[0]
        raw[cell, 4] = confidence
        raw[cell, 5 + label] = SURE
    return raw.T.reshape(1, -1, height, width)


def sure_ones(found: dict) -> list[tuple]:
    """(label, rounded box) of the detections above a score of .1."""
    rows = zip(found["labels"].tolist(), found["boxes"].round().tolist(), found["scores"].tolist(), strict=True)
    return [(label, box) for label, box, score in rows if score > 0.1]


# ---------------------------------------------------------------- cells and boxes


def test_cell_centres_go_row_by_row():
    assert cell_centres(2, 3).tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]


def test_decode_boxes_is_the_formula_of_the_docstring():
    raw = torch.tensor([[0.5, -1.0, 0.0, 1.0]])
    cx, cy, w, h = 20 + 4, 12 - 8, 32, 32 * torch.tensor(1.0).exp().item()
    expected = torch.tensor([[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]])
    assert torch.allclose(decode_boxes(raw, torch.tensor([[20.0, 12.0]])), expected)


def test_decoding_undoes_encoding_for_any_box_at_any_cell():
    boxes = random_boxes(500, 512, least=1)
    centres = cell_centres(64, 64)[torch.randperm(64 * 64)[:500]]
    assert torch.allclose(decode_boxes(encode_boxes(boxes, centres), centres), boxes, atol=1e-2)


def test_encoding_undoes_decoding():
    raw, centres = torch.randn(300, 4), cell_centres(20, 15)
    assert torch.allclose(encode_boxes(decode_boxes(raw, centres), centres), raw, atol=1e-3)


def test_wild_predictions_stay_finite():
    assert decode_boxes(torch.full((1, 4), 1000.0), torch.zeros(1, 2)).isfinite().all()


# ---------------------------------------------------------------- which cell learns which object


def test_assign_agrees_with_brute_force():
    for _ in range(20):
        boxes, centres = random_boxes(6, 96), cell_centres(12, 12)
        expected = [-1] * 144
        wanted = []  # for each object its nine nearest cells and the central ones
        for x1, y1, x2, y2 in boxes.tolist():
            gaps = [((x1 + x2) / 2 - x) ** 2 + ((y1 + y2) / 2 - y) ** 2 for x, y in centres.tolist()]
            near = sorted(range(144), key=gaps.__getitem__)[:9]
            reach = 0.2 * (x2 - x1), 0.2 * (y2 - y1)
            far = [abs((x1 + x2) / 2 - x) < reach[0] and abs((y1 + y2) / 2 - y) < reach[1] for x, y in centres.tolist()]
            wanted.append({*near, *(i for i in range(144) if far[i])})
        areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes.tolist()]
        for cell in range(144):
            takers = [m for m in range(6) if cell in wanted[m]]
            expected[cell] = min(takers, key=areas.__getitem__, default=-1)
        assert owners(boxes) == expected


def test_a_lone_object_gets_the_nine_cells_around_its_centre():
    found = owners(torch.tensor([[30.0, 30.0, 90.0, 42.0]]))  # centre (60, 36): cell row 4, column 7
    assert [i for i, owner in enumerate(found) if owner == 0] == [12 * r + c for r in (3, 4, 5) for c in (6, 7, 8)]


def test_objects_apart_get_nine_cells_each():
    found = owners(torch.tensor([[4.0, 4, 28, 28], [60, 60, 92, 92], [4, 60, 24, 90]]))
    assert [found.count(m) for m in range(3)] == [9, 9, 9]


@pytest.mark.parametrize("box", [(0, 0, 4, 4), (92, 0, 96, 6), (0, 40, 2, 60), (93, 93, 96, 96)])
def test_objects_at_the_border_get_nine_cells_too(box):
    assert owners(torch.tensor([box], dtype=torch.float32)).count(0) == 9


def test_a_cell_that_two_objects_want_goes_to_the_smaller():
    large, small = [10.0, 10.0, 80.0, 80.0], [40.0, 40.0, 60.0, 60.0]  # centres (45, 45) and (50, 50)
    for boxes, smaller in (([large, small], 1), ([small, large], 0)):
        found = owners(torch.tensor(boxes))
        assert found.count(smaller) == 9
        assert 1 <= found.count(1 - smaller) <= 8


def test_a_large_object_gets_the_cells_of_its_middle():
    found = owners(torch.tensor([[0.0, 0.0, 96.0, 96.0]]))  # centre (48, 48), a fifth of each side: 19.2 pixels
    assert [i for i, owner in enumerate(found) if owner == 0] == [12 * r + c for r in range(4, 8) for c in range(4, 8)]


def test_a_map_of_fewer_cells_than_nine_is_no_problem():
    assert owners(torch.tensor([[2.0, 2.0, 14.0, 14.0]]), 2, 2) == [0, 0, 0, 0]


def test_without_objects_no_cell_is_assigned():
    cells, found = assign_targets(torch.zeros(0, 4), cell_centres(3, 3))
    assert len(cells) == len(found) == 0


def test_inside_agrees_with_brute_force():
    boxes, centres = random_boxes(5, 96), cell_centres(12, 12)
    expected = [any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in boxes.tolist()) for x, y in centres.tolist()]
    assert centers_in_boxes(centres, boxes).tolist() == expected
    assert 0 < sum(expected) < 144


def test_nothing_is_inside_of_no_boxes():
    assert not centers_in_boxes(cell_centres(4, 4), torch.zeros(0, 4)).any()


# ---------------------------------------------------------------- reading detections off a map


def test_scores_are_confidence_times_class_probability():
    raw = torch.zeros(1, 5 + 2, 1, 1)
    raw[0, 4], raw[0, 5], raw[0, 6] = 1.0, 2.0, -1.0
    found = decode(raw)[0]
    expected = torch.tensor(1.0).sigmoid() * torch.tensor([2.0, -1.0]).softmax(0)
    assert torch.allclose(found["scores"], expected)
    assert found["labels"].tolist() == [0, 1]


def test_of_two_detections_of_one_object_the_surer_gives_the_score_and_both_the_box():
    near = [(60, [30.0, 30.0, 70.0, 70.0], 1, 0.0), (61, [40.0, 30.0, 80.0, 70.0], 1, math.log(3))]
    found = decode(raw_map(near))[0]
    assert sure_ones(found) == [(1, [36, 30, 76, 70])]  # confidences 1/2 and 3/4: (2 * 30 + 3 * 40) / 5 = 36
    assert found["scores"][0].item() == pytest.approx(0.75, abs=1e-4)


def test_voting_agrees_with_brute_force():
    boxes, weights = random_boxes(40, 96), torch.rand(5, 40)
    for n, voted in enumerate(box_voting(boxes[:5], boxes, weights)):
        overlaps = [box_iou(boxes[n : n + 1], b[None]).item() for b in boxes]
        voters = [k for k in range(40) if overlaps[k] > 0.3]
        total = sum(weights[n, k] for k in voters)
        for side in range(4):
            expected = sum(weights[n, k] * boxes[k, side] for k in voters) / total
            assert voted[side].item() == pytest.approx(expected.item(), abs=1e-3)


def test_without_any_weight_a_box_stays():
    boxes = random_boxes(3, 96)
    assert torch.equal(box_voting(boxes, boxes, torch.zeros(3, 3)), boxes)


def test_objects_of_different_classes_may_overlap():
    found = decode(raw_map([(60, [30.0, 30.0, 70.0, 70.0], 1, 2.0), (61, [30.0, 30.0, 70.0, 70.0], 2, 3.0)]))[0]
    assert sorted(sure_ones(found)) == [(1, [30, 30, 70, 70]), (2, [30, 30, 70, 70])]


def test_objects_of_one_class_that_overlap_little_are_both_kept():
    found = decode(raw_map([(60, [10.0, 10.0, 50.0, 50.0], 1, 2.0), (61, [34.0, 10.0, 74.0, 50.0], 1, 3.0)]))[0]
    assert sorted(sure_ones(found)) == [(1, [10, 10, 50, 50]), (1, [34, 10, 74, 50])]  # IoU .25


def test_at_most_a_hundred_detections_best_first():
    raw = torch.randn(2, 5 + 10, 24, 24)
    raw[:, 2:4] = -3.0  # boxes too small to overlap, so that only the limit can take any away
    for found in decode(raw):
        assert len(found["boxes"]) == len(found["labels"]) == len(found["scores"]) == MAX_DETECTIONS == 100
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
        assert found["scores"].min() >= 0 and found["scores"].max() <= 1


def test_images_of_a_batch_do_not_mix():
    raw = torch.randn(3, 5 + 3, 6, 5)
    for together, alone in zip(decode(raw), [decode(r[None])[0] for r in raw], strict=True):
        assert torch.equal(together["boxes"], alone["boxes"]) and torch.equal(together["scores"], alone["scores"])


# ---------------------------------------------------------------- a whole set, there and back


def test_ground_truth_encoded_and_decoded_scores_one(tmp_path):
    targets = [
        objects([[2, 2, 30, 40], [50, 50, 94, 94]], [0, 1]),
        objects([[0, 0, 9, 7], [20, 10, 90, 90], [70, 2, 96, 20]], [2, 2, 0]),  # at the corners, small and large
        objects([], []),
        objects([[10, 10, 60, 60], [30, 32, 50, 52]], [1, 0]),  # one within the other
    ]
    dataset = det_set(tmp_path, targets)
    raw = torch.stack([encode(plain_tensors(t), 3, 12, 12) for t in targets])
    detections = read_detections(outputs(detection=raw), [image for image, _ in dataset.samples], 96)
    metrics = detection_metrics(dataset, detections)
    assert metrics["mAP@50"] == pytest.approx(1.0)
    assert metrics["mAP"] == pytest.approx(1.0)
    assert metrics["per_class"] == pytest.approx({"cat": 1.0, "dog": 1.0, "tv": 1.0})


def test_a_wrong_class_or_a_shifted_box_scores_less(tmp_path):
    dataset = det_set(tmp_path, [objects([[20, 20, 60, 60]], [0])])
    target = {"boxes": torch.tensor([[20.0, 20, 60, 60]]), "labels": torch.tensor([1])}
    wrong_class = decode(encode(target, 3, 12, 12)[None])
    target = {"boxes": torch.tensor([[20.0, 30, 60, 70]]), "labels": torch.tensor([0])}  # IoU 30 / 50
    shifted = decode(encode(target, 3, 12, 12)[None])
    assert detection_metrics(dataset, wrong_class)["mAP@50"] < 0.1
    assert detection_metrics(dataset, shifted)["mAP@50"] == pytest.approx(1.0)
    assert detection_metrics(dataset, shifted)["mAP"] == pytest.approx(0.3, abs=0.05), "right at .5, .55 and .6 only"
