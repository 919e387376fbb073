"""Folds of the training sets, so that settings can be chosen without a look at the images that results are reported on.

A fold is a data root of its own, with every fourth training image as val and the other three quarters as train; in
cross-validation also the images of val are train, so that they and the four quarters are val once each.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from mtl_utils import layout
from mtl_utils.files import UserError

FOLDS = 4

Item = TypeVar("Item")
Entry = dict[str, Any]  # an image or an annotation of a COCO JSON
Coco = dict[str, Any]  # the contents of one


def write_fold(root: Path, out: Path, fold: int, add_val: bool = False) -> None:
    """Copy the training sets below `root` into the data root `out`, image i of each as val where i % 4 == fold.

    add_val: whether the images of val join train, as in cross-validation, where every image is once in val.
    Raises UserError when `out` already exists, or when a photograph or a mini set is missing.
    """
    if out.exists():
        raise UserError(f"{out} exists already: delete it or name another folder.")
    whole = ["val"] if add_val else []  # the splits that are train in every fold
    write_seg(root, out, fold, whole)
    write_cls(root, out, fold, whole)
    write_det(root, out, fold, whole)


def write_cross_fold(root: Path, parent: Path, fold: int) -> Path:
    """The data root of fold 1 to FOLDS of cross-validation, made below `parent` unless it is there already.

    A quarter of the training images is val, all other images are train.
    """
    out = parent / f"fold{fold}"
    if not out.exists():
        part = out.with_name(out.name + ".part")  # what a killed process leaves is no fold
        shutil.rmtree(part, ignore_errors=True)
        write_fold(root, part, fold - 1, add_val=True)
        part.rename(out)
    return out


def deal(items: Sequence[Item], fold: int) -> dict[str, list[Item]]:
    """Every fourth item for val, the others for train."""
    parts: dict[str, list[Item]] = {"train": [], "val": []}
    for number, item in enumerate(items):
        split = "val" if number % FOLDS == fold else "train"
        parts[split].append(item)
    return parts


def write_seg(root: Path, out: Path, fold: int, whole: list[str]) -> None:
    """Copy the photographs of segmentation that have a mask, with their masks."""
    pairs = masked_pairs(root, "train")
    parts = deal(pairs, fold)
    for split, part in parts.items():
        copy_pairs(part, layout.split_folder(out, "seg", split))
    for split in whole:
        pairs = masked_pairs(root, split)
        folder = layout.split_folder(out, "seg", "train")
        copy_pairs(pairs, folder, f"{split}-")


def copy_pairs(pairs: list[tuple[Path, Path]], folder: Path, prefix: str = "") -> None:
    """Copy photographs and their masks into a folder; a prefix keeps the names of two splits apart."""
    for image, mask in pairs:
        copy(image, folder / f"{prefix}{image.name}")
        copy(mask, folder / f"{prefix}{mask.name}")


def masked_pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """The photographs of a split that have a mask, and their masks."""
    return [(image, mask) for image, mask in layout.voc_pairs(root, split) if mask]


def write_cls(root: Path, out: Path, fold: int, whole: list[str]) -> None:
    """Copy the photographs of classification; each class is dealt on its own, so that every fold holds all classes."""
    for class_folder in layout.class_folders(root, "train"):
        images = layout.class_images(class_folder)
        for split, part in deal(images, fold).items():
            folder = layout.split_folder(out, "cls", split)
            copy_class(part, folder / class_folder.name)
    for split in whole:
        folder = layout.split_folder(out, "cls", "train")
        for class_folder in layout.class_folders(root, split):
            images = layout.class_images(class_folder)
            copy_class(images, folder / class_folder.name, f"{split}-")


def copy_class(images: list[Path], folder: Path, prefix: str = "") -> None:
    """Copy photographs into the folder of a class; a prefix keeps the names of two splits apart."""
    for image in images:
        copy(image, folder / f"{prefix}{image.name}")


def write_det(root: Path, out: Path, fold: int, whole: list[str]) -> None:
    """Copy the photographs of detection and write their annotations."""
    coco = layout.read_coco(layout.coco_json(root, "train"))
    parts: dict[str, Coco] = {}
    for split, images in deal(coco["images"], fold).items():
        folder = layout.split_folder(out, "det", split)
        copy_photographs(root, "train", images, folder)
        parts[split] = part_of(coco, images)
    for split in whole:
        json_path = layout.coco_json(root, split)
        other = layout.read_coco(json_path)
        folder = layout.split_folder(out, "det", "train")
        prefix = f"{split}-"
        copy_photographs(root, split, other["images"], folder, prefix)
        parts["train"] = joined(parts["train"], other, prefix)
    for split, part in parts.items():
        path = layout.json_path(out, split)
        layout.write_coco(path, part)


def copy_photographs(root: Path, split: str, images: list[Entry], folder: Path, prefix: str = "") -> None:
    """Copy the photographs that a split's COCO JSON lists into a folder; a prefix keeps the names of two splits apart.

    Raises UserError where a photograph is nowhere.
    """
    finder = layout.PhotoFinder(root, split)
    for image in images:
        photograph = finder.find(image["file_name"])
        if photograph is None:
            raise layout.missing(layout.split_folder(root, "det", split) / image["file_name"], "photograph")
        copy(photograph, folder / f"{prefix}{photograph.name}")


def joined(one: Coco, other: Coco, prefix: str) -> Coco:
    """Two COCO JSONs as one, in which the ids of the other's images and the names of its files begin with the prefix.

    Raises UserError where their categories differ.
    """
    if one["categories"] != other["categories"]:
        raise UserError("The JSONs of train and val list other categories: give both the same list.")
    images = list(one["images"])
    annotations = list(one["annotations"])
    for image in other["images"]:
        name = layout.path_parts(image["file_name"])[-1]
        renamed = {"id": f"{prefix}{image['id']}", "file_name": f"{prefix}{name}"}
        images.append(image | renamed)
    for annotation in other["annotations"]:
        renamed = {"image_id": f"{prefix}{annotation['image_id']}"}
        if "id" in annotation:
            renamed["id"] = f"{prefix}{annotation['id']}"
        annotations.append(annotation | renamed)
    return one | {"images": images, "annotations": annotations}


def part_of(coco: Coco, images: list[Entry]) -> Coco:
    """A COCO JSON that is cut down to these images and the annotations that belong to them."""
    image_ids = {image["id"] for image in images}
    annotations = [annotation for annotation in coco["annotations"] if annotation["image_id"] in image_ids]
    return {**coco, "images": images, "annotations": annotations}


def copy(source: Path, target: Path) -> None:
    """Copy a file into a folder that may not exist yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
