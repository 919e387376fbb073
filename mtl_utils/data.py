"""The three mini sets as torch datasets: images decoded once, kept as uint8, with their targets as tv_tensors.

A sample is (image, target): image is a tv_tensors.Image, (3, H, W) uint8 RGB in its own size; target is a dict:
    seg: {"mask": Mask (H, W) uint8 of 0..20 and 255}
    det: {"boxes": BoundingBoxes (N, 4) XYXY float32 in pixels, "labels": (N,) int64, "crowd": (N,) bool}
    cls: {"label": () int64}
"""

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm

from mtl_utils import layout, pictures
from mtl_utils.files import UserError
from mtl_utils.tasks import FOLDERS, IGNORE, Classes, Task

Target = dict[str, Tensor]
Sample = tuple[tv_tensors.Image, Target]


def find_classes(root: Path, split: str = "train") -> Classes:
    """The class lists that the data itself gives: COCO's category table, sorted by id, and the folder names."""
    path = layout.coco_json(root, split)
    categories = layout.read_coco(path)["categories"]
    try:
        table = sorted((category["id"], category["name"]) for category in categories)
        ids, names = zip(*table, strict=True)  # a ValueError where there is no category
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no valid list of categories: `data check` says what is wrong.") from error
    # WordNet ids where they are known, so that a checkpoint fits the data whichever names its folders have
    class_names = tuple(layout.folder_of_class(root, split))
    return Classes(det=names, det_ids=ids, cls=class_names)


def read_image(path: Path, size: pictures.Size | None = None) -> tv_tensors.Image:
    """Decode a picture to (3, H, W) uint8 RGB, upright; `size` (width, height) is what its labels say of it.

    It is left unturned where `size` fits the stored pixels alone. Raises UserError when it is missing, truncated, too
    large or no picture.
    """
    photo = pictures.read_photo(path, size)
    pixels = TF.pil_to_tensor(photo)  # (3, H, W) uint8
    return tv_tensors.Image(pixels)


def read_mask(path: Path) -> tv_tensors.Mask:
    """Read a VOC mask, (H, W) uint8 of class indices, upright. Raises UserError on anything but classes and 255."""
    values = pictures.read_mask(path)
    mask = torch.from_numpy(values)  # (H, W) uint8
    return tv_tensors.Mask(mask)


class MiniSet(Dataset[Sample]):
    """One split of one task, wholly in memory; `ids` names each image (COCO's image id, else the file's name)."""

    def __init__(self, task: Task, root: Path, split: str, classes: Classes):
        self.task = task
        self.split = split
        self.root = root
        self.classes = classes
        entries = self.entries()
        if not entries:
            folder = layout.set_folder(root, task)
            raise UserError(f"{folder} has no {split} images: run `python -m mtl_utils data check`.")
        # decoded once: a mini set takes some hundred MB, and decoding costs more than a training step
        self.ids = [entry.key for entry in entries]
        self.paths = [entry.path for entry in entries]
        # a bar only where reading takes longer than two seconds
        title = f"reading {FOLDERS[task]}/{split}"
        bar = tqdm(entries, desc=title, unit="image", leave=False, delay=2)
        self.samples: list[Sample] = [read_sample(task, entry) for entry in bar]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def entries(self) -> list["Entry"]:
        """Every image of the set with what is known about it, before anything is decoded."""
        if self.task == "seg":
            return seg_entries(self.root, self.split)
        if self.task == "det":
            return det_entries(self.root, self.split, self.classes, self.coco)
        return cls_entries(self.root, self.split, self.classes)

    @cached_property
    def coco(self) -> dict[str, Any]:
        """A detection set's COCO JSON, read once; evaluation needs it too."""
        return layout.read_coco(layout.coco_json(self.root, self.split))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that images and targets take."""
        total = 0
        for image, target in self.samples:
            total += image.nbytes
            total += sum(value.nbytes for value in target.values())
        return total


class BoxRow(NamedTuple):
    """One object of a COCO JSON."""

    xywh: tuple[float, float, float, float]  # left, top, width, height in pixels
    label: int  # class index
    crowd: bool  # a group that is outlined as one: neither object nor background


class Entry(NamedTuple):
    """One image of a set that is not decoded yet."""

    key: str | int  # COCO's image id, else the name
    path: Path
    label: Path | list[BoxRow] | int  # the mask's path (seg), the objects (det), the class index (cls)


def seg_entries(root: Path, split: str) -> list[Entry]:
    """Every VOC image with its mask. Raises UserError for an image without one."""
    entries = []
    for image, mask in layout.voc_pairs(root, split):
        if mask is None:
            raise UserError(f"{image} has no mask beside it: fetch NAME.png or take the image out.")
        entries.append(Entry(image.stem, image, mask))
    return entries


def det_entries(root: Path, split: str, classes: Classes, coco: dict[str, Any]) -> list[Entry]:
    """Every COCO image with its objects, class indices instead of category ids, in the order of the JSON.

    Raises UserError where the JSON is faulty, names an image that is missing or a class the model does not have.
    """
    path = layout.coco_json(root, split)
    try:
        check_categories(path, coco, classes)
        photos = find_photos(root, split, coco)
        objects: dict[int, list[BoxRow]] = {key: [] for key in photos}
        for annotation in coco["annotations"]:  # crowds too: evaluation and the loss need them
            image = annotation["image_id"]
            if image not in objects or annotation["category_id"] not in classes.det_ids:
                number = annotation.get("id")
                raise UserError(f"{path}: annotation {number} names no known image or category: see `data check`.")
            objects[image].append(box_row(annotation, classes))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is faulty ({error!r}): `python -m mtl_utils data check` lists all faults.") from error
    return [Entry(key, photo, objects[key]) for key, photo in photos.items()]


def check_categories(path: Path, coco: dict[str, Any], classes: Classes) -> None:
    """Raise UserError where the JSON has a category, an id with its name, that the model was not built for."""
    # id and name together, so that a set in another order is not taken for this one
    present = {(category["id"], category["name"]) for category in coco["categories"]}
    known = set(zip(classes.det_ids, classes.det, strict=True))
    if not present <= known:
        raise UserError(f"{path} has categories the model was not trained for: take a model for {sorted(present)}.")


def find_photos(root: Path, split: str, coco: dict[str, Any]) -> dict[int, Path]:
    """The photograph of each image id. Raises UserError for the first that is missing."""
    photos = {}
    for image in coco["images"]:
        photo = layout.coco_image(root, split, image["file_name"])
        if photo is None:  # nowhere below the set's folder
            path = layout.coco_json(root, split)
            raise UserError(f"{image['file_name']}, which {path} lists, is missing: fetch it or take it out.")
        photos[image["id"]] = photo
    return photos


def box_row(annotation: dict[str, Any], classes: Classes) -> BoxRow:
    """One annotation; its category is known."""
    left, top, width, height = map(float, annotation["bbox"])
    label = classes.det_ids.index(annotation["category_id"])  # COCO's ids have gaps, indices have none
    crowd = bool(annotation.get("iscrowd", 0))  # other tools leave it out
    return BoxRow((left, top, width, height), label, crowd)


def cls_entries(root: Path, split: str, classes: Classes) -> list[Entry]:
    """Every Imagenette image with its class index. Raises UserError for a class the model does not have."""
    # a checkpoint may hold either kind of name, as a folder may
    known = [layout.class_name(name) for name in classes.cls]
    entries = []
    folders = layout.folder_of_class(root, split)
    for name, folder in folders.items():
        if name not in known:
            raise UserError(f"{folder} is a class the model was not trained for: its classes are {classes.cls}.")
        label = known.index(name)  # of training's list, whatever folders are here
        for path in layout.class_images(folder):
            key = f"{folder.name}/{path.stem}"  # a stem alone may stand in two folders
            entries.append(Entry(key, path, label))
    return entries


def read_sample(task: Task, entry: Entry) -> Sample:
    """Decode one image and make its target."""
    if isinstance(entry.label, Path):
        return seg_sample(entry.path, entry.label)
    image = read_image(entry.path)
    if isinstance(entry.label, list):  # of objects
        return image, det_target(image, entry.label)
    label = torch.tensor(entry.label)
    return image, {"label": label}


def seg_sample(path: Path, mask_path: Path) -> Sample:
    """A photograph with its mask. Raises UserError where they differ in size."""
    # read together, since the mask says which way up the photograph was labelled
    photo, values = pictures.read_pair(path, mask_path)
    image = tv_tensors.Image(TF.pil_to_tensor(photo))
    mask = tv_tensors.Mask(torch.from_numpy(values))
    return image, {"mask": mask}


def det_target(image: tv_tensors.Image, objects: list[BoxRow]) -> Target:
    """The target of a detection sample; boxes are clipped to the image and dropped where less than a pixel is left."""
    height, width = image.shape[-2:]
    xywh = [row.xywh for row in objects]
    rows = torch.tensor(xywh, dtype=torch.float32).reshape(-1, 4)  # (N, 4) XYWH, N may be 0
    corners = box_convert(rows, "xywh", "xyxy")
    boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width))
    boxes = TF.clamp_bounding_boxes(boxes)  # COCO's coordinates are rounded and may reach outside
    left, top, right, bottom = boxes.unbind(dim=1)
    kept = (right - left >= 1) & (bottom - top >= 1)  # (N,) bool
    boxes = tv_tensors.wrap(boxes[kept], like=boxes)  # indexing alone would give a plain tensor
    labels = torch.tensor([row.label for row in objects], dtype=torch.int64)
    crowd = torch.tensor([row.crowd for row in objects], dtype=torch.bool)
    return {"boxes": boxes, "labels": labels[kept], "crowd": crowd[kept]}


def classes_of(task: Task, target: Target) -> list[int]:
    """The class indices of one target: present ones without background (seg), one a box (det), the label (cls)."""
    if task == "seg":
        present = target["mask"].unique().tolist()  # type: ignore[no-untyped-call]
        return [index for index in present if index not in (0, IGNORE)]  # 0: background
    if task == "det":
        labels: list[int] = target["labels"].tolist()
        return labels
    return [int(target["label"])]
