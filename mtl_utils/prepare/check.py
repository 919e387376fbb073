"""`data check`: every fault of a data root, each with its file and its remedy, whatever the files contain.

Nothing here trusts a file: pictures are decoded to the last pixel, and values of a JSON are tested before use.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mtl_utils import coco, files, layout, pictures
from mtl_utils.coco import FETCH
from mtl_utils.files import UserError
from mtl_utils.pictures import FETCH_AGAIN, PictureError, Size
from mtl_utils.progress import progress
from mtl_utils.tasks import FOLDERS, SPLITS, TASK_NAMES, TASKS, Task

NOT_COCO = f"is not COCO: it needs lists of objects named {', '.join(layout.COCO_LISTS)}"
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


class Photo(NamedTuple):
    """What is known of a photograph that can be decoded."""

    size: Size  # as viewers show it
    stored_size: Size  # before it is turned as its EXIF orientation says
    sha256: str  # of its file


class SummaryRow(NamedTuple):
    """What one split of one set holds."""

    task: str
    split: str
    images: int
    annotated: str


Photos = dict[Path, Photo]  # the sound photographs of one split


# ---- the whole root


def check_root(root: Path, tasks: Sequence[Task] = TASKS, splits: Sequence[str] = SPLITS) -> list[Fault]:
    """Every fault of some splits of the mini sets of some tasks below `root`; an empty list if all is well."""
    root = Path(root)
    faults: list[Fault] = []
    for task in tasks:
        if layout.has_set(root, task):
            faults += check_task(root, task, splits)
        else:
            faults.append(Fault(FOLDERS[task], f"the {TASK_NAMES[task]} set is missing", FETCH))
    return faults


def check_task(root: Path, task: Task, splits: Sequence[str] = SPLITS) -> Iterator[Fault]:
    """The faults of one set: of each split, and of photographs that stand both in train and in val."""
    photos: dict[str, Photos] = {split: {} for split in splits}  # each filled while its split is checked
    for split in splits:
        yield from check_split(root, task, split, photos[split])
    yield from across_splits(root, photos.get("train", {}), photos.get("val", {}))


def check_split(root: Path, task: Task, split: str, photos: Photos) -> Iterator[Fault]:
    """The faults of one split of a set; its sound photographs are added to `photos`."""
    try:
        yield from CHECKS[task](root, split, photos)
    except UserError:
        yield fault_at(root, layout.split_folder(root, task, split), "the folder is missing or unreadable", FETCH)


def first_fault(root: Path, task: Task) -> str | None:
    """One sentence about what would stop a training: the first fault of a set's splits, and the number of the others.

    None for a set that can be read. Photographs that stand in both splits stop nothing, but a line on standard error
    warns of them, since the metrics are then too high.
    """
    faults: list[Fault] = []
    photos: dict[str, Photos] = {split: {} for split in SPLITS}
    for split in SPLITS:
        faults += check_split(root, task, split, photos[split])
    twins = list(across_splits(root, photos["train"], photos["val"]))
    if twins:
        print(f"warning: {len(twins)} photograph(s) of val are in train too, such as {twins[0].path}", file=sys.stderr)
    if not faults:
        return None
    others = f" ({len(faults) - 1} more faults: `data check` lists all)" if len(faults) > 1 else ""
    return f"{root / faults[0].path}: {faults[0].problem}{others}: {faults[0].remedy}."


def across_splits(root: Path, train: Photos, val: Photos) -> Iterator[Fault]:
    """Photographs of val that also stand in train: by their bytes or, under an official name, by that name."""
    train_by_sha256 = {photo.sha256: path for path, photo in train.items()}
    train_by_name = {path.stem: path for path in train if ID_NAME.fullmatch(path.stem)}
    for path, photo in val.items():
        twin = train_by_sha256.get(photo.sha256) or train_by_name.get(path.stem)
        if twin:
            other = twin.relative_to(root).as_posix()
            yield fault_at(root, path, f"is the same photograph as {other}", "remove one of the two")


def report(root: Path, tasks: Sequence[Task] = TASKS, splits: Sequence[str] = SPLITS) -> int:
    """Print every fault on a line of its own, then what the root holds; returns the number of faults."""
    faults = check_root(root, tasks, splits)
    lines = [str(fault) for fault in faults]
    lines.append(f"{'task':<15} {'split':<6} {'images':>6}  annotated")
    for row in summary(root, tasks, splits):
        lines.append(f"{row.task:<15} {row.split:<6} {row.images:>6}  {row.annotated}")
    lines.append(f"{len(faults)} fault(s) in {root}")
    print_anywhere("\n".join(lines))
    return len(faults)


def print_anywhere(text: str) -> None:
    """Print text on any terminal: a file name may hold what the terminal cannot show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    printable = text.encode(encoding, "replace").decode(encoding)
    print(printable)


def summary(root: Path, tasks: Sequence[Task] = TASKS, splits: Sequence[str] = SPLITS) -> list[SummaryRow]:
    """What every set of some tasks holds that is there, a row for each split."""
    rows = []
    for task in tasks:
        if layout.has_set(root, task):
            rows += [summary_row(root, task, split) for split in splits]
    return rows


def summary_row(root: Path, task: Task, split: str) -> SummaryRow:
    """What one split of one set holds."""
    try:
        images, annotated = COUNTS[task](root, split)
    except UserError:
        images, annotated = 0, "nothing that can be read"
    return SummaryRow(TASK_NAMES[task], split, images, annotated)


# ---- photographs


def fault_at(root: Path, path: Path, problem: str, remedy: str = FETCH_AGAIN) -> Fault:
    """A fault of a file below the root."""
    return Fault(path.relative_to(root).as_posix(), problem, remedy)


def check_photos(root: Path, paths: list[Path], photos: Photos) -> Iterator[Fault]:
    """The faults of photographs as such; those that the loaders can read are added to `photos`."""
    for path in progress(paths, desc="checking photographs", unit="image", leave=False, delay=1):
        try:
            size, stored_size = pictures.photo_sizes(path)
        except PictureError as error:
            yield fault_at(root, path, error.problem, error.remedy)
        else:
            photos[path] = Photo(size, stored_size, files.sha256(path))


# ---- segmentation


def check_seg(root: Path, split: str, photos: Photos) -> Iterator[Fault]:
    """The faults of one split of the segmentation set."""
    pairs = layout.voc_pairs(root, split)
    if not pairs:
        yield fault_at(root, layout.split_folder(root, "seg", split), "the folder holds no images", FETCH)
    images = [image for image, _ in pairs]
    yield from check_photos(root, images, photos)
    for image, mask in progress(pairs, desc="checking masks", unit="mask", leave=False, delay=1):
        if mask is None:
            yield fault_at(root, image, f"its mask {image.stem}.png is missing", FETCH)
        else:
            yield from check_mask(root, mask, photos.get(image))
    for problem in layout.voc_problems(root, split):
        yield fault_at(root, problem.path, problem.text, problem.remedy)


def check_mask(root: Path, path: Path, photo: Photo | None) -> Iterator[Fault]:
    """The fault of one mask, if any; `photo` is its photograph, None if that one cannot be read."""
    try:
        height, width = pictures.read_mask(path).shape
        if photo:
            # either way up: the loader turns the photograph as the mask has it
            pictures.check_size(path, (width, height), [photo.size, photo.stored_size])
    except PictureError as error:
        yield fault_at(root, path, error.problem, error.remedy)


def count_seg(root: Path, split: str) -> tuple[int, str]:
    """Number of images of a split of the segmentation set, and what is annotated in them."""
    pairs = layout.voc_pairs(root, split)
    masks = [mask for _, mask in pairs if mask]
    return len(pairs), f"{len(masks)} masks"


# ---- detection


def check_det(root: Path, split: str, photos: Photos) -> Iterator[Fault]:
    """The faults of one split of the detection set."""
    path = layout.json_path(root, split)
    try:
        content = read_lists(path)
    except UserError as error:
        yield fault_at(root, path, str(error), FETCH)
        return
    found = coco.read_set(root, split, content)
    present = {photo.file for photo in found.photos if photo.file}
    yield from check_photos(root, sorted(present), photos)
    problems = found.problems + size_problems(found, photos) + unlearned_classes(root, split, found)
    if not content["annotations"]:
        problems.append(coco.Problem(path, "holds no object, so nothing can be learned or measured", FETCH))
    for problem in problems:
        yield fault_at(root, problem.path, problem.text, problem.remedy)


def size_problems(found: coco.CocoSet, photos: Photos) -> list[coco.Problem]:
    """Photographs of another size than the JSON says, of those that can be decoded."""
    problems = []
    for photo in found.photos:
        if photo.file in photos:
            decoded = photos[photo.file]
            sizes = (decoded.size, decoded.stored_size)
            problem = coco.size_problem(photo, sizes, found.path.name)
            if problem:
                problems.append(problem)
    return problems


def unlearned_classes(root: Path, split: str, found: coco.CocoSet) -> list[coco.Problem]:
    """Classes of objects that train does not have: a model could not have learned them."""
    try:
        categories = coco.categories_of(root, "train")
    except UserError:  # a root without train, whose model learned elsewhere, or a fault that is listed there
        return []
    learned = {coco.plain_name(name) for _, name in categories}
    problems = []
    for name in found.category_ids:
        if coco.plain_name(name) not in learned:
            text = f"has objects of the class {name!r}, which train does not have"
            problems.append(coco.Problem(found.path, text, "correct the name or remove them"))
    return problems


def read_lists(path: Path) -> dict[str, Any]:
    """The contents of a COCO JSON.  Raises UserError, for use in a fault, when it is missing or something else."""
    try:
        content = layout.read_coco(path)
    except (UserError, ValueError, RecursionError) as error:
        # the reader's UserError names its cause, but a fault names the file already and has a remedy of its own
        raise UserError(reading_problem(error.__cause__ or error)) from error
    return content


def reading_problem(cause: BaseException) -> str:
    """Why a COCO JSON could not be read."""
    if isinstance(cause, OSError):
        return "the annotations are missing or unreadable"
    if isinstance(cause, (ValueError, RecursionError)):
        return f"is not JSON ({cause})"
    return NOT_COCO


def count_det(root: Path, split: str) -> tuple[int, str]:
    """Number of images of a split of the detection set, and what is annotated in them."""
    content = read_lists(layout.json_path(root, split))
    boxes = len(content["annotations"])
    classes = len(content["categories"])
    annotated = f"{boxes} boxes of {classes} classes"
    sizes = [coco.claimed_size(image) for image in content["images"]]
    unsized = sizes.count(None)
    if unsized:
        annotated += f"; no size of {unsized} images, so boxes drawn for another size would not be noticed"
    return len(content["images"]), annotated


# ---- classification


def check_cls(root: Path, split: str, photos: Photos) -> Iterator[Fault]:
    """The faults of one split of the classification set."""
    folders = layout.class_folders(root, split)
    if not folders:
        yield fault_at(root, layout.split_folder(root, "cls", split), "the folder holds no class folders", FETCH)
    for first, second in layout.class_twins(folders):
        yield fault_at(root, second, f"means the same class as {first.name}", "put their images into one folder")
    other_split = "val" if split == "train" else "train"
    other = layout.split_folder(root, "cls", other_split)
    others = {layout.class_name(folder.name) for folder in layout.entries(other)} if other.is_dir() else None
    for problem in layout.cls_problems(root, split):
        yield fault_at(root, problem.path, problem.text, problem.remedy)
    for folder in folders:
        if others is not None and layout.class_name(folder.name) not in others:
            text = f"the class has no folder in {other_split}"
            yield fault_at(root, folder, text, "add its images there or remove this folder")
        images = layout.class_images(folder)
        yield from check_photos(root, images, photos)


def count_cls(root: Path, split: str) -> tuple[int, str]:
    """Number of images of a split of the classification set, and the number of its classes."""
    folders = layout.class_folders(root, split)
    images = sum(len(layout.class_images(folder)) for folder in folders)
    return images, f"{len(folders)} classes"


CHECKS: dict[Task, Callable[[Path, str, Photos], Iterator[Fault]]] = {
    "seg": check_seg,
    "det": check_det,
    "cls": check_cls,
}
COUNTS: dict[Task, Callable[[Path, str], tuple[int, str]]] = {"seg": count_seg, "det": count_det, "cls": count_cls}
