import pytest
import torch
from helpers import objects, photo
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from mtl_utils import transforms
from mtl_utils.tasks import IGNORE
from mtl_utils.transforms import (
    GREY,
    MIN_BOX,
    SCALES,
    AxisWindow,
    Letterbox,
    RandomWindow,
    axis_window,
    collate,
    strong_augmentation,
    to_batch,
    to_device,
    weak_augmentation,
)

BOX = (20, 12, 56, 40)  # of the green rectangle in the pictures below: left, top, right, bottom
SEEDS = range(40)


def picture(height: int = 64, width: int = 96) -> tv_tensors.Image:
    """A green rectangle on magenta: no change of brightness, contrast or saturation makes one look like the other."""
    image = torch.tensor([255, 0, 255], dtype=torch.uint8).view(3, 1, 1).repeat(1, height, width)
    image[:, BOX[1] : BOX[3], BOX[0] : BOX[2]] = torch.tensor([0, 255, 0], dtype=torch.uint8).view(3, 1, 1)
    return tv_tensors.Image(image)


def mask_of(image: tv_tensors.Image) -> tv_tensors.Mask:
    mask = torch.zeros(image.shape[-2:], dtype=torch.uint8)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 5
    return tv_tensors.Mask(mask)


def green(image: Tensor) -> Tensor:
    """(H, W) bool: where the rectangle is."""
    red, green, _ = image.as_subclass(Tensor).int()
    return green > red + 25


def extent(pixels: Tensor) -> list[float]:
    """The box XYXY around the true pixels."""
    rows, columns = pixels.any(1).nonzero().flatten(), pixels.any(0).nonzero().flatten()
    return [float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1]


def weak(task: str, size: int) -> torch.nn.Module:
    return weak_augmentation(size)


def letterbox(task: str, size: int) -> torch.nn.Module:
    return Letterbox(size)


TRANSFORMS = [strong_augmentation, weak, letterbox]  # all with the same arguments


def labels_of(task: str, height: int, width: int) -> dict:
    """A target of the task for a picture of the size."""
    if task == "seg":
        return {"mask": tv_tensors.Mask(torch.zeros(height, width).byte())}
    if task == "det":
        return objects([[1, 1, 30, 30]], [0], size=(height, width))
    return {"label": torch.tensor(4)}


@pytest.mark.parametrize("make", TRANSFORMS)
def test_boxes_move_with_the_image(make):
    compared = 0
    for seed in SEEDS:
        torch.manual_seed(seed)
        image, target = make("det", 96)(picture(), objects([BOX], [3], size=(64, 96)))
        for box in target["boxes"].tolist():
            assert box == pytest.approx(extent(green(image)), abs=2), f"seed {seed}"
            compared += 1
    assert compared >= 30, "the rectangle is rarely lost"


@pytest.mark.parametrize("make", TRANSFORMS)
def test_masks_move_with_the_image(make):
    for seed in SEEDS:
        torch.manual_seed(seed)
        before = picture()
        image, target = make("seg", 96)(before, {"mask": mask_of(before)})
        mask = target["mask"].as_subclass(Tensor)
        assert set(mask.unique().tolist()) <= {0, 5, IGNORE}, "no value in between"
        if (mask == 5).any():
            assert extent(mask == 5) == pytest.approx(extent(green(image)), abs=2), f"seed {seed}"
            assert ((mask == 5) != green(image)).float().mean() < 0.05


@pytest.mark.parametrize("task", ["seg", "det"])
def test_strong_augmentation_varies(task):
    target = {"mask": mask_of(picture())} if task == "seg" else objects([BOX], [0], size=(64, 96))
    images = {tuple(strong_augmentation(task, 96)(picture(), target)[0].flatten().tolist()) for _ in range(5)}
    assert len(images) == 5


def test_strong_augmentation_flips_scales_and_shifts():
    boxes = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        boxes += strong_augmentation("det", 96)(picture(), objects([BOX], [0], size=(64, 96)))[1]["boxes"].tolist()
    widths = [right - left for left, _, right, _ in boxes]
    assert max(widths) > 44 and min(widths) < 28, "36 px at a scale of 1"
    lefts = [left for left, *_ in boxes]
    assert max(lefts) - min(lefts) > 30


def test_samples_are_not_changed_by_transforming_them():
    image, target = picture(), objects([BOX], [0], size=(64, 96))
    before = image.clone(), target["boxes"].clone()
    collate([(image, target)], strong_augmentation("det", 64), "det")
    assert torch.equal(before[0], image) and torch.equal(before[1], target["boxes"])


# ---------------------------------------------------------------- padding and sizes


@pytest.mark.parametrize(("height", "width"), [(48, 96), (96, 48), (96, 96), (50, 75)])
def test_letterbox_pads_right_and_below_with_grey_and_ignore(height, width):
    image, target = Letterbox(96)(photo(height, width), {"mask": tv_tensors.Mask(torch.zeros(height, width).byte())})
    new_height, new_width = round(height * 96 / max(height, width)), round(width * 96 / max(height, width))
    inner = torch.zeros(96, 96, dtype=torch.bool)
    inner[:new_height, :new_width] = True
    assert image.shape == (3, 96, 96)
    assert ((target["mask"] == 0) == inner).all()
    assert (target["mask"][~inner] == IGNORE).all()
    assert (image[:, ~inner] == GREY).all()
    assert target["content"].tolist() == [0, 0, new_width, new_height]


@pytest.mark.parametrize("size", [64, 96])
def test_letterbox_of_a_picture_that_fits_changes_nothing(size):
    image = photo(size, size)
    assert torch.equal(Letterbox(size)(image, {})[0], image)


def test_strong_padding_is_grey_before_the_colours_change_and_never_trained_on(monkeypatch):
    monkeypatch.setattr(v2, "ColorJitter", lambda **_: v2.Identity())
    padded = 0
    for seed in SEEDS:
        torch.manual_seed(seed)
        image, target = strong_augmentation("seg", 96)(picture(), {"mask": mask_of(picture())})
        grey = (image == GREY).all(0)
        assert torch.equal(grey, target["mask"] == IGNORE)
        padded += int(grey.any())
    assert padded > 10


@pytest.mark.parametrize("make", TRANSFORMS)
@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (200, 130), (33, 33)])
@pytest.mark.parametrize("task", ["seg", "det", "cls"])
def test_every_picture_becomes_a_square_of_the_size(make, height, width, task):
    image, moved = make(task, 64)(photo(height, width), labels_of(task, height, width))
    assert image.shape == (3, 64, 64) and image.dtype == torch.uint8
    if task == "seg":
        assert moved["mask"].shape == (64, 64)
    if task == "det":
        assert all(0 <= edge <= 64 for edge in moved["boxes"].flatten().tolist())
    if task == "cls":
        assert moved["label"] == 4


@pytest.mark.parametrize("task", ["seg", "det", "cls"])
def test_every_task_is_trained_on_windows_of_different_places_and_scales(task):
    """A picture whose pixels say where they are: the left side of the window and the step to the next pixel differ."""
    image = tv_tensors.Image(torch.arange(96, dtype=torch.uint8).expand(3, 96, 96) * 2)
    window = strong_augmentation(task, 32).transforms[1]
    assert window.scales == SCALES[task]
    lefts, steps = set(), set()
    for _ in range(20):
        row = window(image, {})[0][0, 16].int()
        shown = row[row != GREY]
        lefts.add(int(shown[0]))
        steps.add(round(int(shown[-1] - shown[0]) / len(shown)))
    assert len(lefts) > 5 and len(steps) > 1


@pytest.mark.parametrize("task", ["seg", "det", "cls"])
def test_evaluation_is_deterministic(task):
    target = {"seg": {"mask": mask_of(picture())}, "det": objects([BOX], [0]), "cls": {"label": torch.tensor(1)}}[task]
    first, second = (Letterbox(64)(picture(), target) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][k], second[1][k]) for k in target)


def test_weak_augmentation_is_the_letterbox_or_that_of_the_flipped_picture():
    image, seen = photo(64, 48), set()
    as_it_is = Letterbox(64)(image, {})[0]
    flipped = Letterbox(64)(tv_tensors.Image(image.flip(-1)), {})[0]
    for _ in range(20):
        result, target = weak_augmentation(64)(image, objects([], [], size=(64, 48)))
        assert torch.equal(result, as_it_is) or torch.equal(result, flipped)
        assert target["content"].tolist() == [0, 0, 48, 64], "padding stays on the right"
        seen.add(torch.equal(result, as_it_is))
    assert seen == {True, False}


def test_grey_becomes_0_in_the_network():
    assert GREY == 127


# ---------------------------------------------------------------- where the picture is


@pytest.mark.parametrize("task", ["seg", "det", "cls"])
@pytest.mark.parametrize("make", TRANSFORMS)
def test_the_content_is_what_is_not_grey(make, task, monkeypatch):
    monkeypatch.setattr(v2, "ColorJitter", lambda **_: v2.Identity())  # which changes the grey too
    padded = 0
    for seed in SEEDS:
        torch.manual_seed(seed)
        image, target = make(task, 96)(picture(), labels_of(task, 64, 96))
        shown = (image != GREY).any(0)
        assert target["content"].tolist() == extent(shown), f"seed {seed}"
        assert target["content"].dtype == torch.float32
        padded += int(not shown.all())
    assert padded > 10


def test_the_content_of_a_letterbox_by_hand():
    for (height, width), expected in {
        (50, 100): [0, 0, 64, 32],
        (100, 50): [0, 0, 32, 64],
        (7, 7): [0, 0, 64, 64],
        (1, 1000): [0, 0, 64, 1],
    }.items():
        assert Letterbox(64)(photo(height, width), {})[1]["content"].tolist() == expected


def test_the_content_of_a_window_by_hand(monkeypatch):
    """Half the size of a picture that fits: it lies where the padding leaves it; twice the size: it is everywhere."""
    rows = AxisWindow(start=0, length=64, before=7, resized=32)
    columns = AxisWindow(start=0, length=96, before=5, resized=48)
    axes = {64: rows, 96: columns}
    monkeypatch.setattr(transforms, "axis_window", lambda side, size, scale: axes[side])
    image, target = RandomWindow(96, (0.5, 0.5))(picture(), {"mask": mask_of(picture())})
    assert target["content"].tolist() == [5, 7, 5 + 48, 7 + 32]
    assert (target["mask"] != IGNORE).sum() == 32 * 48
    full = {64: AxisWindow(10, 48, 0, 96), 96: AxisWindow(20, 48, 0, 96)}
    monkeypatch.setattr(transforms, "axis_window", lambda side, size, scale: full[side])
    image, target = RandomWindow(96, (2.0, 2.0))(picture(), {})
    assert image.shape == (3, 96, 96) and target["content"].tolist() == [0, 0, 96, 96]


# ---------------------------------------------------------------- the way back from a letterbox


@pytest.mark.parametrize(("height", "width"), [(48, 96), (100, 40), (96, 96), (50, 75), (31, 97)])
def test_undo_boxes_leads_back_to_the_images_own_pixels(height, width):
    boxes = [[0, 0, width, height], [3, 5, 20, 30], [width - 9, height - 7, width, height]]
    target = objects(boxes, [0, 1, 2], size=(height, width))
    _, moved = Letterbox(96)(photo(height, width), target)
    result = Letterbox(96).undo_boxes(moved["boxes"].as_subclass(Tensor), (height, width))
    assert torch.allclose(result, torch.tensor(boxes, dtype=torch.float32), atol=1.1)  # sides are whole pixels there


def test_undo_boxes_cuts_boxes_off_at_the_images_sides():
    boxes = torch.tensor([[-10.0, -20.0, 90.0, 95.0], [10.0, 12.0, 40.0, 24.0]])
    result = Letterbox(96).undo_boxes(boxes, (100, 200))  # a pixel there is 200 / 96 pixels here
    factor = 200 / 96
    expected = [[0, 0, 90 * factor, 100], [10 * factor, 12 * factor, 40 * factor, 24 * factor]]
    assert torch.allclose(result, torch.tensor(expected))
    assert Letterbox(96).undo_boxes(torch.zeros(0, 4), (100, 200)).shape == (0, 4)


def plain_position(pixel: int, pixels: int, filled: float, cells: int) -> float:
    """Where a pixel's centre lies among the centres of cells, of which the image fills so many."""
    position = (pixel + 0.5) / pixels * filled - 0.5
    return min(max(position, 0), cells - 1)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (120, 90), (31, 33)])
def test_undo_mask_interpolates_between_the_centres_of_cells(height, width):
    """Logits that rise by a straight line do so in the image as well, whatever it was scaled by."""
    cells = 12
    new_height, new_width = Letterbox(96).content((height, width))
    rise = torch.arange(12.0)
    logits = torch.stack([rise.expand(cells, cells), rise[:, None].expand(cells, cells)])
    result = Letterbox(96).undo_mask(logits, (height, width))
    assert result.shape == (2, height, width)
    columns = [plain_position(x, width, new_width / 8, cells) for x in range(width)]
    rows = [plain_position(y, height, new_height / 8, cells) for y in range(height)]
    assert torch.allclose(result[0], torch.tensor(columns).expand(height, width), atol=1e-4)
    assert torch.allclose(result[1], torch.tensor(rows)[:, None].expand(height, width), atol=1e-4)


@pytest.mark.parametrize("size", [64, 96])
def test_undo_mask_of_a_picture_that_fits_is_plain_interpolation(size):
    logits = torch.randn(5, size // 8, size // 8)
    expected = torch.nn.functional.interpolate(logits[None], size=(size, size), mode="bilinear", align_corners=False)
    assert torch.allclose(Letterbox(size).undo_mask(logits, (size, size)), expected[0], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (120, 90)])
def test_undo_mask_leads_back_to_the_images_own_pixels(height, width):
    image = picture(height, width)
    _, moved = Letterbox(96)(image, {"mask": mask_of(image)})
    mask = moved["mask"].as_subclass(Tensor)
    mask = mask.where(mask != IGNORE, torch.tensor(9, dtype=torch.uint8))  # padding has a class of its own
    logits = torch.nn.functional.one_hot(mask.long(), 21).permute(2, 0, 1).float()  # as many cells as pixels
    result = Letterbox(96).undo_mask(logits, (height, width))
    assert result.shape == (21, height, width)
    assert set(result.argmax(0).unique().tolist()) == {0, 5}, "nothing of the padding"
    assert extent(result.argmax(0) == 5) == pytest.approx(BOX, abs=1)


# ---------------------------------------------------------------- boxes that are lost


def test_labels_and_crowds_leave_together_with_their_boxes():
    boxes = [[0, 0, 30, 30], [60, 30, 96, 64], [40, 2, 44, 5], [34, 34, 50, 60]]
    lost = set()
    for seed in SEEDS:
        torch.manual_seed(seed)
        _, target = strong_augmentation("det", 96)(
            photo(64, 96), objects(boxes, [0, 1, 2, 3], [True, False, True, False], (64, 96))
        )
        labels, crowd = target["labels"].tolist(), target["crowd"].tolist()
        assert len(target["boxes"]) == len(labels) == len(crowd)
        assert crowd == [label in (0, 2) for label in labels], "each box keeps its own flag"
        assert target["labels"].dtype == torch.int64 and target["crowd"].dtype == torch.bool
        if len(labels):
            assert (target["boxes"][:, 2:] - target["boxes"][:, :2]).min() >= MIN_BOX
        lost |= {0, 1, 2, 3} - set(labels)
    assert 2 in lost and len(lost) > 1, "the tiny one and some at the border"


def test_an_image_may_lose_all_its_boxes():
    _, target = strong_augmentation("det", 96)(photo(64, 96), objects([[0, 0, 2, 2]], [1], size=(64, 96)))
    assert target["boxes"].shape == (0, 4) and len(target["labels"]) == len(target["crowd"]) == 0


def test_masks_and_the_boxes_of_their_objects_move_together():
    for seed in SEEDS:
        torch.manual_seed(seed)
        target = {"mask": mask_of(picture())} | objects([BOX], [3], size=(64, 96))
        _, moved = strong_augmentation("seg", 96)(picture(), target)
        shown = moved["mask"].as_subclass(Tensor) == 5
        for box in moved["boxes"].tolist():
            assert box == pytest.approx(extent(shown), abs=2), f"seed {seed}"
        assert len(moved["boxes"]) == len(moved["labels"]) == len(moved["crowd"])


@pytest.mark.parametrize(("side", "size", "scale"), [(100, 64, 0.5), (100, 64, 1.0), (100, 64, 2.0), (7, 64, 20.0)])
def test_a_window_keeps_the_scale_and_stays_inside(side, size, scale):
    for _ in range(50):
        first, span, before, new = axis_window(side, size, scale)
        assert first >= 0 and first + span <= side and before >= 0 and before + new <= size
        assert new == pytest.approx(span * scale, abs=max(1, scale))
        assert new == size or span == side, "the window is full, or all of the image is in it"


# ---------------------------------------------------------------- batches


def test_collate_of_segmentation():
    samples = [(photo(40, 60), {"mask": tv_tensors.Mask(torch.full((40, 60), 7).byte())}) for _ in range(3)]
    images, content, targets = collate(samples, Letterbox(64), "seg")
    masks = torch.stack([target["mask"] for target in targets])
    assert images.shape == (3, 3, 64, 64) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1 and images.max() > 0.9
    assert masks.shape == (3, 64, 64) and masks.dtype == torch.uint8
    assert set(masks.unique().tolist()) == {7, IGNORE}
    assert content.tolist() == [[0, 0, 64, 43]] * 3 and content.dtype == torch.float32
    assert type(images) is type(masks) is type(content) is Tensor


def test_collate_of_detection():
    samples = [(photo(64, 64), objects([BOX] * n, [1] * n, size=(64, 64))) for n in (2, 0)]
    images, _, targets = collate(samples, Letterbox(64), "det")
    assert images.shape == (2, 3, 64, 64)
    assert [len(t["boxes"]) for t in targets] == [2, 0]
    assert all(type(value) is Tensor for t in targets for value in t.values())
    assert targets[0]["boxes"].dtype == torch.float32 and targets[0]["labels"].dtype == torch.int64


def test_collate_of_classification():
    samples = [(photo(40, 60), {"label": torch.tensor(label)}) for label in (3, 1)]
    images, content, labels = collate(samples, strong_augmentation("cls", 32), "cls")
    assert images.shape == (2, 3, 32, 32) and content.shape == (2, 4)
    assert labels.tolist() == [3, 1] and labels.dtype == torch.int64


def test_collate_keeps_the_pixels():
    image = photo(64, 64)
    batch = collate([(image, {"label": torch.tensor(0)})], Letterbox(64), "cls")
    assert torch.equal((batch.images[0] * 255).round().byte(), image.as_subclass(Tensor))


def test_every_image_of_a_batch_has_its_own_content():
    samples = [(photo(*size), {"label": torch.tensor(0)}) for size in ((32, 64), (64, 48), (64, 64))]
    batch = collate(samples, Letterbox(64), "cls")
    assert batch.content.tolist() == [[0, 0, 64, 32], [0, 0, 48, 64], [0, 0, 64, 64]]


def test_a_batch_of_images_alone_holds_the_images_of_collate():
    images = [photo(40, 60), photo(60, 40)]
    samples = [(image, {"label": torch.tensor(0)}) for image in images]
    expected = collate(samples, Letterbox(64), "cls")
    result, content = to_batch(images, 64)
    assert torch.equal(result, expected.images) and torch.equal(content, expected.content)
    assert type(result) is type(content) is Tensor
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("task", ["seg", "det", "cls"])
def test_all_of_a_batch_moves_to_a_device(task):
    """The device "meta" stands for a GPU: it is there on every machine."""
    batch = collate([(photo(64, 64), labels_of(task, 64, 64))], Letterbox(64), task)
    moved = to_device(batch, "meta")
    assert moved.images.is_meta and moved.content.is_meta
    if task == "cls":
        assert moved.targets.is_meta and not batch.targets.is_meta
    else:
        assert [target.keys() for target in moved.targets] == [target.keys() for target in batch.targets]
        assert all(value.is_meta for value in moved.targets[0].values())


@pytest.mark.parametrize("shape", [(1, 40), (255, 30), (256, 30), (700, 20)])
def test_classes_are_the_same_in_strips(shape):
    logits = torch.randn(21, 12, 12, generator=torch.Generator().manual_seed(0))
    letterbox = Letterbox(96)
    expected = letterbox.undo_mask(logits, shape).argmax(0)
    found = letterbox.undo_classes(logits, shape)
    assert found.dtype == torch.uint8 and torch.equal(found.long(), expected)
