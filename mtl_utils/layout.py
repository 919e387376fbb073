"""Where the files of the three mini sets lie below the data root: the one place that knows the folders.

The loaders, `data check` and `data fetch` all ask here.  A folder or file that is missing is a UserError.

    mini_voc_seg/{train,val}/NAME.jpg + NAME.png   (or {train,val}/JPEGImages/ + {train,val}/SegmentationClass/)
    mini_coco_det/{train,val}/NAME.jpg             (or images/, data/) + annotations/mini_instances_{train,val}2017.json
    imagenette_160/{train,val}/CLASS/NAME.JPEG
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePath

from mtl_utils.files import UserError
from mtl_utils.tasks import FOLDERS

JPEG = (".jpg", ".jpeg")
PHOTO = (*JPEG, ".png")  # what a class folder may hold; a PNG beside a VOC photograph is its mask


def split_folder(root: Path, task: str, split: str) -> Path:
    """The folder of one split of one task, whether it exists or not."""
    return Path(root) / FOLDERS[task] / split


def has_set(root: Path, task: str) -> bool:
    """Whether the root holds a folder for the task ("seg", "det" or "cls")."""
    return (Path(root) / FOLDERS[task]).is_dir()


def entries(folder: Path, suffixes: Iterable[str] = ()) -> list[Path]:
    """The files of a folder that end in one of the suffixes, in any case, sorted by name; without suffixes its folders.

    Hidden files (.DS_Store, ._NAME.jpg) are left out.  Raises UserError when the folder cannot be listed.
    """
    try:
        found = sorted(p for p in Path(folder).iterdir() if not p.name.startswith("."))
        if not suffixes:
            return [p for p in found if p.is_dir()]
        return [p for p in found if p.suffix.lower() in suffixes and not p.is_dir()]
    except OSError as error:
        raise _missing(folder, "folder") from error


def voc_folders(root: Path, split: str) -> tuple[Path, Path]:
    """The folders of the photographs and of the masks: one and the same unless VOC's own two folders are there."""
    folder = split_folder(root, "seg", split)
    if (folder / "JPEGImages").is_dir():
        return folder / "JPEGImages", folder / "SegmentationClass"
    return folder, folder


def voc_masks(root: Path, split: str) -> list[Path]:
    """Every mask of the split, sorted by name."""
    masks = voc_folders(root, split)[1]
    return entries(masks, (".png",)) if masks.is_dir() else []


def voc_pairs(root: Path, split: str) -> list[tuple[Path, Path | None]]:
    """Every photograph of the split with its mask (None: there is none), sorted by name; a mask is never an image."""
    masks = {mask.stem: mask for mask in voc_masks(root, split)}
    return [(image, masks.get(image.stem)) for image in entries(voc_folders(root, split)[0], JPEG)]


def json_path(root: Path, split: str) -> Path:
    """Where the COCO annotations of the split belong, whether they exist or not."""
    return Path(root) / FOLDERS["det"] / "annotations" / f"mini_instances_{split}2017.json"


def coco_json(root: Path, split: str) -> Path:
    """The COCO annotations of the split.  Raises UserError when they are missing."""
    path = json_path(root, split)
    if not path.is_file():
        raise _missing(path, "annotation file")
    return path


def coco_image(root: Path, split: str, file_name: str) -> Path | None:
    """The photograph of a COCO `file_name`, wherever below mini_coco_det/ it lies; None when it is nowhere.

    Only the last part of `file_name` counts, so that nothing outside the data root is ever opened.
    """
    home, name = Path(root) / FOLDERS["det"], PurePath(file_name).name
    for folder in (split, "images", f"images/{split}", f"data/{split}", "data"):
        if name and os.path.isfile(home / folder / name):  # unlike Path.is_file, never raises
            return home / folder / name
    return None


def class_folders(root: Path, split: str) -> list[Path]:
    """The class folders of the split, sorted by name, so that the labels are the same in train and val."""
    return entries(split_folder(root, "cls", split))


def class_images(folder: Path) -> list[Path]:
    """The photographs of one class folder, sorted by name."""
    return entries(folder, PHOTO)


def _missing(path: Path, what: str) -> UserError:
    """The error for a folder or file that is not there."""
    return UserError(
        f"The {what} {path} is missing or unreadable: run `python -m mtl_utils data check ROOT` to see all that is "
        "missing, or choose another root with --data-root."
    )


def read_coco(path: Path) -> dict:
    """The contents of a COCO JSON. Raises UserError when it is not one."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        return {key: contents[key] for key in ("images", "annotations", "categories")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a COCO JSON ({error!r}): restore it from its source.") from error
