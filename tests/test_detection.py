import math

import numpy as np
import pytest
import torch
from helpers import Fixed, det_set, objects, plain_tensors, random_boxes
from torchvision.ops import box_iou

from mtl_utils import detection
from mtl_utils.detection import (
    BOX,
    CLASSES,
    CONFIDENCE,
    FIRST_CLASS,
    MAX_DETECTIONS,
    VOC_BORDER,
    assign_targets,
    box_voting,
    cell_centres,
    centers_in_boxes,
    connected_components,
    decode,
    decode_boxes,
    encode,
    encode_boxes,
    mask_objects,
)
from mtl_utils.evaluation import detection_metrics, predict
from mtl_utils.model import UnifiedModel, whole_input
from mtl_utils.tasks import IGNORE, VOC_CLASSES, shared_classes

CERTAIN = 20.0  # a logit whose sigmoid is 1


def owners(boxes: torch.Tensor, height: int = 12, width: int = 12) -> list[int]:
    """Which object each cell of a map learns, -1 for none."""
    cells, objects = assign_targets(boxes, cell_centres(height, width))
    owner = [-1] * (height * width)
    for cell, index in zip(cells.tolist(), objects.tolist(), strict=True):
        owner[cell] = index
    return owner


def raw_map(entries: list, classes: int = 3, height: int = 12, width: int = 12) -> torch.Tensor:
    """A map (1, 5 + C, h, w) on which only the given cells predict an object: (cell, box, class, confidence logit)."""
    raw = torch.zeros(height * width, 5 + classes)
    raw[:, 4] = -CERTAIN
    centres = cell_centres(height, width)
    for cell, box, label, confidence in entries:
        raw[cell, :4] = encode_boxes(torch.tensor([box]), centres[cell : cell + 1])[0]
        raw[cell, 4] = confidence
        raw[cell, 5 + label] = CERTAIN
    return raw.T.reshape(1, -1, height, width)


def confident(result: dict) -> list[tuple]:
    """(label, rounded box) of the detections above a score of .1."""
    rows = zip(result["labels"].tolist(), result["boxes"].round().tolist(), result["scores"].tolist(), strict=True)
    return [(label, box) for label, box, score in rows if score > 0.1]


# ---------------------------------------------------------------- cells and boxes


def test_the_channels_of_a_cell_are_box_confidence_and_classes():
    channels = list(range(5 + 3))
    assert channels[BOX] == [0, 1, 2, 3] and channels[CONFIDENCE] == 4 and channels[CLASSES] == [5, 6, 7]
    assert FIRST_CLASS == 5


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


def brute_force_owners(boxes: list, centres: list) -> tuple[list[int], bool]:
    """Which object each cell learns, and whether any object would have had no cell."""
    every = range(len(centres))
    gaps, wanted = [], []  # for each object its distance from all cells; its nine nearest cells and the central ones
    for x1, y1, x2, y2 in boxes:
        middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
        gap = [(middle_x - x) ** 2 + (middle_y - y) ** 2 for x, y in centres]
        reach_x, reach_y = 0.2 * (x2 - x1), 0.2 * (y2 - y1)
        central = [abs(middle_x - x) < reach_x and abs(middle_y - y) < reach_y for x, y in centres]
        gaps.append(gap)
        wanted.append({*sorted(every, key=gap.__getitem__)[:9], *(i for i in every if central[i])})
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    result = []
    for cell in every:
        takers = [m for m in range(len(boxes)) if cell in wanted[m]]
        result.append(min(takers, key=areas.__getitem__, default=-1))
    hidden = [m for m in range(len(boxes)) if m not in result]
    for m in hidden:
        given = [cell for cell in every if result[cell] == -1 or result.count(result[cell]) > 1]
        result[min(given, key=gaps[m].__getitem__)] = m
    return result, bool(hidden)


def test_assign_agrees_with_brute_force():
    cases = []
    for _ in range(20):
        boxes = random_boxes(6, 96)
        expected, any_hidden = brute_force_owners(boxes.tolist(), cell_centres(12, 12).tolist())
        assert owners(boxes) == expected
        cases.append(any_hidden)
    assert set(cases) == {True, False}, "with and without an object that others hide"


def test_a_lone_object_gets_the_nine_cells_around_its_centre():
    result = owners(torch.tensor([[30.0, 30.0, 90.0, 42.0]]))  # centre (60, 36): cell row 4, column 7
    assert [i for i, owner in enumerate(result) if owner == 0] == [12 * r + c for r in (3, 4, 5) for c in (6, 7, 8)]


def test_objects_apart_get_nine_cells_each():
    result = owners(torch.tensor([[4.0, 4, 28, 28], [60, 60, 92, 92], [4, 60, 24, 90]]))
    assert [result.count(m) for m in range(3)] == [9, 9, 9]


@pytest.mark.parametrize("box", [(0, 0, 4, 4), (92, 0, 96, 6), (0, 40, 2, 60), (93, 93, 96, 96)])
def test_objects_at_the_border_get_nine_cells_too(box):
    assert owners(torch.tensor([box], dtype=torch.float32)).count(0) == 9


def test_a_cell_that_two_objects_want_goes_to_the_smaller():
    large, small = [10.0, 10.0, 80.0, 80.0], [40.0, 40.0, 60.0, 60.0]  # centres (45, 45) and (50, 50)
    for boxes, smaller in (([large, small], 1), ([small, large], 0)):
        result = owners(torch.tensor(boxes))
        assert result.count(smaller) == 9
        assert 1 <= result.count(1 - smaller) <= 8


def test_an_object_that_a_smaller_one_covers_gets_the_cell_of_its_middle():
    """Both ask for the nine cells around (52, 52): the smaller has them all, and gives up one of nine."""
    large, small = [40.0, 40.0, 64.0, 64.0], [46.0, 46.0, 58.0, 58.0]
    for boxes, smaller in (([large, small], 1), ([small, large], 0)):
        result = owners(torch.tensor(boxes))
        assert [i for i, owner in enumerate(result) if owner == 1 - smaller] == [12 * 6 + 6]
        assert result.count(smaller) == 8


def test_the_only_cell_of_an_object_is_not_taken_from_it():
    """Three objects around one centre: the smallest had all nine cells, and the others get one of them each."""
    boxes = [[40.0, 40, 64, 64], [42, 42, 62, 62], [46, 46, 58, 58]]
    result = owners(torch.tensor(boxes))
    assert result[12 * 6 + 6] == 0, "the centre"
    beside = [12 * 5 + 6, 12 * 6 + 5, 12 * 6 + 7, 12 * 7 + 6]
    assert result.index(1) in beside and [result.count(m) for m in range(3)] == [1, 1, 7]


def test_a_cell_that_nobody_has_is_as_good_as_a_spare_one():
    """The first object has no cell, and the one nearest to it is free."""
    owner = torch.tensor([1, 1, -1, 2])
    distance = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0] * 4, [0.0] * 4])
    detection.give_every_object_a_cell(owner, distance)
    assert owner.tolist() == [1, 1, 0, 2], "the last one is nearer, and all that its object has"


@pytest.mark.parametrize("count", [2, 15, 60, 144])
def test_however_many_objects_overlap_each_keeps_a_cell(count):
    """All of nearly the same place; 144 are as many as cells."""
    boxes = torch.tensor([[30.0, 30.0, 60.0, 60.0]]) + 4 * torch.randn(count, 4)
    cells, found = assign_targets(boxes, cell_centres(12, 12))
    assert found.unique().tolist() == list(range(count))
    assert len(cells.unique()) == len(cells), "no cell learns two objects"


def test_where_there_are_more_objects_than_cells_every_cell_has_one_of_its_own():
    boxes = torch.tensor([[2.0, 2.0, 14.0, 14.0]]).repeat(6, 1) + torch.randn(6, 4)
    assert len(set(owners(boxes, 2, 2)) - {-1}) == 4


def test_a_large_object_gets_the_cells_of_its_middle():
    result = owners(torch.tensor([[0.0, 0.0, 96.0, 96.0]]))  # centre (48, 48), a fifth of each side: 19.2 pixels
    assert [i for i, owner in enumerate(result) if owner == 0] == [12 * r + c for r in range(4, 8) for c in range(4, 8)]


def test_a_map_of_fewer_cells_than_nine_is_no_problem():
    assert owners(torch.tensor([[2.0, 2.0, 14.0, 14.0]]), 2, 2) == [0, 0, 0, 0]


def test_without_objects_no_cell_is_assigned():
    cells, result = assign_targets(torch.zeros(0, 4), cell_centres(3, 3))
    assert len(cells) == len(result) == 0


def test_centers_in_boxes_agrees_with_brute_force():
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
    result = decode(raw)[0]
    expected = torch.tensor(1.0).sigmoid() * torch.tensor([2.0, -1.0]).softmax(0)
    assert torch.allclose(result["scores"], expected)
    assert result["labels"].tolist() == [0, 1]


def test_of_two_detections_of_one_object_the_surer_gives_the_score_and_both_the_box():
    near = [(60, [30.0, 30.0, 70.0, 70.0], 1, 0.0), (61, [40.0, 30.0, 80.0, 70.0], 1, math.log(3))]
    result = decode(raw_map(near))[0]
    assert confident(result) == [(1, [36, 30, 76, 70])]  # confidences 1/2 and 3/4: (2 * 30 + 3 * 40) / 5 = 36
    assert result["scores"][0].item() == pytest.approx(0.75, abs=1e-4)


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
    result = decode(raw_map([(60, [30.0, 30.0, 70.0, 70.0], 1, 2.0), (61, [30.0, 30.0, 70.0, 70.0], 2, 3.0)]))[0]
    assert sorted(confident(result)) == [(1, [30, 30, 70, 70]), (2, [30, 30, 70, 70])]


def test_objects_of_one_class_that_overlap_little_are_both_kept():
    result = decode(raw_map([(60, [10.0, 10.0, 50.0, 50.0], 1, 2.0), (61, [34.0, 10.0, 74.0, 50.0], 1, 3.0)]))[0]
    assert sorted(confident(result)) == [(1, [10, 10, 50, 50]), (1, [34, 10, 74, 50])]  # IoU .25


def test_at_most_a_hundred_detections_best_first():
    raw = torch.randn(2, 5 + 10, 24, 24)
    raw[:, 2:4] = -3.0  # boxes too small to overlap, so that only the limit can take any away
    for result in decode(raw):
        assert len(result["boxes"]) == len(result["labels"]) == len(result["scores"]) == MAX_DETECTIONS == 100
        assert result["scores"].tolist() == sorted(result["scores"].tolist(), reverse=True)
        assert result["scores"].min() >= 0 and result["scores"].max() <= 1


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
    predictions = predict(Fixed(raw), [image for image, _ in dataset.samples], 96)
    metrics = detection_metrics(dataset, [prediction.detections for prediction in predictions])
    assert metrics.value == pytest.approx(1.0)
    assert metrics.mean_ap == pytest.approx(1.0)
    assert metrics.per_class == pytest.approx({"cat": 1.0, "dog": 1.0, "tv": 1.0})


def test_a_wrong_class_or_a_shifted_box_scores_less(tmp_path):
    dataset = det_set(tmp_path, [objects([[20, 20, 60, 60]], [0])])
    target = {"boxes": torch.tensor([[20.0, 20, 60, 60]]), "labels": torch.tensor([1])}
    wrong_class = decode(encode(target, 3, 12, 12)[None])
    target = {"boxes": torch.tensor([[20.0, 30, 60, 70]]), "labels": torch.tensor([0])}  # IoU 30 / 50
    shifted = decode(encode(target, 3, 12, 12)[None])
    assert detection_metrics(dataset, wrong_class).value < 0.1
    assert detection_metrics(dataset, shifted).value == pytest.approx(1.0)
    assert detection_metrics(dataset, shifted).mean_ap == pytest.approx(0.3, abs=0.05), "right at .5, .55 and .6 only"


# ---------------------------------------------------------------- boxes of the objects that masks show

SHARED_DET = ("person", "motorcycle", "tv", "truck")


def mask_of(*rectangles: tuple[str, tuple[int, int, int, int]]) -> torch.Tensor:
    """A mask (60, 80) with rectangles left, top, right, bottom of the classes named."""
    drawn = torch.zeros(60, 80, dtype=torch.uint8)
    for name, (left, top, right, bottom) in rectangles:
        drawn[top:bottom, left:right] = IGNORE if name == "border" else VOC_CLASSES.index(name)
    return drawn


def object_rows(result: dict) -> set[tuple]:
    """(class name, box) of what is no crowd."""
    good = ~result["crowd"]
    boxes, labels = result["boxes"][good].tolist(), result["labels"][good].tolist()
    return {(SHARED_DET[label], *map(int, box)) for label, box in zip(labels, boxes, strict=True)}


def test_each_object_of_a_shared_class_gets_a_box_that_reaches_into_its_border():
    result = mask_objects(
        mask_of(("person", (10, 10, 20, 30)), ("motorbike", (40, 20, 70, 40)), ("cow", (0, 0, 5, 5))), SHARED_DET
    )
    assert object_rows(result) == {("person", 8, 8, 22, 32), ("motorcycle", 38, 18, 72, 42)}
    assert VOC_BORDER == 2


def test_boxes_end_at_the_image():
    assert object_rows(mask_objects(mask_of(("tvmonitor", (0, 0, 80, 60))), SHARED_DET)) == {("tv", 0, 0, 80, 60)}


def test_objects_that_only_their_border_separates_are_two():
    drawn = mask_of(("person", (10, 10, 50, 40)), ("border", (28, 10, 32, 40)))
    assert object_rows(mask_objects(drawn, SHARED_DET)) == {("person", 8, 8, 30, 42), ("person", 30, 8, 52, 42)}


def test_fragments_are_crowd():
    result = mask_objects(mask_of(("person", (10, 10, 30, 30)), ("person", (40, 10, 44, 14))), SHARED_DET)
    assert sorted(result["crowd"].tolist()) == [False, True]
    assert object_rows(result) == {("person", 8, 8, 32, 32)}


@pytest.mark.parametrize("value", [0, IGNORE, VOC_CLASSES.index("sofa")])
def test_a_mask_without_shared_classes_gives_no_boxes(value):
    result = mask_objects(torch.full((60, 80), value, dtype=torch.uint8), SHARED_DET)
    assert result["boxes"].shape == (0, 4) and len(result["labels"]) == len(result["crowd"]) == 0


def test_shared_classes_have_the_same_names_but_for_two():
    shared = shared_classes(SHARED_DET)
    assert {SHARED_DET[ours]: VOC_CLASSES[theirs] for ours, theirs in shared.items()} == {
        "person": "person",
        "motorcycle": "motorbike",
        "tv": "tvmonitor",
    }


def test_detections_shared_classes_start_as_copies_of_segmentations():
    model, images = UnifiedModel(len(SHARED_DET), 3).eval(), torch.rand(1, 3, 64, 64)
    torch.nn.init.normal_(model.head[2].bias)
    before = model.head[2].weight.clone()
    model.head.copy_segmentation_classes(shared_classes(SHARED_DET))
    grid = model.head(model.features(images, whole_input(images))[0])[0]
    segmentation = grid[5 + len(SHARED_DET) :]
    for ours, theirs in shared_classes(SHARED_DET).items():
        assert torch.allclose(grid[5 + ours], segmentation[theirs], atol=1e-5)
    untouched = [i for i in range(len(before)) if i - 5 not in shared_classes(SHARED_DET)]
    assert torch.equal(model.head[2].weight[untouched], before[untouched])


def test_connected_components_agree_with_a_flood_fill():
    shown = np.random.default_rng(0).random((12, 15)) < 0.45
    left, boxes = {(int(y), int(x)) for y, x in zip(*shown.nonzero(), strict=True)}, set()
    while left:
        grown, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            grown.add((y, x))
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            edge += near
        ys, xs = zip(*grown, strict=True)
        boxes.add((min(xs) - VOC_BORDER, min(ys) - VOC_BORDER, max(xs) + 1 + VOC_BORDER, max(ys) + 1 + VOC_BORDER))
    assert {tuple(box) for box, _ in connected_components(shown)} == boxes


def test_the_recipe_of_detection():
    """Every constant that the committed weights were trained and evaluated with."""
    assert (detection.STRIDE, detection.BASE_SIZE, detection.MAX_LOG_SIZE) == (8, 32.0, 4.0)
    assert (detection.MIN_POSITIVE_CELLS, detection.CENTER_RADIUS) == (9, 0.2)
    assert (detection.PRE_NMS_TOP_K, detection.NMS_IOU, detection.MAX_DETECTIONS) == (1000, 0.3, 100)
    assert (detection.FULL_LOGIT, detection.EMPTY_LOGIT) == (20.0, -20.0)
    assert (detection.VOC_BORDER, detection.MIN_PIECE_SHARE) == (2, 0.25)


def test_boxes_of_several_images_are_decoded_at_once():
    raw, centres = torch.randn(2, 12, 4), cell_centres(3, 4)
    boxes = detection.decode_boxes(raw, centres)
    assert boxes.shape == (2, 12, 4)
    for image in range(2):
        assert torch.equal(boxes[image], detection.decode_boxes(raw[image], centres))


def test_a_cell_at_just_the_limit_is_not_central():
    """A fifth of 80 pixels is two cells: of the cells around the middle only the next ones are nearer than that."""
    centres = cell_centres(16, 16)
    middle = centres[8 * 16 + 8]
    box = torch.cat([middle - 40, middle + 40])[None]
    cells, _ = assign_targets(box, centres)
    assert len(cells) == 9
    wider = torch.cat([middle - 41, middle + 41])[None]
    cells, _ = assign_targets(wider, centres)
    assert len(cells) == 25


def test_weak_detections_vote_too():
    """Two boxes with scores of .3 and .1: their weighted mean, although the weights add up to less than 1."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10]])
    voted = box_voting(boxes[:1], boxes, torch.tensor([[0.3, 0.1]]))
    assert voted[0].tolist() == pytest.approx([1, 0, 11, 10])


def test_a_centre_on_the_side_of_a_box_lies_in_it():
    centres = torch.tensor([[4.0, 4], [12, 4], [4, 12], [12, 12], [20, 4]])
    box = torch.tensor([[4.0, 4, 12, 12]])
    assert centers_in_boxes(centres, box).tolist() == [True, True, True, True, False]


def test_a_piece_of_just_a_quarter_of_the_largest_is_no_fragment():
    shown = np.zeros((20, 40), dtype=bool)
    shown[2:6, 2:6] = True  # 16 pixels
    shown[2:4, 20:22] = True  # 4 of them are a quarter
    assert [piece.is_fragment for piece in connected_components(shown)] == [False, False]
    shown[3, 21] = False
    assert [piece.is_fragment for piece in connected_components(shown)] == [False, True]
