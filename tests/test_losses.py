import math

import pytest
import torch
from helpers import det_set, objects, outputs, plain_tensors, random_boxes
from torchvision.ops import box_iou

from mtl_utils import losses
from mtl_utils.detection import assign_targets, cell_centres, decode, encode
from mtl_utils.evaluation import detection_metrics
from mtl_utils.losses import (
    class_weights,
    classification_loss,
    detection_loss,
    elementwise_iou,
    lovasz_softmax,
    pixel_counts,
    quality_focal_loss,
    segmentation_loss,
)
from mtl_utils.tasks import IGNORE


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


# ---------------------------------------------------------------- segmentation


def as_targets(masks: torch.Tensor) -> list[dict]:
    """Targets of twice the size of masks (B, h, w): every second pixel is theirs, and the others do not count."""
    targets = []
    for mask in masks:
        doubled = torch.randint(0, 21, (2 * mask.shape[0], 2 * mask.shape[1]), dtype=torch.uint8)
        doubled[::2, ::2] = mask
        targets.append({"mask": doubled})
    return targets


def random_segmentation() -> tuple[torch.Tensor, torch.Tensor]:
    masks = torch.randint(0, 21, (2, 5, 4))
    masks[0, :2] = IGNORE
    return torch.randn(2, 21, 5, 4), masks


@pytest.mark.parametrize("weighted", [True, False])
def test_segmentation_loss_agrees_with_plain_python(weighted):
    logits, masks = random_segmentation()
    weights = torch.rand(21) + 0.5 if weighted else None
    loss = total = 0.0
    for b in range(2):
        for y in range(5):
            for x in range(4):
                label = int(masks[b, y, x])
                if label != 255:
                    weight = float(weights[label]) if weighted else 1.0
                    loss -= weight * log_softmax(logits[b, :, y, x].tolist())[label]
                    total += weight
    result = segmentation_loss(outputs(segmentation=logits), as_targets(masks), weights)
    overlap = lovasz_softmax(logits.movedim(1, -1)[masks != IGNORE], masks[masks != IGNORE])
    assert result.item() == pytest.approx(loss / total + overlap.item(), rel=1e-5)


def jaccard_loss(true: set, wrong: set) -> float:
    """1 - IoU of a class whose true pixels are `true` when the pixels of `wrong` are mistaken."""
    return 1 - len(true - wrong) / len(true | wrong)


def test_lovasz_softmax_agrees_with_plain_python():
    logits, labels = torch.randn(12, 5), torch.tensor([0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 4, 4])
    expected = 0.0
    for c in (0, 2, 4):  # the classes that occur
        true = {i for i in range(12) if labels[i] == c}
        error = [abs((i in true) - math.exp(log_softmax(logits[i].tolist())[c])) for i in range(12)]
        order = sorted(range(12), key=error.__getitem__, reverse=True)
        for k, i in enumerate(order):
            expected += error[i] * (jaccard_loss(true, {*order[: k + 1]}) - jaccard_loss(true, {*order[:k]}))
    assert lovasz_softmax(logits, labels).item() == pytest.approx(expected / 3, rel=1e-5)


def test_of_one_hot_predictions_lovasz_softmax_is_one_minus_mean_iou():
    labels, prediction = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 1, 0])
    logits = 100.0 * torch.nn.functional.one_hot(prediction, 3)
    assert lovasz_softmax(logits, labels).item() == pytest.approx(1 - (2 / 4 + 2 / 3 + 0) / 3)


def test_lovasz_softmax_pulls_towards_the_labels():
    logits, labels = torch.randn(30, 4, requires_grad=True), torch.randint(0, 4, (30,))
    before = lovasz_softmax(logits, labels)
    before.backward()
    assert lovasz_softmax(logits - logits.grad, labels) < before


def test_ignored_pixels_do_not_count():
    logits, masks = random_segmentation()
    before = segmentation_loss(outputs(segmentation=logits), as_targets(masks))
    logits[0, :, :2] += torch.randn(21, 2, 4)
    assert torch.equal(before, segmentation_loss(outputs(segmentation=logits), as_targets(masks)))


def test_logits_of_cells_are_enlarged_to_half_of_the_input():
    """8 x 8 pixels to a cell: 4 x 4 compared ones."""
    logits, masks = torch.randn(2, 21, 3, 2), torch.randint(0, 21, (2, 24, 16))
    enlarged = torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    small = segmentation_loss(outputs(segmentation=logits), [{"mask": mask} for mask in masks])
    large = segmentation_loss(outputs(segmentation=enlarged), [{"mask": mask} for mask in masks])
    assert enlarged.shape == (2, 21, 12, 8)
    assert small.item() == pytest.approx(large.item(), rel=1e-5)


def test_every_second_pixel_of_the_masks_is_compared():
    logits, masks = torch.randn(2, 21, 6, 4), torch.randint(0, 21, (2, 12, 8))
    before = segmentation_loss(outputs(segmentation=logits), [{"mask": mask} for mask in masks])
    for row, column in ((0, 1), (1, 0), (1, 1)):
        masks[:, row::2, column::2] = torch.randint(0, 21, (2, 6, 4))
    assert torch.equal(before, segmentation_loss(outputs(segmentation=logits), [{"mask": mask} for mask in masks]))
    masks[0, 2, 2] = (masks[0, 2, 2] + 1) % 21
    assert not torch.equal(before, segmentation_loss(outputs(segmentation=logits), [{"mask": mask} for mask in masks]))


def test_a_single_pixel_of_a_common_class_counts_like_any_other():
    """Its class weighs less than 1, and the weighted mean divides by just that weight."""
    logits = torch.randn(1, 21, 4, 4)
    mask = torch.full((4, 4), IGNORE)
    mask[2, 1] = 3
    weights = torch.full((21,), 0.25)
    probability = logits[0, :, 2, 1].softmax(0)[3].item()
    expected = -math.log(probability) + (1 - probability)  # cross-entropy, and Lovász: the error itself
    for used in (None, weights):
        loss = segmentation_loss(outputs(segmentation=logits), as_targets(mask[None]), used)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_left_out_classes_are_as_if_they_did_not_exist():
    """The last nine of 21 classes are left out: the loss of the first twelve alone, and no gradient for the others."""
    logits = torch.randn(2, 21, 5, 4, requires_grad=True)
    masks, left_out = torch.randint(0, 12, (2, 5, 4)), torch.arange(21) >= 12
    targets = as_targets(masks)
    loss = segmentation_loss(outputs(segmentation=logits), targets, left_out=left_out)
    alone = segmentation_loss(outputs(segmentation=logits[:, :12]), targets)
    assert loss.item() == pytest.approx(alone.item(), rel=1e-6)
    loss.backward()
    assert not logits.grad[:, 12:].any() and logits.grad[:, :12].all()
    of_all_classes = segmentation_loss(outputs(segmentation=logits), targets)
    assert loss < of_all_classes, "a softmax over more classes leaves each of them less"


@pytest.mark.parametrize("left_out", [None, torch.arange(21) > 3])
def test_a_batch_that_is_all_border_gives_zero_and_a_finite_gradient(left_out):
    logits = torch.randn(1, 21, 4, 4, requires_grad=True)
    border = as_targets(torch.full((1, 4, 4), IGNORE))
    loss = segmentation_loss(outputs(segmentation=logits), border, torch.rand(21), left_out)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_class_weights_are_the_inverse_square_root_with_mean_one():
    pixels = torch.tensor([9000, 100, 25, 4])
    weights = class_weights(pixels)
    assert weights[1] / weights[0] == pytest.approx(math.sqrt(9000 / 100), rel=1e-5)
    assert weights[3] / weights[2] == pytest.approx(math.sqrt(25 / 4), rel=1e-5)
    assert (weights * pixels).sum() / pixels.sum() == pytest.approx(1.0, rel=1e-5)
    assert weights.dtype == torch.float32


def test_a_class_without_pixels_has_the_weight_of_a_single_pixel():
    weights = class_weights(torch.tensor([900, 0, 1]))
    assert weights[1] == weights[2]
    assert weights[1] / weights[0] == pytest.approx(30, rel=1e-5)


def test_pixels_are_counted_by_class_without_the_border():
    masks = [torch.randint(0, 21, (5, 7)).byte(), torch.full((3, 3), 20).byte(), torch.full((4, 4), IGNORE).byte()]
    values = [value for mask in masks for value in mask.flatten().tolist()]
    assert pixel_counts(masks).tolist() == [values.count(c) for c in range(21)]
    assert pixel_counts([]).tolist() == [0] * 21


# ---------------------------------------------------------------- detection

TARGET = plain_tensors(objects([[4, 4, 40, 30], [50, 40, 90, 92]], [0, 2]))


def random_map(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 5 + 3, 12, 12)


def loss_of(raw: torch.Tensor, *targets: dict) -> torch.Tensor:
    return detection_loss(outputs(detection=raw), list(targets))


def test_a_perfect_map_costs_nothing_and_any_error_more():
    perfect = encode(TARGET, 3, 12, 12)[None]
    assert 0 <= loss_of(perfect, TARGET) < 1e-3
    cells, _ = assign_targets(TARGET["boxes"], cell_centres(12, 12))
    row, column = divmod(int(cells[0]), 12)
    for channel, change in ((0, 0.5), (1, -0.5), (2, 0.3), (3, 0.3), (4, -40.0), (5, -40.0)):
        wrong = perfect.clone()
        wrong[0, channel, row, column] += change
        assert loss_of(wrong, TARGET) > 1e-2, f"channel {channel}"
    wrong = perfect.clone()
    wrong[0, 4, 0, 11] = 5.0  # sure of an object where there is none
    assert loss_of(wrong, TARGET) > 0.1


def test_detection_loss_agrees_with_the_formula_for_one_object():
    raw, target = random_map(), plain_tensors(objects([[20, 24, 70, 60]], [1]))
    cells = raw[0].flatten(1).T
    centres = [(8 * c + 4, 8 * r + 4) for r in range(12) for c in range(12)]
    positive = sorted(range(144), key=lambda i: (centres[i][0] - 45) ** 2 + (centres[i][1] - 42) ** 2)[:9]
    loss = 0.0
    for i, (x, y) in enumerate(centres):
        tx, ty, tw, th, confidence, *classes = cells[i].tolist()
        quality = 0.0
        if i in positive:
            cx, cy, w, h = x + 8 * tx, y + 8 * ty, 32 * math.exp(tw), 32 * math.exp(th)
            box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            quality, giou = overlap(box, (20, 24, 70, 60))
            loss += 5 * (1 - giou) - log_softmax(classes)[1]
        p = 1 / (1 + math.exp(-confidence))
        cross_entropy = -(quality * math.log(p) + (1 - quality) * math.log(1 - p))
        loss += (quality - p) ** 2 * cross_entropy
    assert loss_of(raw, target).item() == pytest.approx(loss / 9, rel=1e-4)


def overlap(a: tuple, b: tuple) -> tuple[float, float]:
    """IoU and generalised IoU of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = width * height / union
    return iou, iou - (hull - union) / hull


def test_an_image_without_objects_costs_little_and_is_finite():
    empty = plain_tensors(objects([], []))
    raw = random_map().requires_grad_()
    loss = loss_of(raw, empty)
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert raw.grad.isfinite().all()
    assert raw.grad[0, 4].abs().min() > 0, "every confidence learns that there is nothing"
    assert raw.grad[0, [0, 1, 2, 3, 5, 6, 7]].abs().max() == 0
    nothing = encode(empty, 3, 12, 12)[None]
    assert loss_of(nothing, empty) < 1e-3


def test_an_empty_image_in_a_batch_is_divided_by_the_objects_of_all():
    raw, empty = random_map(2), plain_tensors(objects([], []))
    alone = loss_of(raw[:1], TARGET) + loss_of(raw[1:], empty) / len(TARGET["boxes"])
    assert loss_of(raw, TARGET, empty).item() == pytest.approx(alone.item(), rel=1e-5)


def test_a_large_object_weighs_as_much_as_a_small_one():
    """Where all classes are predicted alike, box and class of an object cost the same however many cells learn it."""
    costs = []
    for box in ([0, 0, 96, 96], [40, 40, 56, 56]):
        target = plain_tensors(objects([box], [1]))
        cells, _ = assign_targets(target["boxes"], cell_centres(12, 12))
        raw = encode(target, 3, 12, 12)[None]
        raw[:, 5:] = 0.0  # boxes and confidence are right, all classes are as likely
        costs.append(loss_of(raw, target).item())
        assert (len(cells) == 9) == (box[0] == 40)
    assert costs == pytest.approx([math.log(3)] * 2, rel=1e-3)


def test_the_confidence_of_a_large_object_weighs_as_much_as_that_of_a_small_one():
    """All is right but the confidence of .5 at an object's cells: .5² · ln 2, on 16 cells as on 9."""
    costs, counts = [], []
    for box in ([12, 12, 84, 84], [40, 40, 56, 56]):
        target = plain_tensors(objects([box], [1]))
        cells, _ = assign_targets(target["boxes"], cell_centres(12, 12))
        raw = encode(target, 3, 12, 12)[None]
        raw.flatten(2)[0, 4, cells] = 0.0
        counts.append(len(cells))
        costs.append(loss_of(raw, target).item())
    assert counts == [16, 9]
    assert costs == pytest.approx([0.25 * math.log(2)] * 2, rel=1e-4)


def test_confidence_below_a_crowd_does_not_count():
    crowd = plain_tensors(objects([[4, 4, 40, 30], [50, 40, 90, 92]], [0, 2], [False, True]))
    raw = random_map()
    before = loss_of(raw, crowd)
    raw[0, :, 8, 8] += 3.0  # centre (68, 68): below the crowd
    assert torch.equal(before, loss_of(raw, crowd))
    raw[0, 4, 8, 1] += 3.0  # centre (12, 68): below nothing
    assert loss_of(raw, crowd) > before


def test_an_object_in_front_of_a_crowd_is_learned():
    boxes, labels = [[20, 20, 50, 50], [0, 0, 96, 96]], [1, 1]
    raw = random_map().requires_grad_()
    loss_of(raw, plain_tensors(objects(boxes, labels, [False, True]))).backward()
    assert (raw.grad[0, 4] != 0).sum() == 9


def test_gradient_reaches_all_channels_of_positive_cells_and_only_confidence_elsewhere():
    raw = random_map().requires_grad_()
    loss_of(raw, TARGET).backward()
    gradient = raw.grad[0].flatten(1).T
    positive = torch.zeros(144, dtype=torch.bool)
    positive[assign_targets(TARGET["boxes"], cell_centres(12, 12))[0]] = True
    assert positive.sum() == 18
    assert (gradient[positive][:, :4].abs().sum(1) > 0).all(), "GIoU is flat along a side, never along all four"
    assert (gradient[positive][:, 4:] != 0).all()
    assert (gradient[~positive][:, 4] != 0).all()
    assert (gradient[~positive][:, [0, 1, 2, 3, 5, 6, 7]] == 0).all()


def test_boxes_do_not_learn_from_the_confidence():
    gradients = []
    for confidence in (-2.0, 2.0):
        raw = random_map() * 0 + 0.1
        raw[:, 4] = confidence
        loss_of(raw.requires_grad_(), TARGET).backward()
        gradients.append(raw.grad[:, :4])
    assert torch.equal(*gradients)


def test_elementwise_iou_agrees_with_the_formula():
    a, b = random_boxes(50, 64), random_boxes(50, 64)
    expected = [overlap(x, y)[0] for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert elementwise_iou(a, b).tolist() == pytest.approx(expected, abs=1e-5)
    assert len(elementwise_iou(a[:0], b[:0])) == 0


def test_quality_focal_loss_agrees_with_the_formula():
    logits, quality = torch.randn(40), torch.rand(40)
    p = logits.sigmoid()
    cross_entropy = -(quality * p.log() + (1 - quality) * (1 - p).log())
    assert torch.allclose(quality_focal_loss(logits, quality), (quality - p) ** 2 * cross_entropy)


def test_quality_focal_loss_is_zero_in_slope_at_the_right_confidence():
    quality = torch.tensor([0.2, 0.7])
    logits = quality.logit().requires_grad_()
    quality_focal_loss(logits, quality).sum().backward()
    assert logits.grad.abs().max() < 1e-6


def test_a_map_trained_by_the_loss_decodes_to_the_objects(tmp_path):
    boxes, labels = [[4, 4, 40, 30], [50, 40, 90, 92], [8, 60, 30, 86], [60, 4, 76, 16]], [0, 2, 1, 0]
    dataset = det_set(tmp_path, [objects(boxes, labels)])
    target = plain_tensors(dataset[0][1])
    raw = (0.01 * random_map()).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.1)
    assert detection_metrics(dataset, decode(raw.detach())).value < 0.5
    for _ in range(200):
        optimizer.zero_grad()
        loss_of(raw, target).backward()
        optimizer.step()
    result = decode(raw.detach())[0]
    assert detection_metrics(dataset, [result]).value == pytest.approx(1.0)
    assert box_iou(target["boxes"], result["boxes"][:4]).amax(1).min() > 0.9


# ---------------------------------------------------------------- classification


def test_classification_loss_is_smoothed_cross_entropy():
    logits, labels = torch.randn(6, 5), torch.randint(0, 5, (6,))
    rows = [log_softmax(row) for row in logits.tolist()]
    losses = [-0.9 * row[y] - 0.1 / 5 * sum(row) for row, y in zip(rows, labels.tolist(), strict=True)]
    result = classification_loss(outputs(classification=logits), labels)
    assert result.item() == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_the_recipe_of_the_losses():
    assert (losses.BOX_WEIGHT, losses.SMOOTHING) == (5.0, 0.1)
