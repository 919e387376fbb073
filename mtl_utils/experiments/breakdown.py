"""Where detection loses: six kinds of error, average precision by object size, and how tight the boxes are.

D. Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020. Section 2.2 tells six
kinds of error apart by the best overlap (IoU) of a false positive with the objects of its own class and of others:

classification  at least FOREGROUND_IOU with an object of another class
localisation    at least BACKGROUND_IOU, but less than FOREGROUND_IOU, with an object of its class
both            the same with an object of another class
duplicate       at least FOREGROUND_IOU with an object of its class that another detection has found
background      less than BACKGROUND_IOU with every object
missed          no false positive but an object: not found, and no error of classification or localisation concerns it

A false positive may fit several kinds, and the paper names no order. Its authors' program (tidecv) takes the first of
localisation, classification, duplicate, both, background; so does this file. Section 2.3 measures a kind by the mAP@50
that is gained if it alone is mended. The gains of all kinds need not add up to the missing mAP.
"""

import contextlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mtl_utils.data import MiniSet
from mtl_utils.detection import Detections
from mtl_utils.evaluation import MATCH_IOU, NO_DETECTION, coco_evaluation, mean_ap

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")  # of error
WITH_OBJECT = ("classification", "localisation")  # kinds whose mending gives a false positive an object
FOREGROUND_IOU = MATCH_IOU  # the paper's t_f: from here on a box lies on an object
BACKGROUND_IOU = 0.1  # the paper's t_b: below it a box lies beside an object
NOWHERE = list(NO_DETECTION[:4])  # left, top, width, height
RECALLS = np.linspace(0, 1, 101)  # at which COCO reads the precision


@dataclass(frozen=True)
class SizeScores:
    """Detection of the objects of one size."""

    objects: int  # without crowds
    ap50: float | None  # AP at an overlap of .5, mean over the classes; None without objects
    ap: float | None  # the same, mean over the overlaps .5:.95
    matched: int  # objects in which the centre of a detection of their class lies
    median_iou: float | None  # of these objects with the best such detection; None where there are none

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            "objects": self.objects,
            "AP@50": self.ap50,
            "AP": self.ap,
            "matched": self.matched,
            "median_iou": self.median_iou,
        }


@dataclass(frozen=True)
class Breakdown:
    """What a detector gets wrong on one set."""

    map50: float  # mAP@50, as evaluation.detection_metrics has it
    errors: dict[str, int]  # how many there are of each of KINDS
    gains: dict[str, float]  # mAP@50 that is gained if this kind alone is mended
    sizes: dict[str, SizeScores]  # by COCO's name of the size: small, medium, large

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON; None where there is no object."""
        sizes = {name: scores.as_dict() for name, scores in self.sizes.items()}
        return {"mAP@50": self.map50, "errors": self.errors, "gains": self.gains, "sizes": sizes}


def analyse(dataset: MiniSet, detections: Sequence[Detections]) -> Breakdown:
    """Break the errors of detections down, one dict an image in the set's order, in the images' own pixels."""
    run = coco_evaluation(dataset, detections)
    scenes = read_scenes(run)
    errors = find_errors(scenes)
    totals = Counter({kind: 0 for kind in KINDS})
    totals.update(error.kind for error in errors)
    baseline = mended_map(scenes, errors, None)
    gains = {}
    for kind in KINDS:
        gains[kind] = mended_map(scenes, errors, kind) - baseline
    return Breakdown(map50=baseline, errors=dict(totals), gains=gains, sizes=by_size(run, scenes))


# ---- what COCOeval matched


@dataclass(frozen=True)
class Object:
    """One object that is no crowd."""

    number: int  # its id in evaluation.coco_truth, from 1 on
    category: int  # COCO's id of its class
    xywh: list[float]  # left, top, width, height in pixels
    area: float  # square pixels: of the outline where the COCO file has one, else of the box


@dataclass(frozen=True)
class Detection:
    """One detection, matched at an overlap of .5."""

    number: int  # COCOeval's id
    category: int  # COCO's id of its class
    xywh: list[float]  # left, top, width, height in pixels
    score: float
    match: int  # the number of the object or crowd that it lies on; 0: of none
    on_crowd: bool  # neither right nor wrong

    @property
    def is_right(self) -> bool:
        """Whether it is a true positive."""
        return self.match > 0 and not self.on_crowd

    @property
    def is_wrong(self) -> bool:
        """Whether it is a false positive."""
        return self.match == 0


@dataclass(frozen=True)
class Scene:
    """One image."""

    objects: list[Object]  # M of them
    detections: list[Detection]  # N, class after class, the best of each class first
    overlap: np.ndarray  # (N, M) IoU of detections and objects


def read_scenes(run: COCOeval) -> list[Scene]:
    """All images of an evaluation, by their ids: objects, detections, and which of them COCOeval matched."""
    any_size = run.params.areaRng[0]
    found: dict[int, list[Detection]] = defaultdict(list)  # by image id
    for result in run.evalImgs:  # one a class, size and image, None where there is nothing
        if result is not None and result["aRng"] == any_size:
            found[result["image_id"]] += read_detections(run.cocoDt, result)
    scenes = []
    for image in run.params.imgIds:
        objects = read_objects(run.cocoGt, image)
        detections = found[image]
        overlap = overlaps(detections, objects)
        scenes.append(Scene(objects, detections, overlap))
    return scenes


def read_detections(results: COCO, result: dict[str, Any]) -> list[Detection]:
    """The detections of one class in one image, from COCOeval's result for them; the best first."""
    matches = result["dtMatches"][0]  # (N,) at the first overlap, .5
    on_crowd = result["dtIgnore"][0]  # (N,)
    detections = []
    for place, number in enumerate(result["dtIds"]):
        row = results.anns[number]
        if row["bbox"] == NOWHERE:  # it stands for no detections at all
            continue
        detection = Detection(
            number=number,
            category=row["category_id"],
            xywh=row["bbox"],
            score=row["score"],
            match=int(matches[place]),
            on_crowd=bool(on_crowd[place]),
        )
        detections.append(detection)
    return detections


def read_objects(truth: COCO, image: int) -> list[Object]:
    """The objects of an image, without crowds."""
    objects = []
    for row in truth.imgToAnns[image]:
        if not row["iscrowd"]:
            objects.append(Object(row["id"], row["category_id"], row["bbox"], row["area"]))
    return objects


def overlaps(detections: list[Detection], objects: list[Object]) -> np.ndarray:
    """IoU (N, M) of detections and objects, computed as COCOeval does."""
    first = [detection.xywh for detection in detections]
    second = [thing.xywh for thing in objects]
    no_crowd = [0] * len(objects)
    shape = (len(detections), len(objects))
    return np.reshape(coco_mask.iou(first, second, no_crowd), shape)  # it gives [] where one is empty


# ---- errors and their kinds (section 2.2)


class Error(NamedTuple):
    """One error."""

    kind: str
    detection: Detection | None  # the false positive; None for a missed object
    thing: Object | None  # the object that mending gives the false positive, or the missed one; else None


class Best(NamedTuple):
    """The object that a detection overlaps most."""

    iou: float
    thing: Object | None  # None where there is no object at all


def find_errors(scenes: list[Scene]) -> list[Error]:
    """Every false positive and every missed object, with its kind."""
    errors = []
    for scene in scenes:
        in_scene = []
        for detection, row in zip(scene.detections, scene.overlap, strict=True):
            if detection.is_wrong:
                in_scene.append(judge(detection, scene.objects, row))
        errors += in_scene
        errors += missed_objects(scene, in_scene)
    return errors


def judge(detection: Detection, objects: list[Object], row: np.ndarray) -> Error:
    """The error that a false positive is, from its IoU (M,) with the objects of its image."""
    same, other = Best(0.0, None), Best(0.0, None)  # of the detection's class, of another one
    for thing, iou in zip(objects, row, strict=True):
        if thing.category == detection.category:
            same = max(same, Best(iou, thing), key=lambda best: best.iou)
        else:
            other = max(other, Best(iou, thing), key=lambda best: best.iou)
    if BACKGROUND_IOU <= same.iou < FOREGROUND_IOU:
        return Error("localisation", detection, same.thing)
    if other.iou >= FOREGROUND_IOU:
        return Error("classification", detection, other.thing)
    if same.iou >= FOREGROUND_IOU:  # were the object free, COCOeval would have matched them
        return Error("duplicate", detection, None)
    if other.iou >= BACKGROUND_IOU:
        return Error("both", detection, None)
    return Error("background", detection, None)


def missed_objects(scene: Scene, errors: list[Error]) -> list[Error]:
    """The objects of an image that neither a detection found nor mending one of its other errors would find."""
    found = {detection.match for detection in scene.detections}
    concerned = {error.thing.number for error in errors if error.thing is not None}
    missed = []
    for thing in scene.objects:
        if thing.number not in found | concerned:
            missed.append(Error("missed", None, thing))
    return missed


# ---- what mending a kind gains (section 2.3)


class Point(NamedTuple):
    """What a detection means to the precision-recall curve of a class."""

    category: int  # COCO's id
    score: float
    is_right: bool


def mended_map(scenes: list[Scene], errors: list[Error], kind: str | None) -> float:
    """mAP@50 after mending one kind of error; None: as it is.

    Mended, a wrong class becomes the object's and a loose box the object's. If an object then has two detections, the
    one with the lower score is left out. Other false positives are left out, and missed objects are not counted.
    The mean is over the classes that have objects before mending.
    """
    to_mend = [error for error in errors if error.kind == kind]
    points = list(mended_points(scenes, to_mend).values())
    objects: Counter[int] = Counter()  # by category
    for scene in scenes:
        objects.update(thing.category for thing in scene.objects)
    values = []
    for category, count in objects.items():
        of_class = [point for point in points if point.category == category]
        left = count - missed_of_class(to_mend, category)
        values.append(average_precision(of_class, left))
    return float(np.mean(values)) if values else 0.0


def missed_of_class(errors: list[Error], category: int) -> int:
    """How many missed objects of one class are among some errors."""
    missed = [error.thing for error in errors if error.kind == "missed"]
    return sum(thing is not None and thing.category == category for thing in missed)


def mended_points(scenes: list[Scene], to_mend: list[Error]) -> dict[int, Point]:
    """The points, by number, of all detections but those on crowds, with these errors (of one kind) mended."""
    points = {}
    for detection in all_detections(scenes):
        if not detection.on_crowd:
            points[detection.number] = Point(detection.category, detection.score, detection.is_right)
    for error in to_mend:
        if error.detection is not None:
            del points[error.detection.number]
    give_objects(points, scenes, [error for error in to_mend if error.kind in WITH_OBJECT])
    return points


def all_detections(scenes: list[Scene]) -> Iterator[Detection]:
    """The detections of all images, in their order."""
    for scene in scenes:
        yield from scene.detections


def give_objects(points: dict[int, Point], scenes: list[Scene], errors: list[Error]) -> None:
    """Let mended false positives find their objects: of all detections of an object the best is right, others go.

    points: by the number of the detection, without the errors' ones; changed in place.
    """
    finder = {detection.match: detection for detection in all_detections(scenes) if detection.is_right}
    rivals: dict[int, list[Detection]] = defaultdict(list)  # by the number of the object they want
    category = {}
    for error in errors:
        assert error.detection is not None and error.thing is not None
        rivals[error.thing.number].append(error.detection)
        category[error.thing.number] = error.thing.category
    for number, mended in rivals.items():
        if number in finder:
            earlier = finder[number]
            del points[earlier.number]
            mended.append(earlier)
        best = max(mended, key=lambda detection: detection.score)
        points[best.number] = Point(category[number], best.score, is_right=True)


def average_precision(points: list[Point], objects: int) -> float:
    """COCO's average precision of one class with this many objects; 0 where none is left."""
    if objects == 0:
        return 0.0
    ordered = sorted(points, key=lambda point: -point.score)  # equal ones keep their order, as in COCOeval
    hits = np.cumsum([point.is_right for point in ordered])
    precision = hits / np.arange(1, len(ordered) + 1)
    recall = hits / objects
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS)  # (101,): the first rank that reaches the recall
    reached = places < len(ordered)
    total = best_from_here[places[reached]].sum()  # beyond the last recall the precision is 0
    return float(total / len(RECALLS))


# ---- by size


def by_size(run: COCOeval, scenes: list[Scene]) -> dict[str, SizeScores]:
    """Scores of small, medium and large objects: below 32^2 square pixels of area, between, above 96^2.

    As in COCO an object whose area is a limit itself counts on both sides of it.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        run.accumulate()
    precision = run.eval["precision"][..., -1]  # (10 overlaps, 101 recalls, C, 4 sizes) at 100 detections an image
    boxes = matched_boxes(scenes)
    scores = {}
    for place, name in enumerate(run.params.areaRngLbl):
        if name == "all":
            continue
        least, most = run.params.areaRng[place]
        ious = [iou for thing, iou in boxes if least <= thing.area <= most]
        matched = [iou for iou in ious if iou is not None]
        of_size = precision[..., place]  # -1 where a class has no object
        known = of_size[of_size > -1]
        scores[name] = SizeScores(
            objects=len(ious),
            ap50=mean_ap(of_size[0]) if known.size else None,
            ap=float(known.mean()) if known.size else None,
            matched=len(matched),
            median_iou=float(np.median(matched)) if matched else None,
        )
    return scores


def matched_boxes(scenes: list[Scene]) -> list[tuple[Object, float | None]]:
    """Each object with the IoU of its best box, None where it has none.

    That is the box with the highest score among the detections of its class whose centres lie in it.
    """
    boxes = []
    for scene in scenes:
        for thing, column in zip(scene.objects, scene.overlap.T, strict=True):
            best_score, best_iou = -1.0, None
            for detection, iou in zip(scene.detections, column, strict=True):
                is_candidate = detection.category == thing.category and centre_lies_in(detection.xywh, thing.xywh)
                if is_candidate and detection.score > best_score:
                    best_score, best_iou = detection.score, float(iou)
            boxes.append((thing, best_iou))
    return boxes


def centre_lies_in(inner: list[float], outer: list[float]) -> bool:
    """Whether the centre of a box lies in another one, its edge included; both left, top, width, height."""
    x = inner[0] + inner[2] / 2
    y = inner[1] + inner[3] / 2
    left, top, width, height = outer
    return left <= x <= left + width and top <= y <= top + height
