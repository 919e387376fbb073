"""Folds of the training sets, so that settings can be chosen without a look at the images that results are reported on.

A fold is a data root of its own, with every fourth training image as val and the other three quarters as train.
"""

import json
import shutil
from pathlib import Path

from mtl_utils import layout
from mtl_utils.files import UserError
from mtl_utils.tasks import FOLDERS

FOLDS = 4


def write_fold(root: Path, out: Path, fold: int) -> None:
    """Copy the training sets below `root` into the data root `out`, image i of each as val where i % 4 == fold.

    Raises UserError when `out` already exists.
    """
    if out.exists():
        raise UserError(f"{out} exists already: delete it or name another folder.")
    pairs = [(image, mask) for image, mask in layout.voc_pairs(root, "train") if mask]
    for split, chosen in deal(pairs, fold).items():
        for path in (file for pair in chosen for file in pair):
            copy(path, layout.split_folder(out, "seg", split) / path.name)
    for folder in layout.class_folders(root, "train"):
        for split, chosen in deal(layout.class_images(folder), fold).items():
            for path in chosen:
                copy(path, layout.split_folder(out, "cls", split) / folder.name / path.name)
    coco = json.loads(layout.coco_json(root, "train").read_text(encoding="utf-8"))
    for split, chosen in deal(coco["images"], fold).items():
        write_coco(root, out, split, coco, chosen)


def deal(things: list, fold: int) -> dict[str, list]:
    """Every fourth thing for val, the others for train."""
    return {
        "train": [thing for i, thing in enumerate(things) if i % FOLDS != fold],
        "val": [thing for i, thing in enumerate(things) if i % FOLDS == fold],
    }


def write_coco(root: Path, out: Path, split: str, coco: dict, images: list[dict]) -> None:
    """The photographs of one split and the annotations that belong to them."""
    kept = {image["id"] for image in images}
    annotations = [a for a in coco["annotations"] if a["image_id"] in kept]
    path = layout.json_path(out, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**coco, "images": images, "annotations": annotations}), encoding="utf-8")
    for image in images:
        photo = layout.coco_image(root, "train", image["file_name"])
        copy(photo, out / FOLDERS["det"] / split / photo.name)


def copy(source: Path, target: Path) -> None:
    """Copy a file into a folder that may not exist yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
