"""The three tasks: their order, names, folders, classes and the classes that two of them share.

Imports nothing that has to be installed.
"""

from dataclasses import asdict, dataclass

TASKS = ("seg", "det", "cls")  # the order of the three stages, fixed by the assignment
TASK_NAMES = {"seg": "segmentation", "det": "detection", "cls": "classification"}
METRIC_NAMES = {"seg": "mIoU", "det": "mAP@50", "cls": "Top-1"}  # the one metric that a task is judged by
FOLDERS = {"seg": "mini_voc_seg", "det": "mini_coco_det", "cls": "imagenette_160"}
SPLITS = ("train", "val")
IGNORE = 255  # the value of a VOC mask at object borders: neither trained on nor evaluated
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
IMAGENETTE_NAMES = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip


@dataclass(frozen=True)
class Classes:
    """The classes that a model is built for, in the order of its output channels."""

    det: tuple[str, ...]  # category names
    det_ids: tuple[int, ...]  # their COCO category ids
    cls: tuple[str, ...]  # folder names
    seg: tuple[str, ...] = VOC_CLASSES

    @classmethod
    def from_dict(cls, values: dict) -> "Classes":
        """The inverse of as_dict."""
        return cls(**{name: tuple(value) for name, value in values.items()})

    def as_dict(self) -> dict:
        """Plain lists, as they are stored in checkpoints."""
        return {name: list(value) for name, value in asdict(self).items()}

    def names(self, task: str) -> list[str]:
        """Names to print, one a class."""
        return [IMAGENETTE_NAMES.get(name, name) for name in getattr(self, task)]


COCO_NAME_OF_VOC = {"motorbike": "motorcycle", "tvmonitor": "tv"}  # VOC's names of classes that COCO calls otherwise


def shared_classes(det_classes: tuple[str, ...]) -> dict[int, int]:
    """The classes of both tasks: {index in det_classes: index in VOC_CLASSES}."""
    voc = {COCO_NAME_OF_VOC.get(name, name): index for index, name in enumerate(VOC_CLASSES)}
    return {label: voc[name] for label, name in enumerate(det_classes) if name in voc}


def voc_palette() -> list[int]:
    """VOC's 256 colours as r, g, b, r, ...: the bits of the value dealt out to the three channels, highest first."""
    return [sum((v >> 3 * i + c & 1) << 7 - i for i in range(3)) for v in range(256) for c in range(3)]
