"""The three tasks: their order, names, folders and classes, and the classes that two of them share.

Imports nothing that has to be installed.
"""

from dataclasses import asdict, dataclass

Task = str  # "seg", "det" or "cls"
Stored = dict[str, list[str] | list[int]]  # class lists as JSON and checkpoints hold them

TASKS: tuple[Task, ...] = ("seg", "det", "cls")  # the order of the three stages, fixed by the assignment
CHANNEL_ORDER: tuple[Task, ...] = ("det", "seg", "cls")  # the order of their channels in the head's output map
TASK_NAMES: dict[Task, str] = {"seg": "segmentation", "det": "detection", "cls": "classification"}
METRIC_NAMES: dict[Task, str] = {"seg": "mIoU", "det": "mAP@50", "cls": "Top-1"}  # the metric that judges a task
FOLDERS: dict[Task, str] = {"seg": "mini_voc_seg", "det": "mini_coco_det", "cls": "imagenette_160"}
SPLITS = ("train", "val")

IGNORE = 255  # the value of a VOC mask at object borders: neither trained on nor evaluated
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# VOC's names of classes that COCO calls otherwise; all other shared classes have one name
COCO_NAME_OF_VOC = {"motorbike": "motorcycle", "tvmonitor": "tv"}
COCO_CLASSES = {  # of Mini-COCO, with COCO's own ids
    "person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "bus": 6,
    "truck": 8, "cat": 17, "dog": 18, "chair": 62, "tv": 72,
}  # fmt: skip
# Imagenette's folders are WordNet ids; these are its own names for them
IMAGENETTE_NAMES = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip


def stage_number(task: Task) -> int:
    """The number of the stage that learns a task: 1, 2 or 3."""
    return TASKS.index(task) + 1


def stage_name(task: Task) -> str:
    """What the names of a stage's files begin with, such as "stage1_segmentation"."""
    number = stage_number(task)
    return f"stage{number}_{TASK_NAMES[task]}"


def learned_by(stage: Task) -> tuple[Task, ...]:
    """The tasks that are learned once the stage of this task is over."""
    return TASKS[: stage_number(stage)]


@dataclass(frozen=True)
class Classes:
    """The classes that a model is built for, in the order of its output channels."""

    det: tuple[str, ...]  # category names
    det_ids: tuple[int | str, ...]  # their COCO category ids
    cls: tuple[str, ...]  # folder names
    seg: tuple[str, ...] = VOC_CLASSES

    @classmethod
    def from_dict(cls, values: Stored) -> "Classes":
        """The inverse of as_dict."""
        tuples = {name: tuple(value) for name, value in values.items()}
        return cls(**tuples)  # type: ignore[arg-type]  # one dict holds names and ids

    def as_dict(self) -> Stored:
        """Plain lists, as they are stored in checkpoints."""
        return {name: list(value) for name, value in asdict(self).items()}

    def names(self, task: Task) -> list[str]:
        """Names to print, one a class."""
        stored: tuple[str, ...] = getattr(self, task)
        return [IMAGENETTE_NAMES.get(name, name) for name in stored]


def shared_classes(det_classes: tuple[str, ...]) -> dict[int, int]:
    """The classes that both tasks have: {index in det_classes: index in VOC_CLASSES}."""
    shared = {}
    for index, voc_name in enumerate(VOC_CLASSES):
        coco_name = COCO_NAME_OF_VOC.get(voc_name, voc_name)
        if coco_name in det_classes:
            label = det_classes.index(coco_name)
            shared[label] = index
    return dict(sorted(shared.items()))  # in detection's order


def voc_palette() -> list[int]:
    """VOC's 256 colours as r, g, b, r, ...: the bits of the value are dealt out to the three channels in turn."""
    palette = []
    for value in range(256):
        for channel in range(3):
            colour = 0
            for place in range(3):  # bits 0, 3, 6 make red; 1, 4, 7 green; 2, 5 blue; the lowest of them weighs most
                position = 3 * place + channel
                bit = value >> position & 1
                colour += bit << (7 - place)
            palette.append(colour)
    return palette
