import json
import shutil

import numpy as np
import pytest
import torch
from helpers import CLASSES, Fixed, ListSet, change_json, det_set, objects, photo, plain_tensors, random_boxes
from torch import nn
from torchvision import tv_tensors

from mtl_utils import evaluation, layout
from mtl_utils.data import MiniSet, find_classes
from mtl_utils.detection import encode
from mtl_utils.evaluation import (
    TaskMetrics,
    boxes_score,
    class_iou,
    class_score,
    classification_metrics,
    confusion_matrix,
    detection_metrics,
    evaluate,
    mask_score,
    predict,
    predict_sets,
    segmentation_metrics,
)
from mtl_utils.files import UserError
from mtl_utils.model import Outputs, UnifiedModel
from mtl_utils.tasks import FOLDERS, IGNORE, TASKS, VOC_CLASSES
from mtl_utils.transforms import Letterbox, collate, to_batch

TRUTH = torch.tensor([[0, 0, 1], [1, 255, 2]], dtype=torch.uint8)
GUESS = torch.tensor([[0, 1, 1], [1, 0, 0]], dtype=torch.uint8)


def seg_set(*masks: torch.Tensor) -> ListSet:
    return ListSet("seg", [(photo(*mask.shape), {"mask": tv_tensors.Mask(mask)}) for mask in masks])


# ---------------------------------------------------------------- mIoU


def test_confusion_matrix_by_hand():
    assert confusion_matrix(TRUTH, GUESS, 3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_miou_by_hand():
    metrics = segmentation_metrics(seg_set(TRUTH), [GUESS])
    names = ("background", "aeroplane", "bicycle")
    assert [metrics.per_class[name] for name in names] == pytest.approx([1 / 3, 2 / 3, 0])
    assert metrics.value == pytest.approx(1 / 3)


def test_floor_is_the_value_of_everything_background():
    # of five pixels two are background: IoU 2/5 for it, 0 for the two classes that are there
    assert segmentation_metrics(seg_set(TRUTH), [GUESS]).floor == pytest.approx((2 / 5 + 0 + 0) / 3)


def test_absent_classes_are_left_out():
    per_class = segmentation_metrics(seg_set(TRUTH), [GUESS]).per_class
    assert [name for name, iou in per_class.items() if iou is None] == list(VOC_CLASSES[3:])


def test_a_class_that_is_only_predicted_has_iou_zero():
    guess = GUESS.clone()
    guess[0, 0] = 20
    metrics = segmentation_metrics(seg_set(TRUTH), [guess])
    assert metrics.per_class["tvmonitor"] == 0
    assert metrics.value == pytest.approx((0 + 2 / 3 + 0 + 0) / 4)


def test_predictions_on_ignored_pixels_do_not_count():
    guess = GUESS.clone()
    guess[1, 1] = 20
    assert segmentation_metrics(seg_set(TRUTH), [guess]) == segmentation_metrics(seg_set(TRUTH), [GUESS])


def test_a_perfect_prediction_scores_one():
    perfect = torch.where(TRUTH == IGNORE, 0, TRUTH)
    assert segmentation_metrics(seg_set(TRUTH), [perfect]).value == 1


def test_miou_is_of_the_set_and_not_the_mean_over_images():
    first, second = torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8)
    first[0, 0], second[:2] = 1, 1
    guesses = [torch.zeros_like(first), second]  # the one small object is missed, the large one found
    whole = segmentation_metrics(seg_set(first, second), guesses).value
    single = [segmentation_metrics(seg_set(m), [g]).value for m, g in zip((first, second), guesses, strict=True)]
    assert whole == pytest.approx((23 / 24 + 8 / 9) / 2)
    assert whole != pytest.approx(sum(single) / 2, abs=0.1)


def brute_force_iou(truths: list, guesses: list) -> list[float | None]:
    """IoU of each class by sets of pixels."""
    result = []
    for c in range(21):
        meant, said = set(), set()
        for image, (truth, guess) in enumerate(zip(truths, guesses, strict=True)):
            for y, x in np.ndindex(*truth.shape):
                if truth[y, x] != 255:
                    meant |= {(image, y, x)} if truth[y, x] == c else set()
                    said |= {(image, y, x)} if guess[y, x] == c else set()
        result.append(len(meant & said) / len(meant | said) if meant | said else None)
    return result


def test_iou_agrees_with_brute_force_on_random_masks():
    values = torch.tensor([0, 0, 0, 1, 2, 7, 15, 20, 255], dtype=torch.uint8)
    truths = [values[torch.randint(0, 9, size)] for size in ((12, 9), (7, 15))]
    guesses = [torch.where(torch.rand(t.shape) < 0.5, t % 21, values[torch.randint(0, 8, t.shape)]) for t in truths]
    metrics = segmentation_metrics(seg_set(*truths), guesses)
    expected = brute_force_iou([t.numpy() for t in truths], [g.numpy() for g in guesses])
    assert list(metrics.per_class.values()) == pytest.approx(expected)
    assert metrics.value == pytest.approx(np.mean([iou for iou in expected if iou is not None]))
    assert sum(map(sum, metrics.confusion)) == sum(int((t != 255).sum()) for t in truths)


def test_class_iou_of_nothing_is_nan():
    assert class_iou(torch.zeros(3, 3, dtype=torch.int64)).isnan().all()


# ---------------------------------------------------------------- mAP


def iou(a, b, of_first: bool = False) -> float:
    """Overlap of two boxes; against a crowd COCO divides by the area of the detection alone."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (area[0] if of_first else sum(area) - common)


def brute_force_ap(targets: list[dict], detections: list[dict], label: int) -> float | None:
    """AP at an overlap of .5 of one class: greedy matching best first, 101 recalls, crowds neither right nor wrong."""
    real, crowds = [], []
    for target in targets:
        boxes = target["boxes"].tolist()
        mine = [i for i in range(len(boxes)) if target["labels"][i] == label]
        real.append([boxes[i] for i in mine if not target["crowd"][i]])
        crowds.append([boxes[i] for i in mine if target["crowd"][i]])
    total = sum(map(len, real))
    if total == 0:
        return None
    rows = [
        (score, image, box)
        for image, found in enumerate(detections)
        for box, score, c in zip(
            found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
        )
        if c == label
    ]
    taken, hits, points = set(), 0, []
    judged = 0
    for _, image, box in sorted(rows, reverse=True):
        free = [(iou(box, b), i) for i, b in enumerate(real[image]) if (image, i) not in taken]
        best, index = max(free, default=(0, -1))
        if best >= 0.5:
            taken.add((image, index))
            hits += 1
        elif any(iou(box, b, of_first=True) >= 0.5 for b in crowds[image]):
            continue
        judged += 1
        points.append((hits / total, hits / judged))
    return sum(max((p for r, p in points if r >= k / 100 - 1e-12), default=0.0) for k in range(101)) / 101


def random_detections(target: dict) -> dict:
    """Objects found with a shift, some twice, some as another class, and boxes of pure invention."""
    boxes = target["boxes"].repeat(2, 1)
    boxes = torch.cat([boxes + 4 * torch.randn(len(boxes), 1), random_boxes(6, 96)]).clamp(0, 96)
    labels = torch.cat([target["labels"].repeat(2), torch.randint(0, 3, (6,))])
    labels = torch.where(torch.rand(len(labels)) < 0.2, torch.randint(0, 3, labels.shape), labels)
    return {"boxes": boxes, "scores": torch.rand(len(boxes)), "labels": labels}


@pytest.mark.parametrize("seed", range(5))
def test_map_agrees_with_brute_force(tmp_path, seed):
    torch.manual_seed(seed)
    targets = [
        plain_tensors(objects(random_boxes(n, 96, 12).tolist(), torch.randint(0, 3, (n,)).tolist()))
        for n in (5, 0, 1, 7, 4)
    ]
    for target in targets:
        target["crowd"] = torch.rand(len(target["labels"])) < 0.2
    detections = [random_detections(target) for target in targets]
    metrics = detection_metrics(det_set(tmp_path, targets), detections)
    expected = [brute_force_ap(targets, detections, label) for label in range(3)]
    assert list(metrics.per_class.values()) == pytest.approx(expected, abs=1e-6)
    assert metrics.value == pytest.approx(np.mean(expected), abs=1e-6)
    assert 0.05 < metrics.value < 0.95, "a case that says something"


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong(tmp_path):
    target = objects([[0, 0, 90, 40], [10, 50, 40, 90]], [0, 0], [True, False])
    boxes = torch.tensor([[5.0, 5, 25, 25], [30, 5, 50, 35], [10, 50, 40, 90]])
    found = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7]), "labels": torch.tensor([0, 0, 0])}
    assert detection_metrics(det_set(tmp_path, [target]), [found]).value == pytest.approx(1.0)


def nothing() -> dict:
    return {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}


def test_no_detections_score_zero(tmp_path):
    dataset = det_set(tmp_path, [objects([[0, 0, 20, 20]], [0]), objects([], [])])
    metrics = detection_metrics(dataset, [nothing(), nothing()])
    assert metrics.value == metrics.mean_ap == metrics.floor == 0


def test_a_class_without_objects_has_no_ap_and_is_not_in_the_mean(tmp_path):
    dataset = det_set(tmp_path, [objects([[0, 0, 20, 20]], [2])])
    found = {"boxes": torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 60]]), "scores": torch.tensor([0.9, 0.8])}
    metrics = detection_metrics(dataset, [found | {"labels": torch.tensor([2, 0])}])
    assert metrics.per_class == {"cat": None, "dog": None, "tv": pytest.approx(1.0)}
    assert metrics.value == pytest.approx(1.0)


def test_a_set_without_any_object_is_no_error(tmp_path):
    assert detection_metrics(det_set(tmp_path, [objects([], [])]), [nothing()]).value == 0


def test_annotation_ids_that_start_at_zero_change_nothing(tmp_path):
    """In pycocotools an object of id 0 counts as never found."""
    dataset = det_set(tmp_path, [objects([[0, 0, 20, 20]], [0])])
    path = next(tmp_path.rglob("*.json"))
    contents = json.loads(path.read_text())
    contents["annotations"][0]["id"] = 0
    path.write_text(json.dumps(contents))
    found = {"boxes": torch.tensor([[0.0, 0, 20, 20]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    assert detection_metrics(dataset, [found]).value == pytest.approx(1.0)


def test_annotations_need_neither_area_nor_crowd_flag(tmp_path):
    dataset = det_set(tmp_path, [objects([[0, 0, 20, 20]], [0])])
    path = next(tmp_path.rglob("*.json"))
    contents = json.loads(path.read_text())
    for annotation in contents["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    path.write_text(json.dumps(contents))
    found = {"boxes": torch.tensor([[0.0, 0, 20, 20]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    assert detection_metrics(dataset, [found]).value == pytest.approx(1.0)


# ---------------------------------------------------------------- Top-1


def test_top1_by_hand():
    labels = [0, 0, 0, 2]
    dataset = ListSet("cls", [(photo(8, 8), {"label": torch.tensor(label)}) for label in labels])
    guesses = [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.9, 0.0, 0.1], [0.3, 0.3, 0.4]]
    metrics = classification_metrics(dataset, [torch.tensor(g) for g in guesses])
    assert metrics.value == 3 / 4
    assert metrics.floor == 3 / 4, "always n1"
    assert metrics.per_class == {"n1": pytest.approx(2 / 3), "n2": None, "n3": 1.0}
    assert metrics.confusion == [[2, 1, 0], [0, 0, 0], [0, 0, 1]]


# ---------------------------------------------------------------- back to the image's own pixels

SHAPES = [(32, 48), (48, 32), (48, 48), (64, 96), (96, 64)]  # at 96 pixels: a scale of 2 or of 1


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_masks_undo_the_letterbox(height, width):
    own = torch.zeros(height, width, dtype=torch.uint8)
    own[: height // 2, 4:], own[20:, :10] = 5, 11
    sample = (photo(height, width), {"mask": tv_tensors.Mask(own)})
    masks = collate([sample], Letterbox(96), "seg").targets[0]["mask"].long()[None]
    masks[masks == IGNORE] = 20  # if any padding came back, it would show as this class
    logits = nn.functional.one_hot(masks, 21).permute(0, 3, 1, 2).float()  # as many cells as pixels
    found = predict(Fixed(segmentation=logits), [sample[0]], 96)[0].mask
    assert found.dtype == torch.uint8
    assert torch.equal(found, own)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_detections_undo_the_letterbox(height, width):
    sample = photo(height, width), objects([[2, 4, 20, 30], [22, 6, 30, 12]], [1, 0], size=(height, width))
    target = collate([sample], Letterbox(96), "det").targets[0]
    found = predict(Fixed(encode(target, 3, 12, 12)[None]), [sample[0]], 96)[0].detections
    rows = sorted(zip(found["labels"][:2].tolist(), found["boxes"][:2].tolist(), strict=True))
    assert rows == [(0, pytest.approx([22, 6, 30, 12], abs=1e-3)), (1, pytest.approx([2, 4, 20, 30], abs=1e-3))]


def test_detections_stay_inside_the_image():
    raw = 2 * torch.randn(2, 5 + 3, 12, 12)
    images = [photo(40, 90), photo(90, 40)]
    for prediction, image in zip(predict(Fixed(raw), images, 96), images, strict=True):
        found, (height, width) = prediction.detections, image.shape[-2:]
        assert found["boxes"].min() == 0
        assert found["boxes"][:, 2].max() == width and found["boxes"][:, 3].max() == height


def test_odd_sizes_come_back_in_their_own_size():
    images = [photo(37, 91), photo(91, 37), photo(1, 90)]
    predictions = predict(Fixed(segmentation=torch.rand(3, 21, 8, 8)), images, 64)
    assert [prediction.mask.shape for prediction in predictions] == [image.shape[-2:] for image in images]


def test_probabilities_are_the_softmax_of_the_classes_logits():
    logits = torch.randn(2, 3)
    first, second = predict(Fixed(classification=logits), [photo(40, 50), photo(50, 40)], 64)
    assert torch.allclose(first.probabilities, logits[0].softmax(0))
    assert torch.allclose(second.probabilities, logits[1].softmax(0))
    assert second.of("cls") is second.probabilities
    assert second.of("seg") is second.mask and second.of("det") is second.detections


def test_the_model_is_told_where_in_its_input_the_picture_is():
    asked = []
    model = Fixed()
    model.register_forward_hook(lambda _, inputs, __: asked.append(inputs))
    images = [photo(32, 64), photo(64, 48)]
    predict(model, images, 64)
    ((batch, content),) = asked
    assert content.tolist() == [[0, 0, 64, 32], [0, 0, 48, 64]]
    assert torch.equal(batch, to_batch(images, 64)[0])
    assert (batch[0, :, 32:] == 127 / 255).all(), "the grey padding"


# ---------------------------------------------------------------- the whole way


class Trivial(nn.Module):
    """A model that does not look: all background, boxes of no size, always class `favourite`."""

    def __init__(self, num_det: int, num_cls: int, favourite: int):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))
        self.num_det, self.num_cls, self.favourite = num_det, num_cls, favourite

    def forward(self, images, content):
        batch, _, height, width = images.shape
        detection = torch.full((batch, 5 + self.num_det, height // 8, width // 8), -10.0)
        segmentation = torch.zeros(batch, 21, height // 8, width // 8)
        segmentation[:, 0] = 1
        classification = torch.zeros(batch, self.num_cls)
        classification[:, self.favourite] = 1
        return Outputs(detection, segmentation, classification)


@pytest.mark.parametrize("task", TASKS)
def test_a_trivial_model_scores_the_floor(tiny_root, task):
    dataset = MiniSet(task, tiny_root, "val", find_classes(tiny_root))
    metrics = evaluate(Trivial(10, 10, favourite=3), [dataset], 64)[task]
    assert metrics.value == pytest.approx(metrics.floor)
    assert metrics.images == len(dataset)
    assert (metrics.floor > 0) == (task != "det")
    stored = json.loads(json.dumps(metrics.as_dict(), allow_nan=False))
    assert TaskMetrics.from_dict(task, stored) == metrics


def test_masks_without_a_labelled_pixel_give_no_number(tmp_path):
    nothing = tv_tensors.Mask(torch.full((4, 5), IGNORE, dtype=torch.uint8))
    dataset = ListSet("seg", [(photo(4, 5), {"mask": nothing})], CLASSES, tmp_path)
    with pytest.raises(UserError, match=r"mini_voc_seg.val has no labelled pixel: no mIoU"):
        segmentation_metrics(dataset, [torch.zeros(4, 5, dtype=torch.uint8)])


def test_a_model_that_knows_the_masks_scores_almost_one(tiny_root):
    dataset = MiniSet("seg", tiny_root, "train", find_classes(tiny_root))
    assert evaluate(Knowing([dataset], 192), [dataset], 192)["seg"].value > 0.97


def test_two_evaluations_are_equal(tiny_root):
    model, datasets = UnifiedModel(10, 10), val_sets(tiny_root)
    assert evaluate(model, datasets, 64) == evaluate(model, datasets, 64)


def test_evaluation_leaves_the_weights_and_statistics(tiny_root):
    model = UnifiedModel(10, 10).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluate(model, val_sets(tiny_root), 64)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_predictions_do_not_depend_on_the_batch(tiny_root, monkeypatch):
    model = UnifiedModel(10, 3).eval()
    dataset = ListSet("cls", [(photo(40, 50), {"label": torch.tensor(0)}) for _ in range(5)], CLASSES)
    together = torch.stack(predict_sets(model, [dataset], 64)["cls"])
    monkeypatch.setattr("mtl_utils.evaluation.EVAL_BATCH", 2)
    assert torch.allclose(together, torch.stack(predict_sets(model, [dataset], 64)["cls"]), atol=1e-5)


# ---------------------------------------------------------------- one forward a photograph


class Knowing(nn.Module):
    """A model that recognises letterboxed photographs and knows all labels of theirs; `shown` counts the images."""

    def __init__(self, datasets: list[MiniSet], size: int):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))
        self.shown = 0
        self.cells = size // 8
        self.known = {}  # the labels of a photograph by task
        for dataset in datasets:
            batch = collate(dataset.samples, Letterbox(size), dataset.task)
            for image, target in zip(batch.images, batch.targets, strict=True):
                self.known.setdefault(image.numpy().tobytes(), {})[dataset.task] = target

    def forward(self, images, content):
        self.shown += len(images)
        rows = [self.answer(image) for image in images]
        return Outputs(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def answer(self, image):
        """The outputs that decode to the labels of one photograph."""
        labels, size = self.known[image.numpy().tobytes()], image.shape[-1]
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        mask = labels["seg"]["mask"].long() if "seg" in labels else torch.zeros(size, size, dtype=torch.int64)
        segmentation = nn.functional.one_hot(mask.where(mask != IGNORE, 0), 21).permute(2, 0, 1).float()
        classification = nn.functional.one_hot(labels.get("cls", torch.tensor(0)), 10).float()
        return encode(labels.get("det", nothing), 10, self.cells, self.cells), segmentation, classification


@pytest.fixture
def shared_root(tiny_root, tmp_path):
    """A root in which the same four val photographs carry masks, boxes and classes, in each set in another order."""
    root = shutil.copytree(tiny_root, tmp_path / "shared")
    photographs = sorted((root / FOLDERS["seg"] / "val").glob("*.jpg"))
    folders = sorted((root / FOLDERS["cls"] / "val").iterdir())
    for folder in folders:
        shutil.rmtree(folder)
    classes = [folders[number] for number in (7, 2, 9, 4)]
    for number, (path, folder) in enumerate(zip(photographs, classes, strict=True)):
        folder.mkdir()
        shutil.copy(path, folder / "same.JPEG")
        shutil.copy(path, root / FOLDERS["det"] / "val" / f"{103 - number:012d}.jpg")  # from the last to the first

    def annotate(contents):
        contents["images"] = sorted(contents["images"], key=lambda image: image["id"])
        box = {"bbox": [8, 8, 40, 36], "area": 40 * 36, "iscrowd": 0}
        numbers = (1, 17, 18, 62)  # a category of its own for each photograph
        contents["annotations"] = [
            box | {"id": 1 + i, "image_id": 100 + i, "category_id": number} for i, number in enumerate(numbers)
        ]

    change_json(root, annotate, "val")
    return root


def val_sets(root) -> list[MiniSet]:
    classes = find_classes(root)
    return [MiniSet(task, root, "val", classes) for task in TASKS]


def test_photographs_with_labels_for_all_tasks_cost_one_forward_each(shared_root):
    datasets = val_sets(shared_root)
    model = Knowing(datasets, 96)
    together = evaluate(model, datasets, 96)
    assert model.shown == 4
    assert [metrics.forwards for metrics in together.values()] == [1, 1, 1]
    assert [metrics.images for metrics in together.values()] == [4, 4, 4]
    alone = {}
    for dataset in datasets:
        alone |= evaluate(model, [dataset], 96)
    assert model.shown == 4 + 3 * 4
    assert together == alone and list(together) == list(TASKS)
    assert together["seg"].value > 0.9 and together["det"].value > 0.99 and together["cls"].value == 1


def test_photographs_of_their_own_are_put_through_too(shared_root, tiny_root):
    """One photograph of detection is no longer that of the other tasks."""
    own = "mini_coco_det/val/000000000100.jpg"
    with_other_size = tiny_root / "mini_coco_det" / "train" / "000000000101.jpg"
    shutil.copy(with_other_size, shared_root / own)
    datasets = val_sets(shared_root)
    model = Knowing(datasets, 96)
    metrics = evaluate(model, datasets, 96)
    assert model.shown == 5 and metrics["det"].forwards == 1
    assert metrics["seg"].value > 0.9 and metrics["det"].value > 0.99 and metrics["cls"].value == 1


def test_sets_without_a_photograph_in_common_cost_one_forward_an_image(tiny_root):
    datasets = val_sets(tiny_root)
    model = Knowing(datasets, 96)
    metrics = evaluate(model, datasets, 96)
    assert model.shown == 4 + 4 + 10
    assert metrics["cls"].value == 1 and metrics["cls"].forwards == 1


def test_a_photograph_that_stands_twice_in_a_set_is_predicted_once_for_both():
    twice, other = photo(40, 50), photo(40, 50)
    labels = [{"label": torch.tensor(label)} for label in (0, 1, 0)]
    dataset = ListSet("cls", list(zip((twice, other, twice), labels, strict=True)))
    model = UnifiedModel(3, 3)
    nn.init.normal_(model.head.last.weight)
    shown = []
    model.register_forward_hook(lambda _, inputs, __: shown.append(len(inputs[0])))
    first, second, third = predict_sets(model, [dataset], 64)["cls"]
    assert shown == [2]
    assert torch.equal(first, third) and not torch.equal(first, second)


def test_photographs_of_the_same_bytes_and_different_shapes_are_two():
    pixels = torch.zeros(3, 24, 48, dtype=torch.uint8)
    shapes = [pixels, pixels.reshape(3, 48, 24)]
    samples = [(tv_tensors.Image(image), {"label": torch.tensor(0)}) for image in shapes]
    assert len(evaluation.distinct_photographs([ListSet("cls", samples)])) == 2


def test_forwards_are_counted_and_not_assumed(tiny_root, monkeypatch):
    """A prediction that shows the network every image twice is found out."""

    def predict_twice(model, images, size):
        predict(model, images, size)
        return predict(model, images, size)

    datasets = val_sets(tiny_root)
    monkeypatch.setattr(evaluation, "predict", predict_twice)
    model = Trivial(10, 10, 0)
    assert evaluate(model, datasets, 64)["seg"].forwards == 2
    assert not model._forward_hooks, "the counter is taken off again"


# ---------------------------------------------------------------- how good one image's prediction is


def test_score_of_a_mask_by_hand():
    assert mask_score(GUESS, {"mask": tv_tensors.Mask(TRUTH)}) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)


def test_score_of_boxes_by_hand():
    """Two of four objects found; found twice counts once, and what is too unsure, misnamed or beside it counts not."""
    target = objects([[0, 0, 20, 20], [30, 0, 50, 20], [0, 30, 20, 50], [60, 60, 90, 90]], [0, 1, 2, 0])
    found = {
        "boxes": torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [30, 0, 50, 18], [0, 30, 20, 50], [60, 60, 90, 90]]),
        "labels": torch.tensor([0, 0, 1, 1, 0]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1]),
    }
    assert boxes_score(found, target) == pytest.approx(2 / (4 + 4 - 2))
    nothing = {key: value[:0] for key, value in found.items()}
    assert boxes_score(nothing, target) == 0
    assert boxes_score(nothing, objects([], [])) == 1


def test_a_crowd_is_no_object_that_could_be_missed():
    found = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    assert boxes_score(found, objects([[0, 0, 20, 20]], [0], [True])) == 1


def test_score_of_a_class_is_its_probability():
    assert class_score(torch.tensor([0.2, 0.7, 0.1]), {"label": torch.tensor(1)}) == pytest.approx(0.7)


def test_the_constants_of_evaluation():
    """The stand-in for "no detection" lies outside every image and is the least certain of all."""
    left, top, width, height, score = evaluation.NO_DETECTION
    assert (left, top, width, height, score) == (-2, -2, 1, 1, 0)
    assert (evaluation.EVAL_BATCH, evaluation.SHOWN, evaluation.MATCH_IOU) == (10, 0.3, 0.5)


def test_a_score_and_an_overlap_of_just_the_limit_count():
    target = objects([[0, 0, 10, 20]], [0])
    found = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "scores": torch.tensor([0.3]), "labels": torch.tensor([0])}
    assert boxes_score(found, target) == 1, "an overlap of .5 with a score of .3"
    weaker = found | {"scores": torch.tensor([0.29])}
    assert boxes_score(weaker, target) == 0


def test_one_detection_finds_one_object():
    target = objects([[0, 0, 20, 20], [0, 0, 20, 22]], [0, 0])
    found = {"boxes": torch.tensor([[0.0, 0, 20, 21]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    assert boxes_score(found, target) == 1 / 2


def test_a_set_without_objects_has_no_mean_ap_either(tmp_path):
    metrics = detection_metrics(det_set(tmp_path, [objects([], [])]), [nothing()])
    assert (metrics.value, metrics.mean_ap, metrics.floor) == (0, 0, 0)


def test_the_annotations_are_read_once_however_often_a_set_is_evaluated(tiny_root, monkeypatch):
    opened = []
    read_coco = layout.read_coco
    monkeypatch.setattr(layout, "read_coco", lambda path: opened.append(path.name) or read_coco(path))
    classes = find_classes(tiny_root)
    opened.clear()
    dataset = MiniSet("det", tiny_root, "val", classes)
    for _ in range(3):
        detection_metrics(dataset, [nothing()] * len(dataset))
    assert opened == ["mini_instances_val2017.json"]
