import numpy as np
import pytest
import torch

from mtl_utils.detection import VOC_BORDER, connected_components, mask_objects
from mtl_utils.model import UnifiedModel
from mtl_utils.tasks import IGNORE, VOC_CLASSES, shared_classes

DET = ("person", "motorcycle", "tv", "truck")


def mask(*rectangles: tuple[str, tuple[int, int, int, int]]) -> torch.Tensor:
    """A mask (60, 80) with rectangles left, top, right, bottom of the classes named."""
    drawn = torch.zeros(60, 80, dtype=torch.uint8)
    for name, (left, top, right, bottom) in rectangles:
        drawn[top:bottom, left:right] = IGNORE if name == "border" else VOC_CLASSES.index(name)
    return drawn


def rows(found: dict) -> set[tuple]:
    """(class name, box) of what is no crowd."""
    good = ~found["crowd"]
    boxes, labels = found["boxes"][good].tolist(), found["labels"][good].tolist()
    return {(DET[label], *map(int, box)) for label, box in zip(labels, boxes, strict=True)}


def test_each_object_of_a_shared_class_gets_a_box_that_reaches_into_its_border():
    found = mask_objects(
        mask(("person", (10, 10, 20, 30)), ("motorbike", (40, 20, 70, 40)), ("cow", (0, 0, 5, 5))), DET
    )
    assert rows(found) == {("person", 8, 8, 22, 32), ("motorcycle", 38, 18, 72, 42)}
    assert VOC_BORDER == 2


def test_boxes_end_at_the_image():
    assert rows(mask_objects(mask(("tvmonitor", (0, 0, 80, 60))), DET)) == {("tv", 0, 0, 80, 60)}


def test_objects_that_only_their_border_parts_are_two():
    drawn = mask(("person", (10, 10, 50, 40)), ("border", (28, 10, 32, 40)))
    assert rows(mask_objects(drawn, DET)) == {("person", 8, 8, 30, 42), ("person", 30, 8, 52, 42)}


def test_fragments_are_crowd():
    found = mask_objects(mask(("person", (10, 10, 30, 30)), ("person", (40, 10, 44, 14))), DET)
    assert sorted(found["crowd"].tolist()) == [False, True]
    assert rows(found) == {("person", 8, 8, 32, 32)}


@pytest.mark.parametrize("value", [0, IGNORE, VOC_CLASSES.index("sofa")])
def test_a_mask_without_shared_classes_gives_no_boxes(value):
    found = mask_objects(torch.full((60, 80), value, dtype=torch.uint8), DET)
    assert found["boxes"].shape == (0, 4) and len(found["labels"]) == len(found["crowd"]) == 0


def test_shared_classes_have_the_same_names_but_for_two():
    shared = shared_classes(DET)
    assert {DET[ours]: VOC_CLASSES[theirs] for ours, theirs in shared.items()} == {
        "person": "person",
        "motorcycle": "motorbike",
        "tv": "tvmonitor",
    }


def test_detection_starts_with_what_segmentation_knows_of_the_shared_classes():
    model = UnifiedModel("paper", len(DET), 3).eval()
    torch.nn.init.normal_(model.head[2].bias)
    before = model.head[2].weight.clone()
    model.head.copy_segmentation_classes(shared_classes(DET))
    grid = model.head(model.features(torch.rand(1, 3, 64, 64)))[0]
    segmentation = grid[5 + len(DET) :]
    for ours, theirs in shared_classes(DET).items():
        assert torch.allclose(grid[5 + ours], segmentation[theirs], atol=1e-5)
    untouched = [i for i in range(len(before)) if i - 5 not in shared_classes(DET)]
    assert torch.equal(model.head[2].weight[untouched], before[untouched])


def test_pieces_agree_with_a_flood_fill():
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
