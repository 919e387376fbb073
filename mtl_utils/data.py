"""The three mini sets as torch datasets: images decoded once, kept as uint8, with their targets as tv_tensors.

A sample is (image, target): image is a tv_tensors.Image, (3, H, W) uint8 RGB in its own size; target is a dict:
    seg: {"mask": Mask (H, W) uint8 of 0..20 and 255}
    det: {"boxes": BoundingBoxes (N, 4) XYXY float32 in pixels, "labels": (N,) int64, "crowd": (N,) bool}
    cls: {"label": () int64}
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm

from mtl_utils import layout
from mtl_utils.files import UserError
from mtl_utils.layout import read_coco
from mtl_utils.tasks import FOLDERS, IGNORE, VOC_CLASSES, Classes

BROKEN = (OSError, SyntaxError, ValueError)  # what PIL raises on damaged pictures
Sample = tuple[tv_tensors.Image, dict[str, Tensor]]


def find_classes(root: Path, split: str = "train") -> Classes:
    """The class lists that the data itself gives: COCO's category table and the folder names."""
    path = layout.coco_json(root, split)
    try:
        ids, names = zip(*sorted((c["id"], c["name"]) for c in read_coco(path)["categories"]), strict=True)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no sound list of categories: `data check` says what is wrong.") from error
    return Classes(det=names, det_ids=ids, cls=tuple(f.name for f in layout.class_folders(root, split)))


def read_image(path: Path) -> tv_tensors.Image:
    """Decode a picture to (3, H, W) uint8 RGB. Raises UserError when it is missing, truncated or no picture."""
    try:
        with Image.open(path) as picture:
            return tv_tensors.Image(TF.pil_to_tensor(picture.convert("RGB")))
    except BROKEN as error:
        raise UserError(f"{path} cannot be read as a picture ({error}): fetch it again or take it out.") from error


def read_mask(path: Path) -> tv_tensors.Mask:
    """Read a VOC mask as it is, (H, W) uint8 of class indices. Raises UserError on any other value."""
    try:
        with Image.open(path) as picture:
            mask = np.array(picture) if picture.mode in ("P", "L") else None
    except BROKEN as error:
        raise UserError(f"{path} cannot be read as a mask ({error}): fetch it again or take it out.") from error
    if mask is None or (np.setdiff1d(mask, (*range(len(VOC_CLASSES)), IGNORE))).size:
        raise UserError(f"{path} is not an index mask of 0-20 and 255: take the palette PNG of VOC, not a colour copy.")
    return tv_tensors.Mask(torch.from_numpy(mask))


class MiniSet(Dataset):
    """One split of one task, wholly in memory; `ids` names each image (COCO's image id, else the file's stem)."""

    def __init__(self, task: str, root: Path, split: str, classes: Classes):
        self.task, self.split, self.root, self.classes = task, split, root, classes
        entries = ENTRIES[task](root, split, classes)
        if not entries:
            raise UserError(f"{root / FOLDERS[task]} has no {split} images: run `python -m mtl_utils data check`.")
        self.ids = [key for key, _, _ in entries]
        self.paths = [path for _, path, _ in entries]
        bar = tqdm(entries, desc=f"reading {FOLDERS[task]}/{split}", unit="image", leave=False, delay=2)
        self.samples: list[Sample] = [READERS[task](path, label) for _, path, label in bar]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that images and targets take."""
        return sum(image.nbytes + sum(t.nbytes for t in target.values()) for image, target in self.samples)


def seg_entries(root: Path, split: str, classes: Classes) -> list[tuple]:
    """(name, image path, mask path) of every VOC image."""
    pairs = layout.voc_pairs(root, split)
    if missing := [image for image, mask in pairs if mask is None]:
        raise UserError(f"{missing[0]} has no mask beside it: fetch NAME.png or take the image out.")
    return [(image.stem, image, mask) for image, mask in pairs]


def det_entries(root: Path, split: str, classes: Classes) -> list[tuple]:
    """(image id, image path, annotations) of every COCO image, class indices instead of category ids."""
    path = layout.coco_json(root, split)
    coco = read_coco(path)
    try:
        table = {(c["id"], c["name"]) for c in coco["categories"]}
        if not table <= set(zip(classes.det_ids, classes.det, strict=True)):
            raise UserError(f"{path} has categories the model was not trained for: take a model for {sorted(table)}.")
        files = {image["id"]: layout.coco_image(root, split, image["file_name"]) for image in coco["images"]}
        if missing := [image["file_name"] for image in coco["images"] if files[image["id"]] is None]:
            raise UserError(f"{missing[0]}, which {path} lists, is missing: fetch it or take it out.")
        boxes = {key: [] for key in files}
        for a in coco["annotations"]:
            if a["image_id"] not in boxes or a["category_id"] not in classes.det_ids:
                raise UserError(f"{path}: annotation {a.get('id')} names no known image or category: see `data check`.")
            x, y, width, height = map(float, a["bbox"])
            row = ((x, y, width, height), classes.det_ids.index(a["category_id"]), bool(a.get("iscrowd", 0)))
            boxes[a["image_id"]].append(row)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is faulty ({error!r}): `python -m mtl_utils data check` lists all faults.") from error
    return [(key, file, boxes[key]) for key, file in files.items()]


def cls_entries(root: Path, split: str, classes: Classes) -> list[tuple]:
    """(name, image path, class index) of every Imagenette image."""
    entries = []
    for folder in layout.class_folders(root, split):
        if folder.name not in classes.cls:
            raise UserError(f"{folder} is a class the model was not trained for: its classes are {classes.cls}.")
        label = classes.cls.index(folder.name)
        entries += [(f"{folder.name}/{path.stem}", path, label) for path in layout.class_images(folder)]
    return entries


def read_seg(path: Path, mask_path: Path) -> Sample:
    """One segmentation sample."""
    image, mask = read_image(path), read_mask(mask_path)
    if image.shape[-2:] != mask.shape[-2:]:
        raise UserError(f"{mask_path} is of another size than its image: fetch both again.")
    return image, {"mask": mask}


def read_det(path: Path, annotations: list) -> Sample:
    """One detection sample; boxes are clipped to the image and dropped where less than a pixel is left."""
    image = read_image(path)
    height, width = image.shape[-2:]
    boxes = torch.tensor([a[0] for a in annotations], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = TF.clamp_bounding_boxes(tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)))
    good = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
    labels = torch.tensor([a[1] for a in annotations], dtype=torch.int64)
    crowd = torch.tensor([a[2] for a in annotations], dtype=torch.bool)
    return image, {"boxes": tv_tensors.wrap(boxes[good], like=boxes), "labels": labels[good], "crowd": crowd[good]}


def read_cls(path: Path, label: int) -> Sample:
    """One classification sample."""
    return read_image(path), {"label": torch.tensor(label)}


ENTRIES = {"seg": seg_entries, "det": det_entries, "cls": cls_entries}
READERS = {"seg": read_seg, "det": read_det, "cls": read_cls}


def classes_of(task: str, target: dict[str, Tensor]) -> list[int]:
    """The class indices of one target: present ones without background (seg), one a box (det), the label (cls)."""
    if task == "seg":
        return [c for c in target["mask"].unique().tolist() if c not in (0, IGNORE)]
    return target["labels"].tolist() if task == "det" else [int(target["label"])]
