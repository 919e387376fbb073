"""`data check`: every fault of a data root, each with its file and its remedy, whatever lies in the files.

Nothing here trusts a file: pictures are decoded to the last pixel and values of a JSON are tested before use.
"""

import hashlib
import io
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from reprlib import repr as short

from PIL import Image
from tqdm.auto import tqdm

from mtl_utils import layout
from mtl_utils.files import UserError
from mtl_utils.tasks import FOLDERS, IGNORE, SPLITS, TASK_NAMES, TASKS, VOC_CLASSES

FETCH = "get it with `python -m mtl_utils data fetch`, or name another folder with --data-root"
AGAIN = "delete it and get it again with `python -m mtl_utils data fetch`"
MEND = "correct or remove this entry of the JSON"
SLACK = 1  # pixels that a box may reach outside its image: COCO's coordinates are rounded
COCO_LISTS = ("images", "annotations", "categories")
ID_NAME = re.compile(r"\d{12}|\d{4}_\d{6}|n\d{8}_\d+")  # names given by COCO, VOC, ImageNet: one name, one photograph


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with one file or folder."""

    path: str  # relative to the data root
    problem: str
    remedy: str

    def __str__(self) -> str:
        """The fault as it is printed."""
        return f"{self.path}: {self.problem} → {self.remedy}"


Photos = dict[Path, tuple[tuple[int, int], str]]  # sound photographs: (width, height) and SHA-256 of the file


def check_root(root: Path) -> list[Fault]:
    """Every fault of the three mini sets below `root`; an empty list if all is well."""
    root, faults = Path(root), []
    for task in TASKS:
        if not layout.has_set(root, task):
            faults.append(Fault(FOLDERS[task], f"the {TASK_NAMES[task]} set is missing", FETCH))
            continue
        photos = {split: {} for split in SPLITS}  # each filled while its split is checked
        for split in SPLITS:
            try:
                faults += CHECKS[task](root, split, photos[split])
            except UserError:
                faults.append(Fault(f"{FOLDERS[task]}/{split}", "the folder is missing or unreadable", FETCH))
        faults += across_splits(root, photos["train"], photos["val"])
    return faults


def report(root: Path) -> int:
    """Print every fault on a line of its own, then what the root holds; returns the number of faults."""
    faults = check_root(root)
    table = [("task", "split", "images", "annotated"), *summary(root)]
    lines = [str(fault) for fault in faults] + [f"{a:<15} {b:<6} {c:>6}  {d}" for a, b, c, d in table]
    text = "\n".join([*lines, f"{len(faults)} fault(s) in {root}"])
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))  # a file name may hold what the terminal cannot show
    return len(faults)


def summary(root: Path) -> list[tuple[str, str, int, str]]:
    """Rows (task, split, number of images, what is annotated) of every set that is there."""
    rows = []
    for task, split in ((task, split) for task in TASKS if layout.has_set(root, task) for split in SPLITS):
        try:
            rows.append((TASK_NAMES[task], split, *count(root, task, split)))
        except UserError:
            rows.append((TASK_NAMES[task], split, 0, "nothing that can be read"))
    return rows


def fault_at(root: Path, path: Path, problem: str, remedy: str = AGAIN) -> Fault:
    """A fault of a file below the root."""
    return Fault(path.relative_to(root).as_posix(), problem, remedy)


def decode(path: Path) -> tuple[bytes, Image.Image]:
    """The bytes of a picture and the picture itself, decoded to its last pixel.  Raises UserError on any defect."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF data harm nobody
            data = path.read_bytes()
            picture = Image.open(io.BytesIO(data))
            picture.load()
            return data, picture
    except Exception as error:  # what PIL raises on garbage is not only OSError
        reason = str(error).split(" <")[0]  # without Python's address of the buffer
        raise UserError(f"the picture cannot be decoded ({reason})") from error


def check_photos(root: Path, paths: list[Path], photos: Photos) -> Iterator[Fault]:
    """The faults of photographs as such; those that can be decoded are added to `photos`."""
    for path in tqdm(paths, desc="checking photographs", unit="image", leave=False, delay=1):
        try:
            data, picture = decode(path)
            photos[path] = picture.size, hashlib.sha256(data).hexdigest()
        except UserError as error:
            yield fault_at(root, path, str(error))


def across_splits(root: Path, train: Photos, val: Photos) -> Iterator[Fault]:
    """Photographs of val that also stand in train: by their bytes or, under an official name, by that name."""
    twins = {key: path for path, (_, digest) in train.items() for key in (digest, path.stem)}
    for path, (_, digest) in val.items():
        if twin := twins.get(digest) or (ID_NAME.fullmatch(path.stem) and twins.get(path.stem)):
            other = twin.relative_to(root).as_posix()
            yield fault_at(root, path, f"is the same photograph as {other}", "remove one of the two")


def check_seg(root: Path, split: str, photos: Photos) -> Iterator[Fault]:
    """The faults of one split of the segmentation set."""
    pairs = layout.voc_pairs(root, split)
    if not pairs:
        yield fault_at(root, layout.split_folder(root, "seg", split), "the folder holds no images", FETCH)
    yield from check_photos(root, [image for image, _ in pairs], photos)
    for image, mask in tqdm(pairs, desc="checking masks", unit="mask", leave=False, delay=1):
        if mask is None:
            yield fault_at(root, image, f"its mask {image.stem}.png is missing", FETCH)
        else:
            yield from check_mask(root, mask, photos.get(image, [None])[0])
    photographed = {image.stem for image, _ in pairs}
    for mask in layout.voc_masks(root, split):
        if mask.stem not in photographed:
            yield fault_at(root, mask, f"the image {mask.stem}.jpg of this mask is missing", FETCH)


def check_mask(root: Path, path: Path, size: tuple[int, int] | None) -> Iterator[Fault]:
    """The faults of one mask; `size` is that of its photograph, None if that one is unknown."""
    try:
        mask = decode(path)[1]
    except UserError as error:
        yield fault_at(root, path, str(error))
        return
    if mask.mode not in ("P", "L"):
        remedy = "save it as a palette PNG that holds the class index of each pixel, as VOC does"
        yield fault_at(root, path, f"the mask holds colours (mode {mask.mode}), not class indices", remedy)
        return
    if size and mask.size != size:
        problem = f"the mask has {mask.size[0]} x {mask.size[1]} pixels, its image {size[0]} x {size[1]}"
        yield fault_at(root, path, problem, "take the mask that belongs to this image")
    if bad := [v for v, n in enumerate(mask.histogram()) if n and v >= len(VOC_CLASSES) and v != IGNORE]:
        remedy = f"use only 0 to {len(VOC_CLASSES) - 1} and {IGNORE}; never convert a palette mask to greyscale"
        yield fault_at(root, path, f"the mask holds values that are no class: {short(bad)}", remedy)


def read_coco(path: Path) -> dict[str, list[dict]]:
    """The three lists of a COCO JSON.  Raises UserError when it is missing or something else."""
    try:
        coco = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError("the annotations are missing or unreadable") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({error})") from error
    lists = [coco.get(key) if isinstance(coco, dict) else None for key in COCO_LISTS]
    if not all(isinstance(entries, list) and all(isinstance(e, dict) for e in entries) for entries in lists):
        raise UserError(f"is not COCO: it needs lists of objects named {', '.join(COCO_LISTS)}")
    return dict(zip(COCO_LISTS, lists, strict=True))


def check_det(root: Path, split: str, photos: Photos) -> Iterator[Fault]:
    """The faults of one split of the detection set."""
    path = layout.json_path(root, split)
    try:
        coco = read_coco(path)
    except UserError as error:
        yield fault_at(root, path, str(error), FETCH)
        return
    yield from (fault_at(root, path, problem, MEND) for problem in id_problems(coco))
    names = [image["file_name"] if isinstance(image.get("file_name"), str) else "" for image in coco["images"]]
    files = [layout.coco_image(root, split, name) for name in names]
    yield from check_photos(root, sorted({file for file in files if file}), photos)
    real = {file: size for file, (size, _) in photos.items()}
    if not any(files):
        problem = f"holds none of the {len(files)} images that {path.name} lists"
        yield fault_at(root, layout.split_folder(root, "det", split), problem, FETCH)
    for image, name, file in zip(coco["images"], names, files, strict=True):
        claimed = (image.get("width"), image.get("height"))
        if file is None and any(files):
            where = f"{FOLDERS['det']}/{split}/{PurePath(name).name}"
            yield Fault(where, f"the image is missing, but {path.name} lists it", FETCH)
        elif claimed != real.get(file, claimed):
            problem = f"the image has the size {real[file]}, but {path.name} says {short(claimed)}"
            yield fault_at(root, file, problem, "correct width and height in the JSON or get the file again")
    sizes = {i["id"]: real.get(file) for i, file in zip(coco["images"], files, strict=True) if is_id(i.get("id"))}
    categories = [category.get("id") for category in coco["categories"]]
    for annotation in coco["annotations"]:
        for problem in annotation_problems(annotation, sizes, categories):
            yield fault_at(root, path, f"annotation {short(annotation.get('id'))} {problem}", MEND)


def is_id(value: object) -> bool:
    """Whether a value of a JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def id_problems(coco: dict[str, list[dict]]) -> Iterator[str]:
    """Ids that stand twice in a list or are not whole numbers."""
    for key, entries in coco.items():
        counts = Counter(e["id"] if is_id(e.get("id")) else None for e in entries)
        if nameless := counts.pop(None, 0):
            yield f"{nameless} of its {key} have no whole number as id"
        yield from (f"the id {short(i)} stands {n} times among its {key}" for i, n in counts.items() if n > 1)


def annotation_problems(annotation: dict, sizes: dict, categories: list) -> Iterator[str]:
    """What is wrong with one annotation; `sizes`: image id → (width, height), None where the file is not sound."""
    image, category, crowd = (annotation.get(key, 0) for key in ("image_id", "category_id", "iscrowd"))
    if not is_id(image) or image not in sizes:
        yield f"names the unknown image id {short(image)}"
    if category not in categories:
        yield f"names the unknown category id {short(category)}"
    if crowd not in (0, 1):
        yield f"has iscrowd {short(crowd)}, which must be 0 or 1"
    if problem := box_problem(annotation.get("bbox"), sizes.get(image) if is_id(image) else None):
        yield f"has the box {short(annotation.get('bbox'))}, which {problem}"


def box_problem(box: object, size: tuple[int, int] | None) -> str | None:
    """What is wrong with a COCO box (x, y, width, height) in an image of `size`; None if nothing is."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        return "is not four numbers"
    if not all(abs(v) < 1e9 for v in box):  # false for NaN too
        return "is not finite"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "is empty or of negative size"
    right, bottom = size or (float("inf"), float("inf"))
    if min(x, y) < -SLACK or x + width > right + SLACK or y + height > bottom + SLACK:
        return f"reaches outside its image of the size {size}"
    return None


def check_cls(root: Path, split: str, photos: Photos) -> Iterator[Fault]:
    """The faults of one split of the classification set."""
    folders = layout.class_folders(root, split)
    if not folders:
        yield fault_at(root, layout.split_folder(root, "cls", split), "the folder holds no class folders", FETCH)
    other = layout.split_folder(root, "cls", SPLITS[1 - SPLITS.index(split)])
    for folder in folders:
        if other.is_dir() and not (other / folder.name).is_dir():
            problem = f"the class has no folder in {other.name}"
            yield fault_at(root, folder, problem, "add its images there or remove this folder")
        images = layout.class_images(folder)
        if not images:
            yield fault_at(root, folder, "the class folder is empty", "add images of the class or remove the folder")
        yield from check_photos(root, images, photos)


def count(root: Path, task: str, split: str) -> tuple[int, str]:
    """Number of images of a split and what is annotated in them."""
    if task == "seg":
        pairs = layout.voc_pairs(root, split)
        return len(pairs), f"{sum(mask is not None for _, mask in pairs)} masks"
    if task == "det":
        coco = read_coco(layout.json_path(root, split))
        return len(coco["images"]), f"{len(coco['annotations'])} boxes of {len(coco['categories'])} classes"
    folders = layout.class_folders(root, split)
    return sum(len(layout.class_images(folder)) for folder in folders), f"{len(folders)} classes"


CHECKS = {"seg": check_seg, "det": check_det, "cls": check_cls}
