"""Folds of the training sets, so that settings can be chosen without a look at the images that results are reported on.

A fold is a data root of its own, with every fourth training image as val and the other three quarters as train.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from mtl_utils import layout
from mtl_utils.files import UserError

FOLDS = 4

Item = TypeVar("Item")
Coco = dict[str, Any]  # the contents of a COCO JSON


def write_fold(root: Path, out: Path, fold: int) -> None:
    """Copy the training sets below `root` into the data root `out`, image i of each as val where i % 4 == fold.

    Raises UserError when `out` already exists, or when a photograph or a mini set is missing.
    """
    if out.exists():
        raise UserError(f"{out} exists already: delete it or name another folder.")
    write_seg(root, out, fold)
    write_cls(root, out, fold)
    write_det(root, out, fold)


def deal(items: Sequence[Item], fold: int) -> dict[str, list[Item]]:
    """Every fourth item for val, the others for train."""
    parts: dict[str, list[Item]] = {"train": [], "val": []}
    for number, item in enumerate(items):
        split = "val" if number % FOLDS == fold else "train"
        parts[split].append(item)
    return parts


def write_seg(root: Path, out: Path, fold: int) -> None:
    """Copy the photographs of segmentation that have a mask, with their masks."""
    pairs = [(image, mask) for image, mask in layout.voc_pairs(root, "train") if mask]
    for split, part in deal(pairs, fold).items():
        folder = layout.split_folder(out, "seg", split)
        for image, mask in part:
            copy(image, folder / image.name)
            copy(mask, folder / mask.name)


def write_cls(root: Path, out: Path, fold: int) -> None:
    """Copy the photographs of classification; each class is dealt on its own, so that every fold holds all classes."""
    for class_folder in layout.class_folders(root, "train"):
        images = layout.class_images(class_folder)
        for split, part in deal(images, fold).items():
            folder = layout.split_folder(out, "cls", split) / class_folder.name
            for image in part:
                copy(image, folder / image.name)


def write_det(root: Path, out: Path, fold: int) -> None:
    """Copy the photographs of detection and write their annotations."""
    coco = layout.read_coco(layout.coco_json(root, "train"))
    finder = layout.PhotoFinder(root, "train")
    for split, images in deal(coco["images"], fold).items():
        layout.write_coco(layout.json_path(out, split), part_of(coco, images))
        for image in images:
            photograph = find_photograph(root, finder, image["file_name"])
            copy(photograph, layout.split_folder(out, "det", split) / photograph.name)


def part_of(coco: Coco, images: list[dict[str, Any]]) -> Coco:
    """A COCO JSON that is cut down to these images and the annotations that belong to them."""
    image_ids = {image["id"] for image in images}
    annotations = [annotation for annotation in coco["annotations"] if annotation["image_id"] in image_ids]
    return {**coco, "images": images, "annotations": annotations}


def find_photograph(root: Path, finder: layout.PhotoFinder, name: str) -> Path:
    """The photograph that a COCO JSON lists.  Raises UserError when it is nowhere."""
    path = finder.find(name)
    if path is None:
        raise layout.missing(layout.split_folder(root, "det", "train") / name, "photograph")
    return path


def copy(source: Path, target: Path) -> None:
    """Copy a file into a folder that may not exist yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
