"""The three metrics: over the whole set, in each image's own pixels, each beside its trivial floor.

mIoU     mean over classes of TP / (TP + FP + FN) from one 21 x 21 confusion matrix of all pixels but 255; a class that
         neither the masks nor the predictions hold has no IoU and is left out
mAP@50   COCO's average precision at an overlap of .5, by pycocotools, crowds respected; mAP is the mean over .5:.95
Top-1    fraction of images whose best class is the right one
The floors: everything background; no detections; always the most frequent class.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from mtl_utils.coco import Key
from mtl_utils.data import MiniSet, Target, class_labels
from mtl_utils.detection import Detections, decode
from mtl_utils.files import UserError
from mtl_utils.model import Outputs
from mtl_utils.progress import progress
from mtl_utils.tasks import IGNORE, METRIC_NAMES, VOC_CLASSES, Task
from mtl_utils.transforms import Letterbox, to_batch

EVAL_BATCH = 10  # images in one forward
SHOWN = 0.3  # detections below this score are not drawn (they do count in mAP)
MATCH_IOU = 0.5  # the least overlap of a detection with the object that it finds: the 50 of mAP@50
NO_DETECTION = (-2.0, -2.0, 1.0, 1.0, 0.0)  # left, top, width, height, score: lies outside every image

Predictions = list[Any]  # of one task, one an image: masks, detections or class probabilities (see Prediction)


@dataclass(frozen=True)
class TaskMetrics:
    """The metrics of one task on one set."""

    task: Task
    value: float  # the metric that judges the task, in [0, 1]
    floor: float  # what the trivial prediction scores
    per_class: dict[str, float | None]  # IoU, AP@50 or recall by class name; None where the class has none
    images: int  # size of the set
    forwards: float = 1.0  # that one image of all evaluated sets took, whatever tasks it has labels for
    confusion: list[list[int]] | None = None  # true class by row, predicted by column: pixels (seg) or images (cls)
    mean_ap: float | None = None  # detection only: mAP over overlaps .5:.95

    @property
    def name(self) -> str:
        """What the metric is called."""
        return METRIC_NAMES[self.task]

    def as_dict(self) -> dict[str, Any]:
        """Plain types under the keys of metrics.json; the metric stands under its name."""
        values: dict[str, Any] = {self.name: self.value}
        if self.mean_ap is not None:
            values["mAP"] = self.mean_ap
        values |= {"floor": self.floor, "per_class": self.per_class}
        if self.confusion is not None:
            values["confusion"] = self.confusion
        return values | {"images": self.images, "forwards": self.forwards}

    @classmethod
    def from_dict(cls, task: Task, values: dict[str, Any]) -> "TaskMetrics":
        """The inverse of as_dict."""
        return cls(
            task=task,
            value=values[METRIC_NAMES[task]],
            floor=values["floor"],
            per_class=values["per_class"],
            images=values["images"],
            forwards=values["forwards"],
            confusion=values.get("confusion"),
            mean_ap=values.get("mAP"),
        )


StageMetrics = dict[Task, dict[Task, TaskMetrics]]  # after each stage, of every task learned by then


# ---- from images to predictions


class Prediction(NamedTuple):
    """What one forward predicts for one image, in the image's own pixels."""

    mask: Tensor  # (H, W) uint8 of VOC classes
    detections: Detections  # boxes (N, 4) XYXY inside the image, scores (N,), labels (N,), best first
    probabilities: Tensor  # (C,) of the image's class

    def of(self, task: Task) -> Any:
        """The part of one task."""
        return {"seg": self.mask, "det": self.detections, "cls": self.probabilities}[task]


@torch.inference_mode()
def predict(model: nn.Module, images: Sequence[Tensor], size: int) -> list[Prediction]:
    """Mask, detections and class probabilities of images (each (3, H, W) uint8), all three from one forward.

    `size` is the side of the square input into which each image is letterboxed. Returns one prediction an image.
    Raises UserError when an output of the model is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    batch, content = to_batch(images, size)  # (B, 3, size, size) and (B, 4)
    outputs = model(batch.to(device), content.to(device))
    check_finite(outputs)
    letterbox = Letterbox(size)
    detections = decode(outputs.detection)
    probabilities = outputs.classification.softmax(dim=1).cpu()  # (B, C)
    predictions = []
    for index, image in enumerate(images):
        shape = image.shape[-2:]
        mask = letterbox.undo_classes(outputs.segmentation[index], shape).cpu()  # (H, W)
        found = own_boxes(detections[index], letterbox, shape)
        predictions.append(Prediction(mask, found, probabilities[index]))
    return predictions


def check_finite(outputs: Outputs) -> None:
    """Raise UserError for the first output that is not finite: decoded, it would look like a poor prediction."""
    for name, values in outputs._asdict().items():
        if not values.isfinite().all():
            remedy = "the weights are damaged; take an intact file"
            raise UserError(f"The model predicts values that are not finite ({name}): {remedy}.")


def own_boxes(detections: Detections, letterbox: Letterbox, shape: Sequence[int]) -> Detections:
    """Detections in the letterboxed input as detections in the image's own pixels, on the CPU."""
    boxes = letterbox.undo_boxes(detections["boxes"], shape)
    on_cpu = {name: value.cpu() for name, value in detections.items()}
    return on_cpu | {"boxes": boxes.cpu()}


@dataclass
class Photograph:
    """Where one photograph occurs, which may carry labels for several tasks."""

    places: list[tuple[MiniSet, int]]  # set and index in it

    @property
    def image(self) -> Tensor:
        """Its pixels, (3, H, W) uint8; read when asked for, since those of all photographs may be too many."""
        dataset, index = self.places[0]
        image: Tensor = dataset.samples[index][0]
        return image


def distinct_photographs(datasets: Sequence[MiniSet]) -> list[Photograph]:
    """The photographs of some sets, each once, told apart by their pixels."""
    photographs: dict[tuple[torch.Size, bytes], Photograph] = {}
    for dataset in datasets:
        # by pixels, since one photograph may be stored as two files
        for index, (image, _) in enumerate(dataset.samples):
            digest = hashlib.sha256(image.numpy().tobytes()).digest()
            photograph = photographs.setdefault((image.shape, digest), Photograph([]))
            photograph.places.append((dataset, index))
    return list(photographs.values())


def predict_sets(model: nn.Module, datasets: Sequence[MiniSet], size: int) -> dict[Task, Predictions]:
    """Predictions for whole sets of different tasks, in their order; no photograph is put through the network twice."""
    predictions: dict[Task, Predictions] = {dataset.task: [None] * len(dataset) for dataset in datasets}
    photographs = distinct_photographs(datasets)
    starts = range(0, len(photographs), EVAL_BATCH)
    for start in progress(starts, desc="evaluating", leave=False, delay=2):
        batch = photographs[start : start + EVAL_BATCH]
        predicted = predict(model, [photograph.image for photograph in batch], size)
        for photograph, prediction in zip(batch, predicted, strict=True):
            for dataset, index in photograph.places:
                predictions[dataset.task][index] = prediction.of(dataset.task)
    return predictions


# ---- segmentation and classification: confusion matrices


def confusion_matrix(target: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """(C, C) int64 counts, true class by row and predicted class by column; target 255 is left out."""
    kept = target != IGNORE
    pairs = target[kept].long() * classes + prediction[kept].long()  # each (true, predicted) as one number
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_iou(matrix: Tensor) -> Tensor:
    """IoU (C,) of each class of a confusion matrix; NaN for a class that does not occur at all."""
    hits = matrix.diagonal().double()
    union = matrix.sum(0) + matrix.sum(1) - hits
    return hits / union


def segmentation_metrics(dataset: MiniSet, masks: Sequence[Tensor]) -> TaskMetrics:
    """mIoU, its floor, the IoU of each class and the confusion matrix of pixels, from masks (H, W) uint8.

    Raises UserError where the set's own masks hold 255 alone.
    """
    classes = len(VOC_CLASSES)
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    floor = torch.zeros_like(matrix)
    for target, mask in zip(dataset.targets(), masks, strict=True):
        true = target["mask"].as_subclass(Tensor)
        background = torch.zeros_like(true)
        matrix += confusion_matrix(true, mask, classes)
        floor += confusion_matrix(true, background, classes)
    iou = class_iou(matrix)
    return TaskMetrics(
        task="seg",
        value=iou.nanmean().item(),
        floor=class_iou(floor).nanmean().item(),
        per_class=dict(zip(VOC_CLASSES, without_nan(iou), strict=True)),
        images=len(dataset),
        confusion=matrix.tolist(),
    )


def classification_metrics(dataset: MiniSet, probabilities: Sequence[Tensor]) -> TaskMetrics:
    """Top-1, its floor, the recall of each class and the confusion matrix, from probabilities (C,) of each image."""
    names = dataset.classes.names("cls")
    labels = torch.stack([target["label"] for target in dataset.targets()])  # (N,)
    predicted = torch.stack(list(probabilities)).argmax(1)  # (N,)
    matrix = confusion_matrix(labels, predicted, len(names))
    images_of_class = matrix.sum(1)
    recall = matrix.diagonal().double() / images_of_class
    return TaskMetrics(
        task="cls",
        value=(matrix.diagonal().sum() / matrix.sum()).item(),
        floor=(images_of_class.max() / matrix.sum()).item(),
        per_class=dict(zip(names, without_nan(recall), strict=True)),
        images=len(dataset),
        confusion=matrix.tolist(),
    )


def without_nan(values: Tensor) -> list[float | None]:
    """Numbers for JSON: None instead of NaN."""
    numbers: list[float] = values.tolist()
    return [None if number != number else number for number in numbers]  # NaN alone differs from itself


# ---- detection: COCO's average precision


def detection_metrics(dataset: MiniSet, detections: Sequence[Detections]) -> TaskMetrics:
    """mAP@50, mAP and the AP@50 of each class (None where the set has no object of it), by pycocotools."""
    names = dataset.classes.det
    precision = coco_precision(dataset, detections)  # (10 overlaps, 101 recalls, C), -1 where a class has no object
    per_class = class_ap(precision[0])  # (C,)
    known = precision[precision > -1]
    return TaskMetrics(
        task="det",
        value=mean_ap(precision[0]),
        floor=0.0,  # of no detections
        per_class=dict(zip(names, without_nan(torch.from_numpy(per_class)), strict=True)),
        images=len(dataset),
        mean_ap=float(known.mean()) if known.size else 0.0,
    )


def class_ap(precision: np.ndarray) -> np.ndarray:
    """Average precision (C,) of each class from COCO's precision (101 recalls, C); NaN for a class without objects."""
    values = []
    for at_recalls in precision.T:
        known = at_recalls[at_recalls > -1]
        values.append(known.mean() if known.size else np.nan)
    return np.array(values, dtype=float)


def mean_ap(precision: np.ndarray) -> float:
    """Mean over the classes with objects of COCO's precision (101 recalls, C); 0 where no class has one."""
    values = class_ap(precision)
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0


def coco_precision(dataset: MiniSet, detections: Sequence[Detections]) -> np.ndarray:
    """COCOeval's precision over all sizes at 100 detections an image, (10 overlaps, 101 recalls, C)."""
    run = coco_evaluation(dataset, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        run.accumulate()
    precision: np.ndarray = run.eval["precision"]  # (overlaps, recalls, C, sizes, limits of detections)
    return precision[:, :, :, 0, 2]


def coco_evaluation(dataset: MiniSet, detections: Sequence[Detections], **params: Any) -> COCOeval:
    """COCOeval, with these parameters of its own, after matching every detection to an object: ready to accumulate."""
    rows = coco_rows(dataset, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        truth = coco_truth(dataset)
        run = COCOeval(truth, truth.loadRes(rows), "bbox")
        run.params.imgIds = list(range(1, len(dataset) + 1))
        vars(run.params).update(params)
        run.evaluate()
    return run


def coco_truth(dataset: MiniSet) -> COCO:
    """The objects of a set as COCOeval needs them.

    Images are numbered 1 to N (see image_numbers), classes 1 to C in the model's order, objects from 1: COCOeval takes
    an object with id 0 for missed.
    """
    number_of = image_numbers(dataset)
    labels = class_labels(dataset.coco, dataset.classes)
    annotations: list[dict[str, Any]] = []
    for found in dataset.coco.objects:
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": number_of[found.photo],
                "category_id": labels[found.category] + 1,
                "bbox": list(found.box),
                "area": found.area,
                "iscrowd": int(found.crowd),
            }
        )
    categories = [{"id": number, "name": name} for number, name in enumerate(dataset.classes.det, start=1)]
    images = [{"id": number} for number in number_of.values()]
    truth = COCO()
    # some versions of pycocotools ask for "info"
    truth.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    truth.createIndex()
    return truth


def image_numbers(dataset: MiniSet) -> dict[Key, int]:
    """A number from 1 for the id of each image, in the order of the ids: COCOeval can read no text as an id."""
    ordered = sorted(dataset.ids, key=lambda key: (isinstance(key, str), key))
    return {key: number for number, key in enumerate(ordered, start=1)}


def coco_rows(dataset: MiniSet, detections: Sequence[Detections]) -> np.ndarray:
    """Detections as COCO reads them: (N, 7) float64 of image, left, top, width, height, score, class."""
    number_of = image_numbers(dataset)
    blocks = []
    for key, detection in zip(dataset.ids, detections, strict=True):
        boxes = box_convert(detection["boxes"], "xyxy", "xywh")  # (n, 4)
        scores = detection["scores"][:, None]
        categories = detection["labels"][:, None] + 1
        images = np.full((len(boxes), 1), number_of[key], dtype=float)
        blocks.append(np.concatenate([images, boxes.numpy(), scores.numpy(), categories.numpy()], axis=1))
    rows = np.concatenate(blocks)
    if len(rows):
        return rows
    # an array of no rows is what loadRes cannot read: one detection of score 0 outside every image stands for it
    return np.array([(1, *NO_DETECTION, 1)], dtype=float)


# ---- one image


def mask_score(mask: Tensor, target: Target) -> float:
    """Mean IoU of the classes that one image's mask or its prediction holds, background included."""
    matrix = confusion_matrix(target["mask"].as_subclass(Tensor), mask, len(VOC_CLASSES))
    return class_iou(matrix).nanmean().item()


def boxes_score(detections: Detections, target: Target) -> float:
    """Share of right ones among an image's objects and shown detections together: TP / (TP + FP + FN).

    Detections below SHOWN are not counted, nor are crowds (a detection on one is wrong).
    """
    shown = int((detections["scores"] >= SHOWN).sum())
    objects = int((~target["crowd"]).sum())
    found = len(found_objects(detections, target))
    everything = shown + objects - found  # TP are in both
    return found / everything if everything else 1.0


def found_objects(detections: Detections, target: Target) -> dict[int, float]:
    """The objects of one image that are found, each with the IoU of its box; numbers count objects that are no crowd.

    An object is found by the first shown detection of its class with an overlap of .5 that has found no other.
    """
    shown = detections["scores"] >= SHOWN
    real = ~target["crowd"]
    objects = target["boxes"].as_subclass(Tensor)[real]  # (M, 4)
    overlap = box_iou(detections["boxes"][shown], objects)  # (N, M)
    same_class = detections["labels"][shown][:, None] == target["labels"][real]
    matches = (overlap >= MATCH_IOU) & same_class  # (N, M)
    found: dict[int, float] = {}
    for number, row in enumerate(matches):  # best detection first
        free = [index for index in row.nonzero().flatten().tolist() if index not in found]
        for index in free[:1]:
            found[index] = overlap[number, index].item()
    return found


def class_score(probabilities: Tensor, target: Target) -> float:
    """Probability that the model gives to the right class."""
    return probabilities[target["label"]].item()


# how good the prediction for one image is, 0 to 1
IMAGE_SCORES: dict[Task, Callable[[Any, Target], float]] = {
    "seg": mask_score,
    "det": boxes_score,
    "cls": class_score,
}


# ---- a whole set


def evaluate(model: nn.Module, datasets: Sequence[MiniSet], size: int) -> dict[Task, TaskMetrics]:
    """All metrics of each set's task, read from one forward a photograph at size x size pixels."""
    return predict_and_evaluate(model, datasets, size).metrics


class Evaluation(NamedTuple):
    """What a model predicts for some sets, and how good that is."""

    predictions: dict[Task, Predictions]
    metrics: dict[Task, TaskMetrics]


def predict_and_evaluate(model: nn.Module, datasets: Sequence[MiniSet], size: int) -> Evaluation:
    """`evaluate`, with the predictions from which the metrics come."""
    with counted_forwards(model) as sizes:
        predictions = predict_sets(model, datasets, size)
    forwards = sum(sizes) / len(distinct_photographs(datasets))
    metrics = {}
    for dataset in datasets:
        result = set_metrics(dataset, predictions[dataset.task])
        metrics[dataset.task] = replace(result, forwards=forwards)
    return Evaluation(predictions, metrics)


@contextlib.contextmanager
def counted_forwards(model: nn.Module) -> Iterator[list[int]]:
    """A list that receives the batch size of every forward of a model inside the `with` block."""
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    try:
        yield sizes
    finally:
        hook.remove()


def set_metrics(dataset: MiniSet, predictions: Predictions) -> TaskMetrics:
    """The metrics of a set's task from one prediction an image. Raises UserError where the set has no labels at all."""
    if not dataset.has_truth:  # 0 would look like a bad model
        raise UserError(f"{dataset.place} has no labels: without them there is no {METRIC_NAMES[dataset.task]}.")
    if dataset.task == "seg":
        return segmentation_metrics(dataset, predictions)
    if dataset.task == "det":
        return detection_metrics(dataset, predictions)
    return classification_metrics(dataset, predictions)
