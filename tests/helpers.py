"""Small hand-made samples and sets for the tests."""

import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from mtl_utils.data import MiniSet
from mtl_utils.evaluation import StageMetrics, TaskMetrics
from mtl_utils.model import Outputs
from mtl_utils.settings import PROFILES
from mtl_utils.tasks import FOLDERS, TASKS, VOC_CLASSES, Classes

CLASSES = Classes(det=("cat", "dog", "tv"), det_ids=(7, 42, 90), cls=("n1", "n2", "n3"))
SETTINGS = replace(  # of a run that takes seconds
    PROFILES["smoke"],
    train_size=dict(seg=64, det=64, cls=32),
    eval_size=64,
    epochs=dict(seg=3, det=2, cls=2),
    batch_size=dict(seg=2, det=2, cls=2),
    buffer_size=4,
    replay_per_task=2,
)


class ListSet(MiniSet):
    """A set of samples that are given instead of read; ids are 1, 2, 3 and so on."""

    def __init__(self, task: str, samples: list, classes: Classes = CLASSES, root: Path | None = None):
        self.task, self.samples, self.classes = task, samples, classes
        self.root, self.split = root, "val"
        self.ids = list(range(1, len(samples) + 1))
        self.paths = [None] * len(samples)


def photo(height: int, width: int) -> tv_tensors.Image:
    """A picture of random pixels."""
    return tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))


def objects(boxes: list, labels: list, crowd: list | None = None, size: tuple[int, int] = (96, 96)) -> dict:
    """A detection target: boxes XYXY in pixels, class indices, and which of them are crowds (default: none)."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "crowd": torch.tensor(crowd or [False] * len(boxes), dtype=torch.bool),
    }


def plain_tensors(target: dict) -> dict:
    """A target as collate gives it, without tv_tensors."""
    return {k: v.as_subclass(Tensor) for k, v in target.items()}


def det_set(root: Path, targets: list[dict], size: tuple[int, int] = (96, 96)) -> ListSet:
    """A detection set of random pictures with these targets, its COCO file included."""
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(1, len(targets) + 1)]
    rows = [(i, *row) for i, t in enumerate(targets, 1) for row in zip(*plain_tensors(t).values(), strict=True)]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": CLASSES.det_ids[label],
            "bbox": torch.cat([box[:2], box[2:] - box[:2]]).tolist(),
            "area": (box[2:] - box[:2]).prod().item(),
            "iscrowd": int(crowd),
        }
        for number, (image, box, label, crowd) in enumerate(rows, 1)
    ]
    categories = [{"id": i, "name": n} for i, n in zip(CLASSES.det_ids, CLASSES.det, strict=True)]
    path = root / "mini_coco_det" / "annotations" / "mini_instances_val2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return ListSet("det", [(photo(*size), target) for target in targets], root=root)


def outputs(detection=None, segmentation=None, classification=None) -> Outputs:
    """Model outputs of which a test needs only some."""
    return Outputs(detection, segmentation, classification)


class Fixed(nn.Module):
    """A model whose outputs for a batch are given, whatever it is shown; what is not given is 0."""

    def __init__(self, detection=None, segmentation=None, classification=None, classes: Classes = CLASSES):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))
        self.given = Outputs(detection, segmentation, classification)
        self.classes = classes

    def forward(self, images, content):
        batch, _, height, width = images.shape
        zeros = Outputs(
            torch.zeros(batch, 5 + len(self.classes.det), height // 8, width // 8),
            torch.zeros(batch, len(VOC_CLASSES), height // 8, width // 8),
            torch.zeros(batch, len(self.classes.cls)),
        )
        pairs = zip(self.given, zeros, strict=True)
        return Outputs(*(zero if given is None else given for given, zero in pairs))


def random_boxes(count: int, size: float, least: float = 4.0) -> Tensor:
    """Boxes (N, 4) XYXY inside a square of `size` pixels, no side shorter than `least`."""
    corner = torch.rand(count, 2) * (size - least)
    sides = least + torch.rand(count, 2) * (size - least - corner)
    return torch.cat([corner, corner + sides], dim=1)


FLOORS = {"seg": 0.03, "det": 0.0, "cls": 0.1}  # of hand-made metrics


def task_metrics(task: str, value: float, floor: float | None = None) -> TaskMetrics:
    """The metrics of a task of which only value and floor matter."""
    lowest = FLOORS[task] if floor is None else floor
    return TaskMetrics(task=task, value=value, floor=lowest, per_class={}, images=1)


def stage_metrics(after: list[dict[str, float]]) -> StageMetrics:
    """Metrics after each stage from plain numbers by task."""
    rows = zip(TASKS, after, strict=False)
    return {stage: {task: task_metrics(task, value) for task, value in row.items()} for stage, row in rows}


def json_file(root: Path, split: str = "train") -> Path:
    return root / FOLDERS["det"] / "annotations" / f"mini_instances_{split}2017.json"


def change_json(root: Path, change, split: str = "train") -> None:
    """Apply `change` to the contents of the COCO file."""
    contents = json.loads(json_file(root, split).read_text())
    change(contents)
    json_file(root, split).write_text(json.dumps(contents))


@contextlib.contextmanager
def no_waiting(seconds: int = 10) -> Iterator[None]:
    """A TimeoutError instead of a test that hangs."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
