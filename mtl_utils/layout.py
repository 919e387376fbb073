"""Where the files of the three mini sets lie below the data root: the one place that knows the folders.

The loaders, `data check` and `data fetch` all ask here.  A folder or file that is missing is a UserError.

    mini_voc_seg/{train,val}/NAME.jpg + NAME.png   (or {train,val}/JPEGImages/ + {train,val}/SegmentationClass/)
    mini_coco_det/{train,val}/NAME.jpg             (or images/, data/) + annotations/mini_instances_{train,val}2017.json
    imagenette_160/{train,val}/CLASS/NAME.JPEG     (CLASS: a WordNet id or Imagenette's own name of the class)

A set or a split may have another usual name (SET_NAMES, SPLIT_NAMES). What file managers leave behind is no data.
"""

import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtl_utils import files
from mtl_utils.files import UserError
from mtl_utils.tasks import FOLDERS, IMAGENETTE_NAMES, Task

VOC_PHOTO = (".jpg", ".jpeg", ".webp")  # a PNG beside a VOC photograph is its mask
PHOTO = (*VOC_PHOTO, ".png", ".bmp")  # what a class folder may hold
PICTURE = (*PHOTO, ".jfif", ".jpe", ".jp2", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif")  # read or not
COCO_LISTS = ("images", "annotations", "categories")  # what every COCO JSON must hold


# the usual names of a set and of a split, the project's own first; the first that is there counts
SET_NAMES: dict[Task, tuple[str, ...]] = {
    "seg": (FOLDERS["seg"],),
    "det": (FOLDERS["det"],),
    # the official archives unpack to one of these
    "cls": (
        FOLDERS["cls"], "imagenette2-160", "imagenette2", "imagenette",
        "imagenette2-320", "imagenette-160", "imagenette-320",
    ),
}  # fmt: skip
SPLIT_NAMES = {
    "train": ("train", "train2017", "training"),
    "val": ("val", "valid", "validation", "val2017"),
    "test": ("test", "test2017"),
}
JUNK = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir")  # of file managers, in small letters


class FileProblem(NamedTuple):
    """A file or folder that would not be read, or be read wrongly, without a word."""

    path: Path
    text: str
    remedy: str
    twin: Path | None = None  # a file that is as doubtful


def set_folder(root: Path, task: Task) -> Path:
    """The folder of one set, under whichever of its names it is there; under the project's own if it is not."""
    return first_folder(Path(root), SET_NAMES[task])


def split_folder(root: Path, task: Task, split: str) -> Path:
    """The folder of one split of one task, under whichever of its names, whether it exists or not."""
    names = SPLIT_NAMES.get(split, (split,))
    return first_folder(set_folder(root, task), names)


def first_folder(parent: Path, names: Sequence[str]) -> Path:
    """The first of these folders that exists, or else the first of all."""
    present = named_folders(parent, names)
    return present[0] if present else parent / names[0]


def named_folders(parent: Path, names: Sequence[str]) -> list[Path]:
    """Those of some folders that exist, in the order of their names; capitals count only where nothing else differs."""
    present = [parent / name for name in names if (parent / name).is_dir()]
    if present or not parent.is_dir():
        return present
    return [folder for folder in entries(parent) if comparable(folder.name) in names]


def has_set(root: Path, task: Task) -> bool:
    """Whether the root holds a folder for the task ("seg", "det" or "cls")."""
    return set_folder(root, task).is_dir()


def split_problems(root: Path, task: Task, split: str) -> list[FileProblem]:
    """Further folders of a split, under another of its names: nothing there would be read."""
    parent = set_folder(root, task)
    names = SPLIT_NAMES.get(split, (split,))
    first, *others = named_folders(parent, names) or [parent]
    problems = []
    # a link to the folder is no second one
    for folder in others:
        if not folder.samefile(first):
            text = f"is not read, since {first.name}/ is read as {split}"
            problems.append(FileProblem(folder, text, "remove or rename one of the two folders"))
    return problems


def unread_pictures(folder: Path, suffixes: Sequence[str], remedy: str) -> list[FileProblem]:
    """Pictures in or below a folder that would not be read: of other kinds than `suffixes`, or in a folder below it."""
    problems = []
    for path in files_below(folder):
        suffix = path.suffix.lower()
        if suffix not in PICTURE or (path.parent == folder and suffix in suffixes):
            continue
        problems.append(FileProblem(path, "is a picture that is not read in this place", remedy))
    return problems


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is no data: hidden (.DS_Store, ._NAME.jpg) or a file manager's."""
    return name.startswith(".") or name.lower() in JUNK


def entries(folder: Path, suffixes: Iterable[str] = ()) -> list[Path]:
    """The files of a folder that end in one of the suffixes, in any case, sorted by name; without suffixes its folders.

    Junk is left out.  Raises UserError when the folder cannot be listed.
    """
    try:
        # sorted, since the order that a file system gives differs between machines
        visible = [path for path in Path(folder).iterdir() if not is_junk(path.name)]
        paths = sorted(visible)
        if not suffixes:
            return [path for path in paths if path.is_dir()]
        wanted = [path for path in paths if path.suffix.lower() in suffixes]
        return [path for path in wanted if not path.is_dir()]
    except OSError as error:
        raise missing(folder, "folder") from error


def missing(path: Path, what: str) -> UserError:
    """The error for a folder or file that is not there."""
    return UserError(
        f"The {what} {path} is missing or unreadable: run `python -m mtl_utils data check ROOT` to see all that is "
        "missing, or choose another root with --data-root or another --split."
    )


def used_files(root: Path, task: Task, split: str) -> list[Path]:
    """The files of one split that are read, in a fixed order; none where the split is missing or unreadable."""
    # each knows the folders of its set
    readers = {"seg": used_by_seg, "det": used_by_det, "cls": used_by_cls}
    try:
        return readers[task](root, split)
    except UserError:
        return []


# ---- segmentation: VOC


def used_by_seg(root: Path, split: str) -> list[Path]:
    """Every photograph, each followed by its mask."""
    paths = []  # without the masks that belong to no photograph
    for image, mask in voc_pairs(root, split):
        paths.append(image)
        if mask is not None:
            paths.append(mask)
    return paths


def voc_folders(root: Path, split: str) -> tuple[Path, Path]:
    """The folders of the photographs and of the masks: one and the same unless VOC's own two folders are there."""
    folder = split_folder(root, "seg", split)
    if (folder / "JPEGImages").is_dir():  # a copy of VOC's own folders
        return folder / "JPEGImages", folder / "SegmentationClass"
    return folder, folder


def voc_suffixes(root: Path, split: str) -> tuple[str, ...]:
    """How photographs end: no PNG where they share a folder with the masks, which are PNGs."""
    photos, masks = voc_folders(root, split)
    return VOC_PHOTO if photos == masks else PHOTO


def voc_masks(root: Path, split: str) -> list[Path]:
    """Every mask of the split, sorted by name."""
    _, folder = voc_folders(root, split)
    if not folder.is_dir():  # photographs without any mask: each is then named as a fault
        return []
    return entries(folder, (".png",))


def voc_pairs(root: Path, split: str) -> list[tuple[Path, Path | None]]:
    """Every photograph of the split with its mask (None: there is none), sorted by name; a mask is never an image."""
    folder, _ = voc_folders(root, split)
    mask_of_name = {comparable(mask.stem): mask for mask in voc_masks(root, split)}
    images = entries(folder, voc_suffixes(root, split))
    return [(image, mask_of_name.get(comparable(image.stem))) for image in images]


def voc_problems(root: Path, split: str) -> list[FileProblem]:
    """Masks without a photograph, files of one name, and pictures that would not be read."""
    images = [image for image, _ in voc_pairs(root, split)]
    masks = voc_masks(root, split)
    problems = split_problems(root, "seg", split)
    # as voc_pairs compares them
    names = {comparable(image.stem) for image in images}
    for mask in masks:
        if comparable(mask.stem) not in names:
            text = f"the image {mask.stem}.jpg of this mask is missing"
            problems.append(FileProblem(mask, text, "add the image or remove the mask"))
    # one mask would be taken for both photographs, or one of two masks
    for paths in (images, masks):
        first_of_name: dict[str, Path] = {}
        for path in paths:
            first = first_of_name.setdefault(comparable(path.stem), path)
            if first != path:
                text = f"has the same name as {first.name}"
                problems.append(FileProblem(path, text, "rename or remove one of the two", twin=first))
    # VOC's own folders may hold more beside the photographs
    folder, _ = voc_folders(root, split)
    problems += unread_pictures(
        folder, (*voc_suffixes(root, split), ".png"), "move it elsewhere, or save it as JPEG here"
    )
    return problems


# ---- detection: COCO


def used_by_det(root: Path, split: str) -> list[Path]:
    """The annotations, and every photograph that they name and that is there."""
    path = coco_json(root, split)
    content = read_coco(path)
    # a photograph that no entry names is not read
    finder = PhotoFinder(root, split)
    photos = [finder.find(str(image.get("file_name"))) for image in content["images"]]
    return [path, *[photo for photo in photos if photo is not None]]


def json_path(root: Path, split: str) -> Path:
    """The COCO annotations of the split: the first of the usual names that exists, else the project's own."""
    home = Path(root) / FOLDERS["det"]
    candidates = [home / name for name in json_names(split)]
    for path in candidates:
        if path.is_file():
            return path
    return candidates[0]  # the name that messages and `data fetch` use


def json_names(split: str) -> Iterator[str]:
    """The places of a split's COCO JSON below mini_coco_det/, in the order in which they are looked for."""
    words = SPLIT_NAMES.get(split, (split,))
    year = "" if split.endswith("2017") else "2017"  # COCO's, in both splits
    yield f"annotations/mini_instances_{split}{year}.json"
    for word in words:
        yield f"annotations/instances_{word}.json"  # COCO's own files
    for word in words:
        yield f"annotations/{word}.json"
        yield f"{word}/_annotations.coco.json"  # Roboflow
        yield f"{word}/labels.json"  # FiftyOne


def coco_json(root: Path, split: str) -> Path:
    """The COCO annotations of the split.  Raises UserError when they are missing."""
    path = json_path(root, split)
    if not path.is_file():
        raise missing(path, "annotation file")
    return path


def path_parts(file_name: str) -> list[str]:
    """The folders and the name of a `file_name`, with Windows' separators too, without "." and ".."; never empty."""
    parts = file_name.replace("\\", "/").split("/")
    return [part for part in parts if part not in ("", ".", "..")] or [""]


def comparable(name: str) -> str:
    """A file's name without what systems change: capitals, and accents as one character or two."""
    return unicodedata.normalize("NFC", name).casefold()


class PhotoFinder:
    """Finds the photographs that a COCO JSON names, wherever below mini_coco_det/ they lie.

    Only files found there are ever returned, so that no `file_name` leads out of the data root. Files below the folder
    of another split are left out: one photograph of train may have the name of another one of val.
    """

    def __init__(self, root: Path, split: str):
        home = Path(root) / FOLDERS["det"]
        others: set[str] = set()  # folders of other splits
        for words in SPLIT_NAMES.values():
            if split not in words:
                others.update(words)
        self.own = split_folder(root, "det", split)
        self.paths: dict[str, list[Path]] = defaultdict(list)  # by comparable name
        self.folders: set[str] = set()  # that hold photographs
        for path in files_below(home):
            folders = path.relative_to(home).parts[:-1]
            if path.suffix.lower() in PHOTO and others.isdisjoint(folders):
                self.paths[comparable(path.name)].append(path)
                self.folders.add(comparable(path.parent.name))

    def find(self, file_name: str) -> Path | None:
        """The photograph of a `file_name`; None where there is none, or where several fit equally well."""
        # the name alone decides where it can; folders where several photographs have it
        parts = [comparable(part) for part in path_parts(file_name)]
        candidates = self.paths.get(parts[-1], [])
        if len(parts) > 1 and parts[-2] in self.folders:  # a folder that is there is meant, another may be a tool's
            candidates = [path for path in candidates if comparable(path.parent.name) == parts[-2]]
        fits = [common_ending(parts, path) for path in candidates]
        best = [path for path, fit in zip(candidates, fits, strict=True) if fit == max(fits)]
        if len(best) > 1:  # a copy elsewhere, such as a backup, is not meant
            best = [path for path in best if self.own in path.parents]
        return best[0] if len(best) == 1 else None


def common_ending(parts: list[str], path: Path) -> int:
    """How many of the last parts of a `file_name` (comparable) and of a path are the same."""
    count = 0
    for wanted, found in zip(reversed(parts), reversed(path.parts), strict=False):
        if wanted != comparable(found):
            break
        count += 1
    return count


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted, symbolic links followed; hidden ones are left out."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        # in place: os.walk goes on with what the list holds
        folders[:] = sorted(name for name in folders if not is_junk(name))
        for name in sorted(names):
            if not is_junk(name):
                yield Path(place, name)


def read_coco(path: Path) -> dict[str, Any]:
    """The contents of a COCO JSON: a dict with at least the keys COCO_LISTS.  Raises UserError when it is none.

    Outlines of objects are left out: in COCO's own file they take more than half of the memory, and boxes are enough.
    """
    try:
        # UTF-8 or UTF-16, with or without a byte order mark
        content = json.loads(path.read_bytes(), object_hook=without_outline)
        # a list of detections, say, is JSON too but no COCO set
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}")
        absent = [key for key in COCO_LISTS if key not in content]
        if absent:
            raise KeyError(absent[0])
        for key in COCO_LISTS:
            check_list(key, content[key])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a COCO JSON ({error!r}): restore it from its source.") from error
    return content


def without_outline(value: dict[str, Any]) -> dict[str, Any]:
    """An object of a COCO JSON without the outline that an annotation has."""
    value.pop("segmentation", None)
    return value


def check_list(key: str, value: object) -> None:
    """Raise TypeError unless a value of a JSON is a list that holds nothing but objects."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise TypeError(f"{key} is not a list of objects")


def write_coco(path: Path, content: dict[str, Any]) -> None:
    """Write a COCO JSON: the file is whole or not there."""
    text = json.dumps(content)  # ASCII, as the official files are
    files.write_atomically(path, lambda file: file.write(text.encode()))


# ---- classification: Imagenette


def used_by_cls(root: Path, split: str) -> list[Path]:
    """Every photograph of every class."""
    paths: list[Path] = []  # class by class
    for folder in class_folders(root, split):
        paths += class_images(folder)
    return paths


def class_name(folder_name: str) -> str:
    """The class that a folder's name means: a WordNet id where Imagenette has it, else the name itself.

    Imagenette's own names count as well, without regard to case, spaces, underscores and hyphens: "Golf_Ball".
    """
    wanted = plain(folder_name)
    for wordnet_id, name in IMAGENETTE_NAMES.items():
        names = (wordnet_id, plain(name))
        if wanted in names:
            return wordnet_id
    return folder_name


def plain(name: str) -> str:
    """A name in small letters, without spaces, underscores and hyphens."""
    letters = [letter for letter in name.lower() if letter not in " _-"]
    return "".join(letters)


def class_folders(root: Path, split: str) -> list[Path]:
    """The class folders of the split, sorted by class, so that the labels are the same in train and val."""
    folders = entries(split_folder(root, "cls", split))
    # not by the folders' names, which may differ between the splits
    return sorted(folders, key=lambda folder: class_name(folder.name))


def class_twins(folders: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Pairs of class folders that mean one class, such as n01440764 and tench."""
    first: dict[str, Path] = {}  # by class
    twins = []
    for folder in folders:
        name = class_name(folder.name)
        other = first.setdefault(name, folder)
        if other is not folder:  # the class has a folder already
            twins.append((other, folder))
    return twins


def folder_of_class(root: Path, split: str) -> dict[str, Path]:
    """The folder of each class of the split, sorted by class.  Raises UserError when two folders mean one class."""
    folders = class_folders(root, split)
    for first, second in class_twins(folders):  # the first pair will do: `data check` lists all
        raise UserError(f"{second} and {first.name} mean the same class: put their images into one folder.")
    return {class_name(folder.name): folder for folder in folders}


def cls_problems(root: Path, split: str) -> list[FileProblem]:
    """Class folders without images, photographs of two classes, and pictures that would not be read."""
    # each would change a metric without a word
    problems = split_problems(root, "cls", split)
    parent = split_folder(root, "cls", split)
    for path in entries(parent, PICTURE):
        problems.append(FileProblem(path, "lies in no class folder", "move it into the folder of its class"))
    folders = class_folders(root, split)
    for folder in folders:
        if class_images(folder):
            problems += unread_pictures(folder, PHOTO, "save it as JPEG in the class folder itself")
        else:  # what is meant may lie in a folder below it
            text = "the class folder is empty"
            problems.append(FileProblem(folder, text, "add images of the class or remove the folder"))
    problems += photos_of_two_classes(folders)
    return problems


def photos_of_two_classes(folders: Sequence[Path]) -> list[FileProblem]:
    """Photographs that lie in the folders of two classes, by their bytes: one of the labels must be wrong."""
    same_size: dict[int, list[Path]] = defaultdict(list)
    for folder in folders:
        for path in class_images(folder):
            if path.is_file() and os.access(path, os.R_OK):  # else the decoder names the fault
                size = path.stat().st_size  # in bytes
                same_size[size].append(path)
    problems = []
    # hashing all would read every file once more
    for paths in same_size.values():
        if len(paths) == 1:
            continue
        first_of_hash: dict[str, Path] = {}
        for path in paths:
            first = first_of_hash.setdefault(files.sha256(path), path)
            if class_name(first.parent.name) != class_name(path.parent.name):
                text = f"is the same photograph as {first.parent.name}/{first.name}, of another class"
                problems.append(FileProblem(path, text, "remove the one whose class is wrong", twin=first))
    return problems


def class_images(folder: Path) -> list[Path]:
    """The photographs of one class folder, sorted by name."""
    return entries(folder, PHOTO)
