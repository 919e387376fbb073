"""The three metrics, honestly: over the whole set, in each image's own pixels, each beside its trivial floor.

mIoU     mean over classes of TP / (TP + FP + FN) from one 21 x 21 confusion matrix of all pixels but 255; a class that
         neither the masks nor the predictions hold has no IoU and is left out
mAP@50   COCO's average precision at an overlap of .5, by pycocotools, crowds respected; mAP is the mean over .5:.95
Top-1    fraction of images whose best class is the right one
The floors: everything background; no detections; always the most frequent class.
"""

import contextlib
import io

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.ops import box_convert, box_iou
from tqdm.auto import tqdm

from mtl_utils import layout
from mtl_utils.data import MiniSet
from mtl_utils.detection import decode
from mtl_utils.layout import read_coco
from mtl_utils.model import Outputs, resize
from mtl_utils.tasks import IGNORE, METRIC_NAMES, VOC_CLASSES
from mtl_utils.transforms import Letterbox, collate, eval_transform

EVAL_BATCH = 10  # images in one forward: a sixth of a val set
SHOWN = 0.3  # detections below this score are not drawn (they do count in mAP)


def read_masks(outputs: Outputs, images: list[Tensor], size: int) -> list[Tensor]:
    """Masks (H, W) uint8 in each image's own size from the outputs for letterboxed images."""
    masks = []
    for logits, image in zip(outputs.segmentation, images, strict=True):
        height, width = Letterbox(size).content(image.shape[-2:])
        own = resize(logits[None, :, :height, :width], image.shape[-2:])
        masks.append(own[0].argmax(0).byte().cpu())
    return masks


def read_detections(outputs: Outputs, images: list[Tensor], size: int) -> list[dict[str, Tensor]]:
    """Detections of each image (see detection.decode), boxes in its own pixels and inside it."""
    detections = decode(outputs.detection)
    for found, image in zip(detections, images, strict=True):
        height, width = image.shape[-2:]
        boxes = found["boxes"] * (max(height, width) / size)
        found["boxes"] = torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], 2).flatten(1)
    return [{k: v.cpu() for k, v in found.items()} for found in detections]


def read_classes(outputs: Outputs, images: list[Tensor], size: int) -> list[Tensor]:
    """Class probabilities (C,) of each image."""
    return list(outputs.classification.softmax(dim=1).cpu())


READERS = {"seg": read_masks, "det": read_detections, "cls": read_classes}


@torch.inference_mode()
def predict(model: nn.Module, task: str, images: list[tv_tensors.Image], size: int) -> list:
    """What the model says about images (each (3, H, W) uint8) for one task, in their own pixels."""
    model.eval()
    device = next(model.parameters()).device
    batch, _ = collate([(image, {"label": torch.tensor(0)}) for image in images], eval_transform(task, size), "cls")
    return READERS[task](model(batch.to(device)), images, size)


def predict_set(model: nn.Module, dataset: MiniSet, size: int) -> list:
    """`predict` for a whole set, in its order."""
    images = [image for image, _ in dataset.samples]
    starts = tqdm(range(0, len(images), EVAL_BATCH), desc=f"evaluating {dataset.task}", leave=False, delay=5)
    return [p for i in starts for p in predict(model, dataset.task, images[i : i + EVAL_BATCH], size)]


def confusion_matrix(truth: Tensor, guess: Tensor, classes: int) -> Tensor:
    """(C, C) int64 counts, true class by row and predicted class by column; truth 255 is left out."""
    kept = truth != IGNORE
    pairs = truth[kept].long() * classes + guess[kept].long()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_iou(matrix: Tensor) -> Tensor:
    """IoU (C,) of each class of a confusion matrix; NaN for a class that does not occur at all."""
    hits = matrix.diagonal().double()
    return hits / (matrix.sum(0) + matrix.sum(1) - hits)


def segmentation_metrics(dataset: MiniSet, masks: list[Tensor]) -> dict:
    """mIoU with its floor, IoU of each class (None where it does not occur) and the confusion matrix."""
    n = len(VOC_CLASSES)
    truths = [target["mask"].as_subclass(Tensor) for _, target in dataset.samples]
    matrix = sum(confusion_matrix(t, m, n) for t, m in zip(truths, masks, strict=True))
    floor = sum(confusion_matrix(t, torch.zeros_like(t), n) for t in truths)
    return {
        "mIoU": class_iou(matrix).nanmean().item(),
        "floor": class_iou(floor).nanmean().item(),
        "per_class": dict(zip(VOC_CLASSES, _plain(class_iou(matrix)), strict=True)),
        "confusion": matrix.tolist(),
    }


def detection_metrics(dataset: MiniSet, detections: list[dict[str, Tensor]]) -> dict:
    """mAP@50, mAP and AP@50 of each class (None where the set has no object of it), by pycocotools."""
    classes = dataset.classes
    precision = coco_precision(dataset, detections)  # (10 overlaps, 101 recalls, C), -1 where a class has no object
    per_class = [p[p > -1].mean() if (p > -1).any() else np.nan for p in precision[0].T]
    return {
        "mAP@50": float(np.nan_to_num(np.nanmean(per_class))) if not np.isnan(per_class).all() else 0.0,
        "mAP": float(precision[precision > -1].mean()) if (precision > -1).any() else 0.0,
        "floor": 0.0,
        "per_class": dict(zip(classes.det, _plain(torch.tensor(per_class)), strict=True)),
    }


def coco_precision(dataset: MiniSet, detections: list[dict[str, Tensor]]) -> np.ndarray:
    """COCOeval's precision over all sizes at 100 detections an image, (10 overlaps, 101 recalls, C)."""
    run = coco_evaluation(dataset, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        run.accumulate()
    return run.eval["precision"][:, :, :, 0, 2]


def coco_evaluation(dataset: MiniSet, detections: list[dict[str, Tensor]], **params) -> COCOeval:
    """COCOeval, with these parameters of its own, after matching every detection to the truth: ready to accumulate."""
    ids = dataset.classes.det_ids
    rows = [
        (image_id, *box, score, ids[label])
        for image_id, found in zip(dataset.ids, detections, strict=True)
        for box, score, label in zip(
            box_convert(found["boxes"], "xyxy", "xywh").tolist(),
            found["scores"].tolist(),
            found["labels"].tolist(),
            strict=True,
        )
    ]
    truth = read_coco(layout.coco_json(dataset.root, dataset.split))
    truth["categories"] = [{"id": i, "name": n} for i, n in zip(ids, dataset.classes.det, strict=True)]
    for number, a in enumerate(truth["annotations"], 1):
        a["id"] = number  # COCOeval takes an object with id 0 for missed
        a.setdefault("area", a["bbox"][2] * a["bbox"][3])
        a.setdefault("iscrowd", 0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        # an array of no rows is what loadRes cannot read: one detection of score 0 outside every image stands for it
        result = coco.loadRes(np.array(rows or [(dataset.ids[0], -2.0, -2.0, 1.0, 1.0, 0.0, ids[0])]))
        run = COCOeval(coco, result, "bbox")
        run.params.imgIds = sorted(dataset.ids)
        vars(run.params).update(params)
        run.evaluate()
    return run


def classification_metrics(dataset: MiniSet, probabilities: list[Tensor]) -> dict:
    """Top-1 with its floor, recall of each class (None where the set has no image of it) and the confusion matrix."""
    n = len(dataset.classes.cls)
    truth = torch.stack([target["label"] for _, target in dataset.samples])
    matrix = confusion_matrix(truth, torch.stack(probabilities).argmax(1), n)
    recall = matrix.diagonal().double() / matrix.sum(1)
    return {
        "Top-1": (matrix.diagonal().sum() / matrix.sum()).item(),
        "floor": (matrix.sum(1).max() / matrix.sum()).item(),
        "per_class": dict(zip(dataset.classes.names("cls"), _plain(recall), strict=True)),
        "confusion": matrix.tolist(),
    }


def mask_score(guess: Tensor, target: dict[str, Tensor]) -> float:
    """Mean IoU of the classes that one image's mask or its prediction holds, background included."""
    matrix = confusion_matrix(target["mask"].as_subclass(Tensor), guess, len(VOC_CLASSES))
    return class_iou(matrix).nanmean().item()


def boxes_score(found: dict[str, Tensor], target: dict[str, Tensor]) -> float:
    """Share of right ones among an image's objects and shown detections together: TP / (TP + FP + FN), crowds left out.

    Detections below SHOWN are not counted; an object is found by the first one of its class with an overlap of .5.
    """
    shown, real = found["scores"] >= SHOWN, ~target["crowd"]
    boxes, labels = found["boxes"][shown], found["labels"][shown]
    truth, names = target["boxes"].as_subclass(Tensor)[real], target["labels"][real]
    match = (box_iou(boxes, truth) >= 0.5) & (labels[:, None] == names)
    taken = set()
    for row in match:
        taken |= set([i for i in row.nonzero().flatten().tolist() if i not in taken][:1])
    everything = len(boxes) + len(truth) - len(taken)
    return len(taken) / everything if everything else 1.0


def class_score(probabilities: Tensor, target: dict[str, Tensor]) -> float:
    """Probability that the model gives to the right class."""
    return probabilities[target["label"]].item()


IMAGE_SCORES = {"seg": mask_score, "det": boxes_score, "cls": class_score}  # how good one image's prediction is, 0 to 1
METRICS = {"seg": segmentation_metrics, "det": detection_metrics, "cls": classification_metrics}


def evaluate(model: nn.Module, dataset: MiniSet, size: int) -> dict:
    """All metrics of one task on one set; METRIC_NAMES[task] is the key of the one that counts."""
    metrics = METRICS[dataset.task](dataset, predict_set(model, dataset, size))
    assert 0 <= metrics[METRIC_NAMES[dataset.task]] <= 1
    return metrics | {"images": len(dataset)}


def _plain(values: Tensor) -> list[float | None]:
    """Numbers for JSON: None instead of NaN."""
    return [None if v != v else v for v in values.tolist()]
